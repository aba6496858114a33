"""One item to one summary, by the engine's chat endpoint."""

from typing import Literal

import openai
from openai.types.chat import ChatCompletion

from starsearch.errors import DigestFailed
from starsearch.inference.client import Engine, charge, complete, translate
from starsearch.inference.prompts import Prompt, prompt_for
from starsearch.models import DueItem, Summary, clean

SHRINKS = 3  # times the text is halved when the engine says that it is too long
EXTRACTIVE_MODELS = ("embedded-extractive-",)


async def summarize(engine: Engine, item: DueItem) -> Summary:
    """Summarize one item. Raises DigestFailed (the item's fault) or EngineUnavailable (nobody's attempt is counted).

    An engine that finds the text too long (400) gets half of it: our estimate of its tokens was wrong.
    """
    for shrink in range(SHRINKS + 1):
        prompt = prompt_for(item, context_tokens=engine.context_tokens, shrink=shrink)
        try:
            return await _ask(engine, prompt, key=summary_key(engine, item))
        except openai.BadRequestError as error:
            if shrink == SHRINKS:
                raise DigestFailed("HTTP 400", str(error.message)[:300], permanent=True) from error
        except openai.OpenAIError as error:
            raise translate(error) from error
        except (AttributeError, TypeError, ValueError) as error:  # the SDK hands on whatever a 200 holds, even a proxy's page
            raise DigestFailed("unreadable answer", repr(error)[:300]) from error
    raise AssertionError("unreachable: the last shrink returns or raises")


def summary_key(engine: Engine, item: DueItem) -> bytes:
    return prompt_for(item, context_tokens=engine.context_tokens).key(engine.model)


async def _ask(engine: Engine, prompt: Prompt, *, key: bytes) -> Summary:
    messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
    answer = await complete(engine, messages, **engine.sampling(prompt.max_tokens))
    prompt_tokens, completion_tokens = charge(answer.usage)
    text = _text(answer, prompt)
    return Summary(key, text, _source(engine.model), prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)


def _text(answer: ChatCompletion, prompt: Prompt) -> str:
    if not answer.choices:
        raise DigestFailed("unreadable answer", "no choices", engine=True)
    choice = answer.choices[0]
    text = clean(choice.message.content or "").strip()
    if choice.finish_reason == "length":
        raise DigestFailed("cut-off summary", f"longer than {prompt.max_tokens} tokens")
    if not text:
        raise DigestFailed("empty summary", f"finish_reason {choice.finish_reason}")
    return text


def _source(model: str) -> Literal["model", "extractive"]:
    return "extractive" if model.startswith(EXTRACTIVE_MODELS) else "model"
