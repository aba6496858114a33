"""What the gate catches and what it refuses without reason, on summaries of real items.

gate_summaries.jsonl holds a person's paraphrase of each of some real items of ../shared/data, by the item's address. From each,
summaries with one thing wrong are made: another version, number, issue, flag, path, quoted message, or an invented name.
Summaries marked held_out were written after the rules were fixed: figures by that name are from those.
"""

import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path

from benchmarks.measure import Figure
from starsearch.inference.gate import Refusal, check, tidy
from starsearch.inference.prompts import prompt_for
from starsearch.models import DueItem, Item, parse_item

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
SUMMARIES = Path(__file__).with_name("gate_summaries.jsonl")
CORRUPTED = 200

_NAMES = ["resolveQuorumLock", "flush_pending_frames", "HandshakeStallError", "parse_tree_cursor", "RetryBudgetExceeded", "syncShardMap"]
_SYLLABLES = ["ban", "cor", "dex", "fil", "gro", "hul", "jin", "kel", "lom", "mur", "nax", "pol", "quv", "rit", "sov", "tul", "vek", "wod"]
_NUMBER = re.compile(r"(?<![\w.#])\d{2,}(?![\w.]*\d)|(?<![\w.#])\d(?=[ ,%])")
_ISSUE = re.compile(r"#\d+")
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")
_FLAG = re.compile(r"(?<!\S)`?--[a-z][\w-]+")
_PATH = re.compile(r"[\w-]+(?=\.(?:js|json|py|yaml|go|rs|html)\b)")
_IDENTIFIER = re.compile(r"\b(?:[a-z]+[A-Z]\w+|[A-Z][a-z]+[A-Z]\w+|\w+_\w+)\b")
_QUOTE = re.compile(r"\"[^\"]{12,}\"")


def figures() -> list[Figure]:
    """Shares of 200 corrupted summaries caught, and of all faithful ones refused; over everything and over the held-out half."""
    items = read_items()
    if not items:
        return []
    faithful = {url: judge(items[url], summary) for url, summary in read_summaries().items()}
    corrupted = [(url, judge(items[url], wrong)) for url, _, wrong in corruptions()]
    new = held_out()
    new_corrupted = [refusal for url, refusal in corrupted if url in new]
    new_faithful = [refusal for url, refusal in faithful.items() if url in new]
    return [
        Figure("inference.gate.caught", share([refusal for _, refusal in corrupted]), f"of {len(corrupted)}", ">=", 0.95),
        Figure("inference.gate.caught_held_out", share(new_corrupted), f"of {len(new_corrupted)}", ">=", 0.95),
        Figure("inference.gate.refused", share(list(faithful.values())), f"of {len(faithful)}", "<=", 0.02),
        Figure("inference.gate.refused_held_out", share(new_faithful), f"of {len(new_faithful)}", "<=", 0.02),
    ]


def read_summaries() -> dict[str, str]:
    rows = [json.loads(line) for line in SUMMARIES.read_text("utf-8").splitlines()]
    return {row["url"]: row["summary"] for row in rows}


def read_items() -> dict[str, Item]:
    """The summarized items by address; none where ../shared/data is absent."""
    wanted = read_summaries().keys()
    found = {}
    for path in (SHARED_DATA / "sample.jsonl", SHARED_DATA / "items.jsonl.gz"):
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
                rows = (json.loads(line) for line in lines)
                found |= {row["url"]: parse_item(row) for row in rows if row["url"] in wanted}
    return found


def judge(item: Item, summary: str) -> Refusal | None:
    due = DueItem(1, item.type, item.state, item.title, item.body, item.digest_comments, b"", datetime(2026, 1, 1, tzinfo=UTC))
    prompt = prompt_for(due, context_tokens=None, again=True)
    return check(tidy(summary), shown=prompt.text, system=prompt.system, state=item.state)


def corruptions() -> list[tuple[str, str, str]]:
    """(url, kind, wrong summary), CORRUPTED of them, the same every time: kinds take turns."""
    made: dict[str, list[tuple[str, str, str]]] = {kind: [] for kind in _KINDS}
    for url, summary in read_summaries().items():
        for kind, corrupt in _KINDS.items():
            wrong = corrupt(summary, random.Random(f"{kind} {url}"))
            if wrong and wrong != summary:
                made[kind].append((url, kind, wrong))
    for kind, some in made.items():
        random.Random(kind).shuffle(some)
    turns = [wrong for turn in zip_longest(*made.values()) for wrong in turn if wrong]
    return turns[:CORRUPTED]


def held_out() -> set[str]:
    rows = [json.loads(line) for line in SUMMARIES.read_text("utf-8").splitlines()]
    return {row["url"] for row in rows if row.get("held_out")}


def share(refusals: list[Refusal | None]) -> float:
    return round(sum(refusal is not None for refusal in refusals) / len(refusals), 4)


def _replacing(pattern: re.Pattern[str], change: Callable[[str, random.Random], str]) -> Callable[[str, random.Random], str | None]:
    def corrupt(summary: str, chance: random.Random) -> str | None:
        found = list(pattern.finditer(summary))
        if not found:
            return None
        match = chance.choice(found)
        return summary[: match.start()] + change(match[0], chance) + summary[match.end() :]

    return corrupt


def _other_digit(text: str, chance: random.Random) -> str:
    place = chance.choice([i for i, c in enumerate(text) if c.isdigit()])
    return text[:place] + chance.choice([d for d in "123456789" if d != text[place]]) + text[place + 1 :]


def _other_word(text: str, chance: random.Random) -> str:
    """The name with another word in it, in its own manner of writing."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\W|_|\d+", text)
    places = [i for i, word in enumerate(words) if word.isalpha()]
    if not places:
        return text + "X"
    place = chance.choice(places)
    new = "".join(chance.sample(_SYLLABLES, 2))
    words[place] = new.capitalize() if words[place][0].isupper() else new
    return "".join(words)


def _invented(summary: str, chance: random.Random) -> str:
    name = chance.choice(_NAMES)
    version = f"{chance.randint(1, 9)}.{chance.randint(10, 30)}.{chance.randint(0, 9)}"
    sentence = [
        f" The cause is in {name}.",
        f" It was fixed in version {version}.",
        f" Setting --{chance.choice(_SYLLABLES)}-mode avoids it.",
    ]
    return summary + chance.choice(sentence)


_KINDS: dict[str, Callable[[str, random.Random], str | None]] = {
    "version": _replacing(_VERSION, _other_digit),
    "number": _replacing(_NUMBER, _other_digit),
    "issue": _replacing(_ISSUE, _other_digit),
    "identifier": _replacing(_IDENTIFIER, _other_word),
    "invented": _invented,
    "path": _replacing(_PATH, _other_word),
    "flag": _replacing(_FLAG, _other_word),
    "quote": _replacing(_QUOTE, _other_word),
}


def _report() -> Iterator[str]:
    items = read_items()
    caught: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for url, kind, wrong in corruptions():
        made[kind] += 1
        refusal = judge(items[url], wrong)
        caught[kind] += refusal is not None
        if refusal is None:
            yield f"missed {kind}: {url} {wrong}"
    for url, summary in read_summaries().items():
        if refusal := judge(items[url], summary):
            yield f"refused: {url} {refusal}"
    yield ", ".join(f"{kind} {caught[kind]} of {number}" for kind, number in made.items())


if __name__ == "__main__":
    print(*_report(), sep="\n")
    print(*figures(), sep="\n")
