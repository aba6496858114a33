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

PROMPT = "answer-v1"
MAX_TOKENS = 400
SUMMARY_CHARACTERS = 1_200
NOT_FOUND = "NOT FOUND"

_TAG = re.compile(r"<(?=\s{0,8}/?\s{0,8}(?:source|question))", re.IGNORECASE)
_CITATION = re.compile(r"\s?\[(\d{1,3}(?:\s{0,3},\s{0,3}\d{1,3}){0,20})\]")
_LINK = re.compile(r"\b[a-z][a-z0-9+.-]{1,15}://[^\s<>\"'`)\]}]{1,2000}|\bwww\.[^\s<>\"'`)\]}]{1,2000}", re.IGNORECASE)


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
    sources = [
        f'<source number="{number}">\n{_defused(hit.title)}\n{_defused(hit.summary[:SUMMARY_CHARACTERS])}\n</source>'
        for number, hit in enumerate(hits, 1)
    ]
    return "\n".join([*sources, f"<question>\n{_defused(question)}\n</question>"])


def checked(text: str, hits: Sequence[Hit]) -> tuple[str, list[int]] | None:
    """The answer without citations that resolve to nothing and without foreign links, and the numbers it cites; None where none is left."""
    cited: list[int] = []

    def keep(match: re.Match[str]) -> str:
        numbers = [number for number in map(int, match[1].split(",")) if 1 <= number <= len(hits)]
        cited.extend(number for number in numbers if number not in cited)
        return "".join(f" [{number}]" for number in numbers)

    known = {hit.url.casefold().rstrip("/") for hit in hits}
    text = _LINK.sub(lambda match: match[0] if match[0].casefold().rstrip("/.,;:") in known else "[link removed]", text)
    text = _CITATION.sub(keep, text).strip()
    return (text, cited) if cited and NOT_FOUND not in text else None


def _defused(text: str) -> str:
    return _TAG.sub("\u2039", text)


@cache
def _instructions() -> str:
    return (resources.files("starsearch.inference") / "prompts" / f"{PROMPT}.txt").read_text("utf-8").strip()
