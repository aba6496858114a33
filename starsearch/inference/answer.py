"""A question and the digests found for it to an answer whose every citation is one of them.

Sources are strangers' text: fenced on the way in, and of what comes back only citations of given sources and those sources' own
links are kept. An answer that cites nothing is no answer from the sources.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources

import openai

from starsearch.errors import DigestFailed
from starsearch.inference.client import Engine, charge, complete, translate
from starsearch.models import Hit, clean
from starsearch.untrusted import defuse, fence, foreign_links, visible

PROMPT = "answer-v1"
MAX_TOKENS = 400
SUMMARY_CHARACTERS = 1_200
NOT_FOUND = "NOT FOUND"

_CITATION = re.compile(r"\s?\[(\d{1,3}(?:\s{0,3},\s{0,3}\d{1,3}){0,20})\]")


async def answer(engine: Engine, question: str, hits: Sequence[Hit]) -> str:
    """What the model says, unchecked. Raises DigestFailed or EngineUnavailable."""
    messages = [{"role": "system", "content": _instructions()}, {"role": "user", "content": request(question, hits)}]
    try:
        answered = await complete(engine, messages, **engine.sampling(MAX_TOKENS))
        charge(answered.usage)
        return clean(answered.choices[0].message.content or "").strip()
    except openai.OpenAIError as error:
        raise translate(error) from error
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # a 200 may hold anything, even a proxy's page
        raise DigestFailed("unreadable answer", repr(error)[:300]) from error


def request(question: str, hits: Sequence[Hit]) -> str:
    """The sources, numbered from 1 and fenced, and the question after them."""
    sources = [_fenced("source", f"{hit.title}\n{hit.summary[:SUMMARY_CHARACTERS]}", number=str(n)) for n, hit in enumerate(hits, 1)]
    return "\n".join([*sources, _fenced("question", question)])


def checked(text: str, hits: Sequence[Hit]) -> tuple[str, list[int]] | None:
    """The answer without citations that resolve to nothing and without foreign links, and the numbers it cites; None where none is left."""
    cited: list[int] = []

    def keep(match: re.Match[str]) -> str:
        numbers = [number for number in map(int, match[1].split(",")) if 1 <= number <= len(hits)]
        cited.extend(number for number in numbers if number not in cited)
        return "".join(f" [{number}]" for number in numbers)

    for link in sorted(foreign_links(text, [hit.url for hit in hits]), key=len, reverse=True):
        text = text.replace(link, "[link removed]")
    text = _CITATION.sub(keep, text).strip()
    return (text, cited) if cited and NOT_FOUND not in text else None


def _fenced(tag: str, text: str, **attributes: str) -> str:
    """Neither a source nor the question can close its own fence, or open the other's."""
    return fence(tag, defuse(visible(text), "source", "question"), **attributes)


@cache
def _instructions() -> str:
    return (resources.files("starsearch.inference") / "prompts" / f"{PROMPT}.txt").read_text("utf-8").strip()
