"""What a summary names, and whether the item it summarizes holds that. Pure.

Names are told from prose by their shape: digits, dots, slashes, underscores, capitals inside a word, a leading dash, quotes. They
are compared without case, quotes and kinds of dashes; `GitHub Actions`, `github-actions` and `githubActions` are one name, `3.11`
is founded on `3.11.4`, and `3` on `three`.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

_STEM = 5  # letters by which "crashes", "crashed" and "crashing" are one word
_RUN = 4  # words of the item that may be one name in the summary
_QUOTES = str.maketrans("\u2018\u2019\u201a\u2032\u201c\u201d\u201e\u00ab\u00bb\u2010\u2011\u2012\u2013\u2014\u2212", '\'\'\'\'"""""------')
_MARKS = re.compile(r"[`*]")
_ALNUM = re.compile(r"[^\W_]+")
_WORDS = re.compile(r"\w+")  # twice as fast, for texts without underscores
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+")
_QUOTED = re.compile(r"`([^`\n]{1,300})`|\"([^\"\n]{1,400})\"|(?<!\w)'([^'\n]{2,300})'(?!\w)")
_ELLIPSIS = re.compile(r"\.{3}|\u2026|\[\u2026\]")
_EDGES = "\"'`.,;:!?()[]{}<>*\u2026"
_ISSUE = re.compile(r"(?:[\w.-]+/[\w.-]+)?(?:#|gh-)(\d+)", re.IGNORECASE)
_QUANTITY = re.compile(
    r"[~<>=$\u20ac\u00a3+-]*(\d+(?:[.,]\d+)*)(?:[-\u2010]?(?:[a-z%\u00b0]{1,3}|bits?|bytes?|fold|hours?|days?|core|node|line|way|year-old|digit)|[+x%])?",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"\w_\w|_\w|\w_$|[a-z][A-Z]|[A-Z]{2}[a-z]{2}|::|->|\(\)|[a-zA-Z]-?\d|\d[a-zA-Z]|[$@%\\=|&{}]|\w\.[a-zA-Z]\w|^\.[a-zA-Z]|^[A-Z]{5,}$|<\w"
)
_SHAPES = (
    ("number", re.compile(rf"^(?:{_ISSUE.pattern}|{_QUANTITY.pattern})$", re.IGNORECASE)),
    ("flag", re.compile(r"^-{1,2}[a-zA-Z][\w-]*")),
    ("version", re.compile(r"^(?:[v^~<>=]*\d+(?:\.\d+)+[\w.+-]*|[v^~<>=]+\d[\w.+-]*|\d+(?:\.\d+)*\.x)$", re.IGNORECASE)),
    ("path", re.compile(r"[/\\]")),
    ("identifier", _CODE),
    ("number", re.compile(r"^\d")),
)
_BETWEEN_PARTS = re.compile(r"[^\w#-]+|(?<=\w)-(?=\w)")
_CODE_BUT_WORDS = re.compile(r"[^\w\s-]|_")
_PROSE_SLASH = re.compile(r"[A-Za-z]+/[A-Za-z]+")
_ABBREVIATIONS = frozenset({"e.g", "i.e", "etc", "vs", "a.k.a", "w.r.t", "u.s"})
# names that say nothing about an item and need no support
_EVERYDAY = frozenset(
    re.findall(
        r"\S+",
        """github gitlab javascript typescript postgresql mysql sqlite macos ios nodejs graphql websocket websockets json yaml html https
        readme ascii i/o ci/cd and/or tcp/ip""",
    )
)
_ALIASES = {
    "js": "javascript",
    "ts": "typescript",
    "postgres": "postgresql",
    "k8s": "kubernetes",
    "osx": "macos",
    "darwin": "macos",
    "py": "python",
}
_SPELLED = {
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
}
_SPELLED |= {"ten": "10", "eleven": "11", "twelve": "12", "once": "1", "twice": "2", "double": "2"}


