"""Strangers' text as a page shows it: escaped, isolated, links to http(s) only, the words of the question marked."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from markupsafe import Markup, escape

from starsearch.models import Hit
from starsearch.untrusted import INVISIBLE, TERMINAL

GIST = 200  # characters: two lines of a desktop's width
_WORD = re.compile(r"\w{2,}")
_SENTENCE = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")
_ENDINGS = re.compile(r"(?:ing|edly|ed|ies|es|s|ly|e|y)$")
_CITATION = re.compile(r"\[(\d{1,3})\]")
_FENCE = re.compile(r"^[ \t]*```[^\n`]{0,100}$", re.MULTILINE)
_COMMON = re.compile(
    "the|and|for|with|that|this|from|are|was|were|not|can|has|have|how|why|what|when|does|into|after|before|by|at|or|if|but|its|of|to|in|on|is|it|an?"
)


def shown(text: str) -> str:
    """Without terminal sequences, invisible and bidirectional characters: they show nothing, or something else than what is there."""
    return INVISIBLE.sub("", TERMINAL.sub("", text))


def safe_link(url: str | None) -> str | None:
    """The address where it leads to a web page; None for anything else, such as javascript:."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    return url if parts.scheme in {"http", "https"} and parts.hostname else None


def words_of(question: str) -> list[str]:
    """The stems that are looked for in a hit, to mark them: an approximation of what PostgreSQL's stemmer does."""
    words = [word for word in _WORD.findall(question.casefold()) if not _COMMON.fullmatch(word)]
    return list(dict.fromkeys(_stem(word) for word in words))


def _stem(word: str) -> str:
    return (_ENDINGS.sub("", word) if len(word) > 4 else word) or word


def marked(text: str, stems: Sequence[str]) -> Markup:
    """The escaped text with every word of the question in <mark>."""
    text, parts, at = shown(text), [], 0
    for match in _WORD.finditer(text):
        if _stem(match[0].casefold()) in stems:
            parts += [escape(text[at : match.start()]), Markup("<mark>"), escape(match[0]), Markup("</mark>")]
            at = match.end()
    return Markup("").join([*parts, escape(text[at:])])


def gist(summary: str, stems: Sequence[str]) -> str:
    """The two lines of a summary that say most about why it was found: its best sentence first, then what follows."""
    text = shown(" ".join(summary.replace("`", "").replace("**", "").split()))
    if len(text) <= GIST:
        return text
    sentences = _SENTENCE.split(text)
    scores = [len({_stem(word) for word in _WORD.findall(s.casefold())} & set(stems)) for s in sentences]
    start = scores.index(max(scores))
    picked = ("… " if start else "") + " ".join(sentences[start:])
    return picked if len(picked) <= GIST else picked[:GIST].rsplit(" ", 1)[0].rstrip(",;:.") + " …"


@dataclass(frozen=True)
class ShownHit:
    """A hit, and why it was found."""

    hit: Hit
    stems: Sequence[str]

    @property
    def title(self) -> Markup:
        return marked(self.hit.title or "(no title)", self.stems)

    @property
    def gist(self) -> Markup:
        return marked(gist(self.hit.summary, self.stems), self.stems)

    @property
    def page(self) -> str:
        return item_page(self.hit.repo, self.hit.number)

    @property
    def link(self) -> str | None:
        return safe_link(self.hit.url)

    @cached_property
    def why(self) -> str:
        """In words: how close in meaning, and which of the question's words it holds."""
        text = f"{self.hit.title} {self.hit.summary}".casefold()
        held: dict[str, str] = {}
        for word in _WORD.findall(text):
            if _stem(word) in self.stems:
                held.setdefault(_stem(word), word)
        found = list(held.values())[:5]
        parts = []
        if self.hit.scores.get("vector") is not None:
            parts.append(f"meaning {self.hit.scores['vector']:.2f}")
        if found:
            parts.append(f"words: {', '.join(found)}")
        elif self.hit.scores.get("text"):
            parts.append("words in its text")
        return " · ".join(parts)


def cited(text: str, citations: Mapping[int, Hit]) -> Markup:
    """An answer, each [n] that stands for one of its citations a link to that digest."""
    parts = []
    for n, part in enumerate(_CITATION.split(shown(text))):
        hit = citations.get(int(part)) if n % 2 else None
        if hit:
            parts.append(Markup('<a class="cite" href="{}">[{}]</a>').format(item_page(hit.repo, hit.number), part))
        else:
            parts.append(escape(f"[{part}]" if n % 2 else part))
    return Markup("").join(parts)


def passages(text: str) -> list[tuple[bool, str]]:
    """The text cut at its code fences: (whether it is code, the lines without the fence)."""
    parts = _FENCE.split(text)
    return [(i % 2 == 1, part.strip("\n")) for i, part in enumerate(parts) if part.strip()]


def item_page(repo: str, number: int) -> str:
    return f"/items/{quote(repo)}/{number}"


def with_parameters(path: str, parameters: dict[str, Any]) -> str:
    kept = {name: value for name, value in parameters.items() if value not in {None, ""}}
    return f"{path}?{urlencode(kept)}" if kept else path


def ago(moment: datetime | None) -> str:
    return "" if moment is None else duration((datetime.now(UTC) - moment).total_seconds()) + " ago"


def duration(seconds: float) -> str:
    for unit, size in (("year", 31_557_600), ("month", 2_629_800), ("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            n = int(seconds // size)
            return f"{n} {unit}{'s' if n > 1 else ''}"
    return f"{max(int(seconds), 0)} seconds"


def shown_hits(hits: Iterable[Hit], question: str) -> list[ShownHit]:
    stems = words_of(question)
    return [ShownHit(hit, stems) for hit in hits]
