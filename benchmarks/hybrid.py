"""Hybrid search over the real items beside this checkout: how often the right one of 25,090 is among the first ten.

The database is filled once (six minutes on two idle cores), in build/bench or the folder STARSEARCH_BENCH_HOME names, and kept. The
interval is a paired bootstrap over the questions against the better single mode.
"""

import asyncio
from pathlib import Path

import numpy as np

from benchmarks.measure import Figure
from benchmarks.store_search import HOME
from starsearch.engines import open_engines
from starsearch.evaluate import Question, read_questions
from starsearch.finder import Finder, open_finder
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.words import MODES, Mode

DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
FILES = ("items.jsonl.gz", "sample.jsonl")
RESAMPLES = 10_000


def recall_at_10() -> list[Figure]:
    """Recall of hybrid search, and its gain over the better of its legs."""
    if (settings := filled()) is None:
        return []
    found = asyncio.run(_measure(settings))
    best = max(("vector", "text"), key=lambda mode: found[mode].mean())
    gain = found["hybrid"] - found[best]
    samples = np.random.default_rng(1).integers(len(gain), size=(RESAMPLES, len(gain)))
    low, high = np.percentile(gain[samples].mean(axis=1), (2.5, 97.5))
    return [
        Figure("store.hybrid.recall_at_10", round(float(found["hybrid"].mean()), 3), "of 66 questions", ">=", 0.66),
        Figure("store.hybrid.gain", round(float(gain.mean()), 3), f"over {best} (95 %: {low:.3f} to {high:.3f})", ">=", 0.0),
    ]


def filled() -> Settings | None:
    """Of a database that holds the real items, digested; None where they are not there: they are not part of the project."""
    if not DATA.exists():
        print(f"no real items at {DATA}")
        return None
    folder = HOME / "real"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # root's server, which runs as another user, can reach it
    settings = Settings(_env_file=None, home=folder)
    asyncio.run(_fill(settings))
    return settings


async def _fill(settings: Settings) -> None:
    """What is there already is not digested again."""
    async with open_store(settings) as store, recorded_run(store, "ingest") as run:
        for name in FILES:
            await ingest(store, read_items(DATA / name), run)
        async with open_engines(settings) as engines:
            await digest(store, engines, run, workers=settings.workers, concurrency=settings.concurrency)


async def _measure(settings: Settings) -> dict[str, np.ndarray]:
    questions = read_questions(DATA / "sample_questions.jsonl")
    async with open_finder(settings) as finder:
        return {mode: np.array([await _finds(finder, question, mode) for question in questions], float) for mode in MODES}


async def _finds(finder: Finder, question: Question, mode: Mode) -> bool:
    found = await finder.find(question.text, mode=mode, limit=10)
    return any(hit.url in question.right for hit in found.hits)
