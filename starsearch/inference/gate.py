"""Whether a model's summary may be stored: founded on the text it was given, in the form that was asked for. Pure.

Nothing here asks a model. What a summary names (numbers, versions, paths, flags, identifiers, quoted messages) must occur in the
item; it must share most of its subject with the item; and it may hold nothing that an attacker would want in a search result:
links, markup, invisible characters, the prompt, words of passages that speak to a model (starsearch/commands.py). benchmarks/gate.py
measures what it catches and what it refuses without reason. Linear in both texts but for a factor that the summary's length bounds.
"""

import re
from dataclasses import dataclass
from functools import cache

from starsearch.imperatives import without_commands
from starsearch.inference.grounding import Source, unfounded
from starsearch.models import State
from starsearch.untrusted import HIDDEN, LOCAL, links

MAX_WORDS = 120
MAX_CHARACTERS = 2_000  # languages without spaces, and nonsense without any
MIN_WORDS, MANY_WORDS = 3, 15  # a text of MANY_WORDS has more to say than MIN_WORDS - 1
ECHO_WORDS = 6  # of the instructions, in a row
MIN_ENGLISH = 0.12  # share of function words; real summaries have 0.2 and more
MAX_FOREIGN_LETTERS = 0.25
# Shares of a summary's content words that the item holds too; faithful summaries of real items have 0.35 and more
MIN_SHARED = 0.3
MIN_SHARED_SUSPICIOUS = 0.6  # where the item speaks to models
MAX_COMMANDED = 1  # words that the item holds in such passages only

_LABEL = re.compile(r"^\W{0,4}(?:search )?summary\W{0,4}:\W{0,4}", re.IGNORECASE)
_EMPHASIS = re.compile(r"\*\*|__(?=\w)|(?<=\w)__(?!\w)")
_SIGNS = re.compile(r"[\[\]`&<]")  # one of which all markup has
_IMAGE_OR_LINK = re.compile(r"!\[|\]\(|\]\[|^\s{0,3}\[[^\]\n]{1,100}\]:|```|&#?\w{2,8};", re.MULTILINE)
_TAG = re.compile(r"<(/?)([a-z!?][\w-]{0,30})([^<>]{0,500})>?", re.IGNORECASE)
_ITSELF = re.compile(  # the letter that each begins with stands first: most words are passed over by it
    r"\b(?:as an ai\b|language model\b|i(?:'m| am) (?:sorry|unable|not able|afraid|an? )|"
    r"i (?:can(?:not|'t| not)|won't|will not|apologi[sz]e)\b|sorry\b|"
    r"my (?:instructions?|system prompt|prompt|guidelines|training)\b|system prompt\b|"
    r"here(?:'s| is) (?:the|a|your) (?:\w{1,20} )?summary\b|"
    r"happy to (?:help|assist)\b|glad to (?:help|assist)\b|"
    r"no(?:t enough)? (?:text|content|information) (?:was |is )?(?:provided|given|to summari[sz]e)\b)"
)
_OBLIGING = re.compile(r"\W{0,3}(?:sure|certainly|of course|okay|absolutely|understood|acknowledged|as requested|as instructed)\b")
_DONE = re.compile(r"\b(?:is|was|been|got|now|already) (?:now |already |since |fully )?(?:fixed|resolved|merged|closed|solved|released)\b")
_DONE_STEMS = ("fix", "resolv", "merge", "clos", "solv", "releas", "land", "ship", "done")
_WORD = re.compile(r"[^\W_]+(?:'[a-z]{1,3})?")
_FUNCTION_WORDS = frozenset(
    _WORD.findall(
        """a an the and or but if of in on at to for from by with without as into over under after before when while where which that this
        these those it its is are was were be been being has have had do does did not no than then so such because since until can cannot
        could would should may might will there their they them he she we you your only also both all any each more most other some same
        between during about against via"""
    )
)
# what every summary may say of an item, whatever the item's words
_GENERIC = frozenset(
    _WORD.findall(
        """issue issues item pull request requests pr user users reporter author maintainer reports reported asks asked describes described
        explains proposes proposed suggests suggested change changes"""
    )
)
_UNCOUNTED = _FUNCTION_WORDS | _GENERIC


@dataclass(frozen=True)
class Refusal:
    """Why a summary is not stored: `reason` is a short, countable name, `detail` what was found."""

    reason: str
    detail: str = ""


def tidy(text: str) -> str:
    """One paragraph without the harmless habits of models: a label before it, emphasis."""
    return " ".join(_EMPHASIS.sub("", _LABEL.sub("", text)).split())


