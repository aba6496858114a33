"""Index versions side by side: how much each holds, how often it finds the right item, how well its index finds the nearest."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starsearch.engines import Engines
from starsearch.evaluate import Question, evaluate, read_questions
from starsearch.finder import Finder
from starsearch.inference.embed import embed
from starsearch.models import IndexVersion
from starsearch.recall import found_of
from starsearch.serving import open_live
from starsearch.settings import Settings
from starsearch.storage import Store
from starsearch.store.nearest import NO_FILTERS
from starsearch.store.recall import exact_similarities, sample_titles
from starsearch.store.search import search
from starsearch.store.swap import missing
from starsearch.store.versions import has_index
from starsearch.store.words import Mode

MODES: tuple[Mode, ...] = ("hybrid", "vector")  # words alone are the same in every version
TITLES = 100  # asked where there is no question file
EXACT = 50  # questions whose nearest vectors are also found by looking at every one
DEPTH = 10


@dataclass(frozen=True)
class Questions:
    """source: a file's name, or `titles`: each item's own title, which says whether a model means anything, and not how much."""

    source: str
    asked: list[Question]


@dataclass(frozen=True)
class Measured:
    """One version. `missing`: what search would lose beside the version that serves, by reason.

    recall_at_10, recall_at_1: by mode. `ann_recall`: the share of the exact ten nearest that search's own way finds.
    """

    version: IndexVersion
    missing: dict[str, int]
    indexed: bool
    recall_at_10: dict[str, float]
    recall_at_1: dict[str, float]
    ann_recall: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"version": self.version.short, "name": self.version.name, "serves": self.version.status == "active"}


async def choose_questions(store: Store, path: Path | None) -> Questions:
    """From a file, else the titles of stored items."""
    if path:
        return Questions(path.name, read_questions(path))
    return Questions("titles", [Question(title, frozenset([url])) for title, url in await sample_titles(store.pool, TITLES)])


async def measure(settings: Settings, store: Store, engines: Engines, serving: IndexVersion, questions: Questions) -> Measured:
    """Ask one version every question."""
    version = engines.version
    async with AsyncExitStack() as stack:
        finder = Finder(store.pool, settings, version, stack, pinned=True)
        modes = (await evaluate(finder, questions.asked, modes=MODES))["modes"]
    return Measured(
        version=version,
        missing=await missing(store.pool, version, serving),
        indexed=await has_index(store.pool, version),
        recall_at_10={mode: found["recall_at_10"] for mode, found in modes.items()},
        recall_at_1={mode: found["recall_at_1"] for mode, found in modes.items()},
        ann_recall=await _ann_recall(store, engines, questions.asked[:EXACT]),
    )


async def compare(settings: Settings, store: Store, path: Path | None) -> dict[str, Any]:
    """{questions, asked, versions: [as in Measured]}: every version whose engines answer, the one that serves first."""
    questions = await choose_questions(store, path)
    async with open_live(settings, store) as live:
        serving = live[0].version
        measured = [await measure(settings, store, engines, serving, questions) for engines in live]
    return {"questions": questions.source, "asked": len(questions.asked), "versions": [each.as_dict() for each in measured]}


async def _ann_recall(store: Store, engines: Engines, questions: Sequence[Question]) -> float:
    vectors, _ = await embed(engines.embedding, [question.text for question in questions], dimensions=engines.dimensions)
    found = expected = 0
    for question, vector in zip(questions, vectors, strict=True):
        exact = await exact_similarities(store.pool, engines.version, vector, NO_FILTERS, limit=DEPTH)
        if exact:
            hits = (await search(store.pool, engines.version, question.text, vector, mode="vector", limit=DEPTH)).hits
            found += found_of(hits, exact)
            expected += len(exact)
    return round(found / expected, 4) if expected else 1.0
