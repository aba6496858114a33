"""A question and the digests found for it to an answer whose every citation is one of them, checked while it is written.

Sources are strangers' text: what speaks to a model is left out and the rest fenced on the way in. Of what comes back only citations of
given sources and those sources' own links are kept. An answer that cites nothing is no answer from the sources, and one that repeats
its instructions is none at all.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from importlib import resources

import openai

from starsearch.errors import DigestFailed
from starsearch.imperatives import without_commands
from starsearch.inference.client import Engine, translate, written
from starsearch.inference.gate import echoed
from starsearch.inference.prompts import chat
from starsearch.models import Hit, clean
from starsearch.untrusted import INVISIBLE, TERMINAL, defuse, fence, foreign_links, visible

PROMPT = "answer-v1"
MAX_TOKENS = 400
SUMMARY_CHARACTERS = 1_200
NOT_FOUND = "NOT FOUND"
LONGEST_CITATION = 210  # characters of the longest that _CITATION takes for one

Say = Callable[[str, list[int]], None]
_CITATION = re.compile(r"\s?\[(\d{1,3}(?:\s{0,3},\s{0,3}\d{1,3}){0,20})\]")
# Where a sentence and its citations are over, known by what follows. At white space, which no link holds, so that none is cut.
_END = re.compile(r"([.!?\u3002\uff01\uff1f][\"')\u201d]?(?:\s?\[[^\]\n]{0,60}\]){0,5}|(?=\n))\s{1,8}(?=[^\s\[])")


async def answer(engine: Engine, question: str, hits: Sequence[Hit], say: Say) -> tuple[str, list[int]] | None:
    """What the model says, checked, and the numbers it cites; None where it cites nothing or finds no answer in the sources.

    `say` gets every piece as soon as it is written and checked, and the numbers it cites; only None takes back what it got. Raises
    DigestFailed or EngineUnavailable, also after some of it was said.
    """
    checking = Checking(hits, say)
    try:
        async for text in _written(engine, request(question, hits)):
            checking.read(text)
    except openai.OpenAIError as error:
        raise translate(error) from error
    except (AttributeError, IndexError, TypeError, ValueError, RecursionError) as error:  # a 200 may hold anything, even a proxy's page
        raise DigestFailed("unreadable answer", repr(error)[:300]) from error
    return checking.finish()


async def _written(engine: Engine, asked: str) -> AsyncIterator[str]:
    """The model's words; asked in one turn where its chat template refuses two, which it says before it writes anything."""
    while True:
        messages = chat(_instructions(), asked, one_turn=engine.learned.one_turn)
        try:
            async for text in written(engine, messages, **engine.sampling(MAX_TOKENS)):
                yield text
            return
        except openai.BadRequestError as error:
            if not engine.learned.from_refusal(error, turns=len(messages), seed=False):
                raise


def checked(text: str, hits: Sequence[Hit]) -> tuple[str, list[int]] | None:
    """A whole answer without citations that resolve to nothing and without foreign links, and the numbers it cites; None where none is
    left."""
    checking = Checking(hits, lambda *_: None)
    checking.read(text)
    return checking.finish()


class Checking:
    """An answer on its way: `say` gets whole sentences, checked, and nothing before one of them cites a source."""

    def __init__(self, hits: Sequence[Hit], say: Say) -> None:
        self._hits = hits
        self._say = say
        self._unread = ""
        self._held = ""  # checked, but nothing has been cited yet, or the white space between what was said and what comes
        self._citing: list[int] = []  # in what is held
        self._said = ""
        self._cited: list[int] = []
        self._void = False

    def read(self, text: str) -> None:
        """The next characters of the answer, wherever the engine cut it."""
        self._unread = clean(self._unread + text)
        start = 0
        for end in _END.finditer(self._unread):
            if not _in_citation(self._unread[start : end.end(1)]):
                self._take(self._unread[start : end.end(1)])
                start = end.end(1)
        self._unread = self._unread[start:]

    def finish(self) -> tuple[str, list[int]] | None:
        """What was said in all, and the numbers it cites."""
        self._take(self._unread)
        return (self._said, self._cited) if self._cited and not self._void else None

    def _take(self, sentence: str) -> None:
        self._void = self._void or NOT_FOUND in sentence or bool(echoed(sentence, _instructions()))
        self._held += self._check(sentence)
        self._cited += [number for number in self._citing if number not in self._cited]
        ready = self._held.rstrip() if self._said else self._held.strip()
        if ready and self._cited and not self._void:
            self._said += ready
            self._say(ready, self._citing)
            self._held, self._citing = self._held[len(self._held.rstrip()) :], []

    def _check(self, text: str) -> str:
        text = INVISIBLE.sub("", TERMINAL.sub("", text))
        for link in sorted(foreign_links(text, [hit.url for hit in self._hits]), key=len, reverse=True):
            text = text.replace(link, "[link removed]")
        return _CITATION.sub(self._keep, text)

    def _keep(self, match: re.Match[str]) -> str:
        numbers = [number for number in map(int, match[1].split(",")) if 1 <= number <= len(self._hits)]
        self._citing += [number for number in dict.fromkeys(numbers) if number not in self._citing]
        return "".join(f" [{number}]" for number in numbers)


def _in_citation(text: str) -> bool:
    return text.rfind("[", -LONGEST_CITATION) > text.rfind("]")


def request(question: str, hits: Sequence[Hit]) -> str:
    """The sources, numbered from 1 and fenced, and the question after them."""
    texts = ["\n".join(map(without_commands, (hit.title, hit.summary[:SUMMARY_CHARACTERS]))) for hit in hits]
    sources = [_fenced("source", text, number=str(n)) for n, text in enumerate(texts, 1)]
    return "\n".join([*sources, _fenced("question", question)])


def _fenced(tag: str, text: str, **attributes: str) -> str:
    """Neither a source nor the question can close its own fence, or open the other's."""
    return fence(tag, defuse(visible(text), "source", "question"), **attributes)


@cache
def _instructions() -> str:
    return (resources.files("starsearch.inference") / "prompts" / f"{PROMPT}.txt").read_text("utf-8").strip()
