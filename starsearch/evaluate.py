"""How often search finds the right item: questions with the right URL to recall@1, recall@10 and MRR per mode."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starsearch.errors import StarsearchError
from starsearch.finder import Finder
from starsearch.store.words import MODES, Mode

DEPTH = 100  # a right item below this rank counts as not found


@dataclass(frozen=True)
class Question:
    text: str
    right: frozenset[str]


def read_questions(path: Path) -> list[Question]:
    """JSON Lines of {question, url, also_ok?: [url]}; raises StarsearchError naming the bad line."""
    questions = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise StarsearchError(f"{path.name}:{number}: expected an object with question and url: {error!r}") from error
    if not questions:
        raise StarsearchError(f"{path.name} holds no questions")
    return questions


def _question(row: dict[str, Any]) -> Question:
    also_ok = row.get("also_ok") or []
    texts = [row["question"], row["url"], *also_ok]
    if not isinstance(also_ok, list) or not all(isinstance(text, str) for text in texts):
        raise TypeError("question and url are texts, also_ok is a list of them")
    return Question(texts[0], frozenset(texts[1:]))


async def evaluate(
    finder: Finder, questions: Sequence[Question], progress: Callable[[int], None] = lambda _: None, *, modes: Sequence[Mode] = MODES
) -> dict[str, Any]:
    """{questions, modes: {mode: {recall_at_1, recall_at_10, mrr}}}; mrr is over the first 100 hits."""
    ranks: dict[str, list[int | None]] = {mode: [] for mode in modes}
    for done, question in enumerate(questions, 1):
        for mode in modes:
            found = await finder.find(question.text, mode=mode, limit=DEPTH)
            ranks[mode].append(next((rank for rank, hit in enumerate(found.hits, 1) if hit.url in question.right), None))
        progress(done)
    return {"questions": len(questions), "modes": {mode: measures(found) for mode, found in ranks.items()}}


def measures(ranks: Sequence[int | None]) -> dict[str, float]:
    """ranks: of the first right hit of each question, from 1; None where there was none."""
    found = [rank for rank in ranks if rank]
    return {
        "recall_at_1": round(sum(rank == 1 for rank in found) / len(ranks), 4),
        "recall_at_10": round(sum(rank <= 10 for rank in found) / len(ranks), 4),
        "mrr": round(sum(1 / rank for rank in found) / len(ranks), 4),
    }