class Source:
    """A text, prepared to be asked what it holds."""

    def __init__(self, text: str) -> None:
        self.text = _plain(text)
        self._words = _WORDS.findall(self.text.replace("_", " "))
        self.size = len(self._words)

    def holds(self, name: str) -> bool:
        """Whether the name stands in the text, not as a part of a longer word."""
        wanted = _plain(name)
        if not wanted or wanted not in self.text:
            return False
        before = r"(?<![\w.])" if wanted[0].isdigit() else r"(?<!\w)" if _is_word(wanted[0]) else ""
        after = r"(?!\w|\.\d)" if wanted[-1].isdigit() else r"(?!\w)" if _is_word(wanted[-1]) else ""
        return bool(re.search(before + re.escape(wanted) + after, self.text))

    def says(self, quote: str) -> bool:
        """Whether the quote's words stand in the text in a row, whatever stands between them."""
        return f" {' '.join(_ALNUM.findall(_plain(quote)))} " in self._prose

    def spells(self, name: str) -> bool:
        """Whether the name's letters and digits stand in the text in a row, whatever stands between them."""
        letters = "".join(_ALNUM.findall(_plain(name)))
        return bool(letters) and (letters in self._aliases or self._runs(letters))

    def begins(self, stems: Sequence[str]) -> bool:
        return any(word.startswith(tuple(stems)) for word in self._words)

    def share(self, words: Sequence[str]) -> float:
        """The part of these words whose stems the text holds; 1 where there are none."""
        return sum(_stem(word) in self._stems for word in words) / len(words) if words else 1.0

    def counts(self, number: str) -> bool:
        """Whether the number stands in the text: alone, as the beginning of a version, or in words."""
        return _canonical(number) in self._numbers

    @cached_property
    def _prose(self) -> str:
        return f" {' '.join(self._words)} "

    def _runs(self, letters: str) -> bool:
        """Whether a few whole words in a row are these letters."""
        together, ends = self._together
        at = together.find(letters)
        while at >= 0:
            if at in ends and 0 < ends.get(at + len(letters), 0) - ends[at] <= _RUN:
                return True
            at = together.find(letters, at + 1)
        return False

    @cached_property
    def _together(self) -> tuple[str, dict[int, int]]:
        """All words without what is between them, and how many of them end at a place."""
        return "".join(self._words), {place: n for n, place in enumerate(accumulate(map(len, self._words), initial=0))}

    @cached_property
    def _aliases(self) -> frozenset[str]:
        return frozenset(_ALIASES[word] for word in self._words if word in _ALIASES)

    @cached_property
    def _stems(self) -> frozenset[str]:
        return frozenset(map(_stem, {*self._words, *self._aliases}))

    @cached_property
    def _numbers(self) -> frozenset[str]:
        found = {_SPELLED[word] for word in self._words if word in _SPELLED}
        for number in _NUMBER.findall(self.text):
            found.add(_canonical(number))
            parts = number.replace(",", ".").split(".")
            found.update(_canonical(".".join(parts[:n])) for n in range(1, len(parts)))
        return frozenset(found)


def unfounded(summary: str, source: Source) -> Iterator[tuple[str, str]]:
    """(kind, name) of what the summary names and the source does not hold."""
    for quoted in _QUOTED.finditer(summary):
        if not _quote_founded(next(filter(None, quoted.groups())), source):
            yield "quote", quoted[0]
    for token in summary.split():
        name = token.strip(_EDGES) if not token.startswith(".") else token.rstrip(_EDGES)
        kind = _kind(name, token)
        if kind and not _founded(kind, name, source):
            yield kind, name


def _kind(name: str, token: str) -> str | None:
    """What sort of name this is by its shape; None for prose."""
    if name.isalpha() and name[1:].islower() and "()" not in token:  # most words, at once
        return None
    if not name or name.casefold() in _ABBREVIATIONS:
        return None
    for kind, shape in _SHAPES:
        if shape.search(name):
            return "version" if kind == "number" and name.count(".") > 1 else kind
    return "identifier" if "()" in token else None


def _founded(kind: str, name: str, source: Source) -> bool:
    if kind == "number":
        return all(source.counts(number) for number in _NUMBER.findall(name))
    if source.holds(name):
        return True
    if kind == "version":
        return all(source.counts(number) for number in _NUMBER.findall(name)[:1]) and not _suffix(name)
    if kind == "flag":
        flag, _, value = name.partition("=")
        return source.holds(flag) and all(source.counts(number) for number in _NUMBER.findall(value))
    if kind == "path" and _PROSE_SLASH.fullmatch(name):
        return all(source.share([part.casefold()]) or part.casefold() in {"and", "or"} for part in name.split("/"))
    return _name_founded(name, source) and (kind != "path" or _file_founded(name, source))


def _file_founded(path: str, source: Source) -> bool:
    """The file of a path has to be the item's as a whole; folders and file name alone could be put together anew."""
    file = re.split(r"[/\\]", path)[-1]
    return "." not in file or source.holds(file) or source.spells(file)


def _name_founded(name: str, source: Source) -> bool:
    """An identifier or path: as it stands, in the other number, with other signs between its words, or part by part."""
    bare = name.removesuffix("()").removesuffix("'s").removesuffix("\u2019s")
    for form in (bare, bare.removesuffix("s"), bare.removesuffix("es"), f"{bare}s", f"{bare}es"):
        if form.casefold() in _EVERYDAY or source.holds(form) or source.spells(form):
            return True
    parts = [part for part in _BETWEEN_PARTS.split(bare) if part]
    compound = "-" in bare and not _CODE_BUT_WORDS.search(bare)  # IPv6-only, non-UTF8: what is prose in it needs no support
    return len(parts) > 1 and all(_part_founded(part, source) or (compound and part.isalpha() and part.islower()) for part in parts)


def _part_founded(part: str, source: Source) -> bool:
    if part.isdigit():
        return source.counts(part)
    return source.holds(part) or source.spells(part) or part.casefold() in _EVERYDAY


def _suffix(version: str) -> list[str]:
    """What stands behind the numbers, such as rc1; x and + say less than the item and need no support."""
    rest = re.sub(r"^\D*\d+(?:[.,]\d+)*", "", version.casefold())
    return [part for part in _ALNUM.findall(rest) if part not in {"x", "y", "z"}]


def _quote_founded(quote: str, source: Source) -> bool:
    parts = [part.strip(" .,;:!?") for part in _ELLIPSIS.split(quote)]
    return all(not part or source.holds(part) or source.says(part) or _name_founded(part, source) for part in parts)


def _plain(text: str) -> str:
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return " ".join(_MARKS.sub("", folded.casefold()).split())


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _stem(word: str) -> str:
    return word[:_STEM]


def _canonical(number: str) -> str:
    if _THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
    return number.lstrip("0") or "0"
