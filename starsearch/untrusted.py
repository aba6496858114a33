"""Strangers' text on its way to a model and back: what a reader cannot see is removed, what closes a fence is defused, links are found.

Used by the prompt, the gate, the extractive summarizer and `ask`, by terminals and logs; imperatives.py finds sentences that speak to a
model. Pure. Every function takes time linear in the text: no repetition is unbounded where another could begin inside it.
"""

import re
from collections.abc import Iterable

# zero-width, bidirectional and invisible: soft hyphen, joiners, marks, fillers, tag characters (which can spell whole sentences)
_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\U000e0000-\U000e0fff"
)
_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
INVISIBLE = re.compile(f"[{_INVISIBLE}]")
TERMINAL = re.compile(rf"(?:\x1b\[|\x9b)[0-?]{{0,30}}[ -/]{{0,5}}[@-~]|\x1b\][^\x07\x1b]{{0,500}}(?:\x07|\x1b\\)|[{_CONTROL}]")
HIDDEN = re.compile(f"[{_INVISIBLE}{_CONTROL}]")  # with which both begin
OBEYED = re.compile(f"[{_CONTROL}\u200e\u200f\u202a-\u202e\u2066-\u2069]")
LINK = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,15}://[^\s<>\"'`)\]}|\\]{1,2000}"
    r"|\bwww\.[^\s<>\"'`)\]}|\\]{1,2000}"
    r"|(?<![\w:/.])//[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63}){1,8}[^\s<>\"'`)\]}|\\]{0,2000}"
    r"|\b(?:mailto|javascript|vbscript|data):[^\s<>\"'`)\]}|\\]{2,2000}",
    re.IGNORECASE,
)
LOCAL = re.compile(r"[a-z+]{2,10}://(?:localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|0\.0\.0\.0|\[::1\]?)(?=[:/]|$)", re.IGNORECASE)
_PUNCTUATION = ".,;:!?'\"*_"


def visible(text: str) -> str:
    """The text as a reader of the rendered page sees it: without HTML comments, terminal sequences and invisible characters."""
    text = _without_comments(text)
    return INVISIBLE.sub("", TERMINAL.sub("", text)) if HIDDEN.search(text) else text


def safe(text: str) -> str:
    """The text as a terminal may print it: what it would obey, or show in another order, is U+FFFD. Line ends stay."""
    return OBEYED.sub("\ufffd", text)


def fence(tag: str, text: str, **attributes: str) -> str:
    """The text between <tag> and </tag>, which nothing in it can close: a forged one is defused, not removed, for a text may be
    about one."""
    opening = " ".join([tag, *(f'{name}="{value}"' for name, value in attributes.items())])
    return f"<{opening}>\n{defuse(text, tag)}\n</{tag}>"


def defuse(text: str, *tags: str) -> str:
    pattern = re.compile(rf"[<\uff1c](?=\s{{0,8}}[/\uff0f]?\s{{0,8}}(?:{'|'.join(map(re.escape, tags))}))", re.IGNORECASE)
    return pattern.sub("\u2039", text)


def links(text: str) -> list[str]:
    """Every address in the text, as written, closing punctuation left out."""
    if ":" not in text and "//" not in text and "www." not in text.lower():
        return []  # most summaries, at once
    return [match[0].rstrip(_PUNCTUATION) for match in LINK.finditer(text)]


def foreign_links(answer: str, allowed: Iterable[str]) -> list[str]:
    """The answer's links that are not exactly one of the allowed addresses, upper and lower case alike, a closing slash aside."""
    known = {link.casefold().rstrip("/") for link in allowed}
    return [link for link in links(answer) if link.casefold().rstrip("/") not in known]


def without_links(text: str) -> str:
    """Addresses of other machines replaced; those of this one (localhost) say what failed and lead nowhere."""
    return LINK.sub(lambda match: match[0] if LOCAL.match(match[0]) else "[link]", text)


def _without_comments(text: str) -> str:
    head, *pieces = text.split("<!--")
    kept = [head]
    for piece in pieces:
        _, closed, rest = piece.partition("-->")
        kept.append(rest if closed else "<!--" + piece)
    return "".join(kept)