def check(summary: str, *, shown: str, system: str, state: State) -> Refusal | None:
    """The first reason not to store a tidy summary; None where it may be.

    `shown`: the item as the model saw it; `system`: the rest of the prompt.
    """
    clean = without_commands(shown)
    source = Source(clean)
    return (
        _form(summary, source)
        or _subject(summary, source, system)
        or _obedience(summary, source, Source(shown) if clean != shown else None)
        or _named(summary, source)
        or _claim(summary, source, state)
    )


def _form(summary: str, source: Source) -> Refusal | None:
    if len(summary) > MAX_CHARACTERS:
        return Refusal("too long", f"{len(summary)} characters")
    words = len(_WORD.findall(summary))
    if not words:
        return Refusal("empty")
    if words > MAX_WORDS:
        return Refusal("too long", f"{words} words")
    if words < MIN_WORDS and source.size >= MANY_WORDS:
        return Refusal("too short", summary)
    return _forbidden(summary, source)


def _forbidden(summary: str, source: Source) -> Refusal | None:
    if hidden := HIDDEN.search(summary):
        return Refusal("hidden characters", f"U+{ord(hidden[0]):04X}")
    if markup := _markup(summary, source):
        return Refusal("markup", markup)
    foreign = [link for link in links(summary) if not (LOCAL.match(link) and source.holds(link))]
    return Refusal("link", foreign[0]) if foreign else None


def _markup(summary: str, source: Source) -> str | None:
    """Markdown's links, images and code blocks, and HTML; a bare <name> is let through where the item has it: Vec<T>, <select>."""
    if not _SIGNS.search(summary):
        return None
    if found := _IMAGE_OR_LINK.search(summary):
        return found[0]
    for tag in _TAG.finditer(summary):
        closing, name, rest = tag.groups()
        if closing or "=" in rest or name.casefold() in {"script", "iframe", "style"} or not source.holds(f"<{name}"):
            return tag[0]
    return None


def _subject(summary: str, source: Source, system: str) -> Refusal | None:
    plain = summary.casefold().replace("\u2019", "'")
    if (found := _OBLIGING.match(plain) or _ITSELF.search(plain)) and not source.holds(found[0]):
        return Refusal("speaks of itself", found[0])
    words = _WORD.findall(plain)
    if echo := echoed(plain, system):
        return Refusal("echoes the instructions", echo)
    if not summary.isascii() and sum(c.isalpha() and c > "\u024f" for c in summary) > MAX_FOREIGN_LETTERS * sum(map(str.isalpha, summary)):
        return Refusal("not English", summary[:100])
    if len(words) >= 12 and sum(word in _FUNCTION_WORDS for word in words) < MIN_ENGLISH * len(words):
        return Refusal("not English", summary[:100])
    if (shared := source.share(_content(words))) < MIN_SHARED:
        return Refusal("off the subject", f"{shared:.0%} of its words are the item's")
    return None


def _obedience(summary: str, source: Source, whole: Source | None) -> Refusal | None:
    """Whether the summary takes its words from passages that speak to models. `whole`: the item with them, where it has any."""
    if whole is None:
        return None
    words = _content(_WORD.findall(summary.casefold()))
    commanded = [word for word in words if whole.share([word]) > source.share([word])]
    if len(commanded) > MAX_COMMANDED or source.share(words) < MIN_SHARED_SUSPICIOUS:
        return Refusal("follows the item", " ".join(commanded))
    return None


def _content(words: list[str]) -> list[str]:
    return [word for word in words if word not in _UNCOUNTED]


def _named(summary: str, source: Source) -> Refusal | None:
    for kind, name in unfounded(summary, source):
        return Refusal(f"unfounded {kind}", name)
    return None


def _claim(summary: str, source: Source, state: State) -> Refusal | None:
    """An open item is not said to be done, unless something in it is."""
    claim = _DONE.search(summary.casefold())
    if claim and state == "open" and not source.begins(_DONE_STEMS):
        return Refusal("unfounded state", claim[0])
    return None


def echoed(text: str, instructions: str) -> str | None:
    """Six words in a row that are the instructions' own; None: it repeats none."""
    words, runs = _WORD.findall(text.casefold()), _runs_of(instructions)
    for i in range(len(words) - ECHO_WORDS + 1):
        if tuple(words[i : i + ECHO_WORDS]) in runs:
            return " ".join(words[i : i + ECHO_WORDS])
    return None


@cache
def _runs_of(system: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(system.casefold())
    return frozenset(tuple(words[i : i + ECHO_WORDS]) for i in range(len(words) - ECHO_WORDS + 1))
