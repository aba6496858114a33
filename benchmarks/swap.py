"""Another embedding model under continuous search and ingest: built, swapped, a bad one refused, rolled back.

Real items and questions where ../shared/data is beside this checkout, else the bundled sample and its titles. Every command is a process of
its own, as a person would run it; the search that goes on is one finder that lives through all of it.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kill_and_resume import wait_for
from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.evaluate import read_questions
from starsearch.finder import Finder, open_finder
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.serving import open_live
from starsearch.settings import Settings
from starsearch.storage import Store, open_store

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLE = Path(__file__).resolve().parents[1] / "starsearch" / "embedded" / "sample.jsonl"
CHUNK = 8
COMMAND = [sys.executable, "-m", "starsearch.cli"]


@dataclass
class Watch:
    """What the search and the ingest that go on saw."""

    asked: Counter[str] = field(default_factory=Counter)  # by the version that answered
    failed: list[str] = field(default_factory=list)
    ingested: int = 0
    slowest_seconds: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)


def swap_under_load() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="starsearch-swap-"))
    folder.chmod(0o755)
    try:
        with _model_server() as url:
            return asyncio.run(_run(folder, url))
    finally:
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, url: str) -> list[Figure]:
    first, later, texts, questions = _data(folder)
    settings = Settings(_env_file=None, home=folder)
    async with open_store(settings) as store:
        await asyncio.to_thread(_starsearch, folder, "ingest", str(first))
        watch = Watch()
        async with open_finder(settings) as finder:
            going_on = [
                asyncio.create_task(_search(finder, texts, watch)),
                asyncio.create_task(_ingest(settings, store, later, watch)),
            ]
            told = await asyncio.to_thread(_swaps, folder, url, questions)
            watch.stop.set()
            await asyncio.gather(*going_on)
        missing = await _missing(store)
    _print(told, watch)
    recall = [told["swap"][which]["recall_at_10"]["vector"] for which in ("before", "after")]
    return [
        Figure("store.swap.failed_queries", len(watch.failed), f"of {watch.asked.total():,}", "==", 0),
        Figure("store.swap.missing_items", missing, f"of {watch.ingested:,} ingested meanwhile", "==", 0),
        Figure("store.swap.recall_at_10_lost", round(recall[0] - recall[1], 3), f"from {recall[0]:.2f} by vectors", "<=", 0.05),
        Figure("store.swap.bad_models_refused", told["refused"], "of 1", "==", 1),
        Figure("store.swap.rolled_back", told["rolled_back"], "of 1", "==", 1),
    ]


def _swaps(folder: Path, url: str, questions: list[str]) -> dict[str, Any]:
    """The commands, one after the other."""
    other = {"STARSEARCH_EMBEDDING_BASE_URL": url, "STARSEARCH_EMBEDDING_MODEL": "minilm-256"}
    bad = other | {"STARSEARCH_EMBEDDING_MODEL": "random-384"}
    serving = _versions(folder)[0]["version"]
    told = json.loads(_starsearch(folder, "reprocess", "--activate", "--json", *questions, **other).stdout)
    told["bad"] = json.loads(_starsearch(folder, "reprocess", "--json", **bad).stdout)
    refusal = _starsearch(folder, "versions", "activate", *questions, check=False)
    told["refusal"] = refusal.stderr.strip()
    told["refused"] = int(refusal.returncode == 1 and _versions(folder)[0]["version"] == told["index_version"])
    _starsearch(folder, "versions", "rollback")
    told["rolled_back"] = int(_versions(folder)[0]["version"] == serving)
    return told


async def _search(finder: Finder, texts: list[str], watch: Watch) -> None:
    """One question after the other. No hit at all is a failure too: something is always stored."""
    number = 0
    while not watch.stop.is_set():
        started = time.monotonic()
        try:
            hits = (await finder.find(texts[number % len(texts)], mode=("hybrid", "vector")[number % 2])).hits
            if not hits:
                watch.failed.append("no hits")
        except Exception as error:
            watch.failed.append(repr(error))
        watch.asked[finder.version.short] += 1
        watch.slowest_seconds = max(watch.slowest_seconds, time.monotonic() - started)
        number += 1
        await asyncio.sleep(0.05)


async def _ingest(settings: Settings, store: Store, later: list[Path], watch: Watch) -> None:
    """A few items at a time, as a crawl would, to the end of them or of the swaps, whichever is last."""
    for path in later:
        async with recorded_run(store, "ingest") as run:
            await ingest(store, read_items(path), run)
            async with open_live(settings, store) as live:
                await digest(store, live[0], run, beside=live[1:])
        watch.ingested += run.counts.inserted
        if not watch.stop.is_set():
            await asyncio.sleep(1)


async def _missing(store: Store) -> int:
    """Stored items that the active version, or any other live one of real models, has no current digest of."""
    async with store.pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT count(*) FROM item_state s JOIN index_version v ON v.id = s.version_id "
            "WHERE v.embedding_model <> 'random-384' AND s.state <> 'digested'"
        )
        row = await cursor.fetchone()
    return int(row[0]) if row else -1


def _data(folder: Path) -> tuple[Path, list[Path], list[str], list[str]]:
    """(file to begin with, files that come later, questions to ask, arguments for the gate)."""
    real = (SHARED / "sample.jsonl").exists()
    lines = (SHARED / "sample.jsonl" if real else SAMPLE).read_text("utf-8").splitlines()
    questions = read_questions(SHARED / "sample_questions.jsonl") if real else []
    right = {url for question in questions for url in question.right}
    lines.sort(key=lambda line: json.loads(line)["url"] not in right)  # what is asked for is there from the beginning
    begin = len(lines) * 2 // 3
    first = folder / "first.jsonl"
    first.write_text("\n".join(lines[:begin]) + "\n")
    later = []
    for start in range(begin, len(lines), CHUNK):
        later.append(folder / f"later-{start}.jsonl")
        later[-1].write_text("\n".join(lines[start : start + CHUNK]) + "\n")
    texts = [question.text for question in questions] or [json.loads(line)["title"] for line in lines[:begin]]
    return first, later, texts, ["--questions", str(SHARED / "sample_questions.jsonl")] if real else []


def _starsearch(folder: Path, *arguments: str, check: bool = True, **settings: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STARSEARCH_")}
    environment = clean | {"STARSEARCH_HOME": str(folder)} | settings
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=check)


def _versions(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_starsearch(folder, "versions", "list", "--json").stdout)
    return found


@contextmanager
def _model_server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "tests.model_server", str(port)], cwd=Path(__file__).resolve().parents[1])
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()


def _print(told: dict[str, Any], watch: Watch) -> None:
    for which in ("before", "after"):
        print(
            which,
            json.dumps({name: told["swap"][which][name] for name in ("name", "recall_at_10", "recall_at_1", "ann_recall", "missing")}),
        )
    print(f"{told['llm_requests']} chat requests for {told['embedded']} new vectors; bad model: {told['refusal']}")
    print(f"questions by version {dict(watch.asked)}, slowest {watch.slowest_seconds:.2f} s, failures {watch.failed[:3]}")
