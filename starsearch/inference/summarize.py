"""One item to one summary, by the engine's chat endpoint and past the gate.

An answer that may not be stored is asked for once more, with the stricter prompt. After a second one the item's own sentences are
its summary, marked as such, with the reason: nothing unfounded is stored, and no item is lost over it.
"""

from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from starsearch import extractive
from starsearch.errors import DigestFailed
from starsearch.inference.client import Engine, charge, complete, translate
from starsearch.inference.gate import Refusal, check, tidy
from starsearch.inference.prompts import PROMPT_VERSION, SEED, Prompt, prompt_for
from starsearch.models import DueItem, Summary, clean

SHRINKS = 1  # times that less is sent, when an engine says that a text is too long


@dataclass(frozen=True)
class _Answer:
    """What an engine said to a prompt, and why it may not be stored."""

    prompt: Prompt
    text: str
    refusal: Refusal | None


async def summarize(engine: Engine, item: DueItem, prompt: Prompt) -> Summary:
    """Summarize one item, beginning with its `first_prompt`; the tokens are those of all answers that it took.

    Raises DigestFailed (the item's fault) or EngineUnavailable (nobody's attempt is counted).
    """
    cost = [0, 0]
    answer = await _answer(engine, item, prompt, cost)
    if answer.refusal:
        answer = await _answer(engine, item, first_prompt(engine, item, version=prompt.version, again=True), cost, again=True)
    refused = answer.refusal
    return Summary(
        key=prompt.key(engine.model),
        text=extractive.summarize(answer.prompt.text) if refused else answer.text,
        source="extractive" if refused or extractive.made(engine.model) else "model",
        gate_reason=refused.reason if refused else None,
        gate_detail=refused.detail if refused else None,
        prompt_tokens=cost[0],
        completion_tokens=cost[1],
    )


def first_prompt(engine: Engine, item: DueItem, *, version: str = PROMPT_VERSION, again: bool = False) -> Prompt:
    """What an engine is asked of an item before it says that this is too long; the key of the summary is the plain one's."""
    return prompt_for(item, context_tokens=engine.context_tokens, version=version, again=again)


async def _answer(engine: Engine, item: DueItem, prompt: Prompt, cost: list[int], *, again: bool = False) -> _Answer:
    """One answer past the gate; adds its tokens to `cost`. An engine that finds the text too long gets less of it, once."""
    for shrinks in range(SHRINKS + 1):
        if shrinks:
            prompt = prompt_for(item, context_tokens=engine.context_tokens, version=prompt.version, shrinks=shrinks, again=again)
        try:
            said = await _ask(engine, prompt)
            cost[:] = [before + more for before, more in zip(cost, charge(said.usage), strict=True)]
            return _judge(said, prompt, item, extract=extractive.made(engine.model))
        except openai.BadRequestError as error:
            if shrinks == SHRINKS:
                raise DigestFailed("HTTP 400", str(error.message)[:300], permanent=True) from error
        except openai.OpenAIError as error:
            raise translate(error) from error
        except (AttributeError, TypeError, ValueError, RecursionError) as error:  # a 200 may hold anything, even a proxy's page
            raise DigestFailed("unreadable answer", repr(error)[:300], engine=True) from error
    raise AssertionError("unreachable: the last shrink returns or raises")


async def _ask(engine: Engine, prompt: Prompt) -> ChatCompletion:
    """One request; another way of asking where the engine's model refuses this one."""
    while True:
        messages = prompt.messages(one_turn=engine.learned.one_turn)
        options: dict[str, Any] = {"seed": SEED} if engine.learned.takes_seed else {}
        try:
            return await complete(engine, messages, **engine.sampling(prompt.max_tokens), **options)
        except openai.BadRequestError as error:
            if not engine.learned.from_refusal(error, turns=len(messages), seed=bool(options)):
                raise


def _judge(said: ChatCompletion, prompt: Prompt, item: DueItem, *, extract: bool) -> _Answer:
    """An extract is the item's own text and cannot be unfounded: it only has to be there."""
    if not said.choices:
        raise DigestFailed("unreadable answer", "no choices", engine=True)
    choice = said.choices[0]
    text = tidy(clean(choice.message.content or ""))
    if choice.finish_reason == "length":
        return _Answer(prompt, text, Refusal("cut off", f"longer than {prompt.max_tokens} tokens"))
    if not text:
        return _Answer(prompt, text, Refusal("empty", f"finish_reason {choice.finish_reason}"))
    return _Answer(prompt, text, None if extract else check(text, shown=prompt.text, system=prompt.system, state=item.state))
