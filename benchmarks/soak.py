"""A long run: make soak [ITEMS=1000000]. One process stores and digests round after round, another answers questions all the while.

Each round brings 5,000 items: nine tenths are new, one tenth are earlier ones that changed. Texts are the real items' where ../shared/data
holds them, over and over under other titles; else one invented text. The engine is a process that answers at once, PostgreSQL the embedded
one. After each round: memory and open files of both processes, connections, size of the database, and how long a question took.

Writes build/soak.json and build/soak.svg round by round; exit code 1 where something grows, fails or is not complete.
"""

import asyncio
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import psutil

from benchmarks.inference_overhead import TEXT, environment_of, open_engine, settings_of
from benchmarks.live import database_in
from benchmarks.measure import ask
from benchmarks.plots import small_plots
from starsearch.audit import read_status
from starsearch.engines import open_engines
from starsearch.jsonl import read_chunks
from starsearch.models import Chunk, Item, parse_item
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.versions import ensure_version
from tests.processes import exit_on_sigterm, free_port, running

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT / ".." / "shared" / "data" / "items.jsonl.gz"
ROUND, CHUNK, CHANGED, REPOSITORIES = 5_000, 500, 10, 1_000  # every tenth item of a round is an earlier one that changed
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ASK_SECONDS = 1.0
WARM = 0.2  # of the rounds: caches fill, and the first plans are made
ENOUGH = 10  # rounds
GROWTH = 1.1  # the last tenth of the rounds beside the first tenth after those
WATCHED = {  # the most of a tenth; the fewest connections, since a pool that renews its own holds one more for ten minutes
    "runner_mb": max,
    "runner_files": max,
    "server_mb": max,
    "server_files": max,
    "connections": min,
}
SIZE, CONNECTIONS = (
    "SELECT pg_database_size(current_database())",
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'",
)


@dataclass(frozen=True)
class Round:
    """What one round left behind. search_ms: median of the questions asked during it."""

    digested: int
    seconds: float
    runner_cpu: float
    runner_mb: float
    runner_files: int
    server_mb: float
    server_files: int
    connections: int
    database_mb: float
    search_ms: float
    searches: int
    failed: int


@dataclass
class Asked:
    """Questions since somebody last looked."""

    milliseconds: list[float]
    failed: int = 0

    def take(self) -> tuple[float, int, int]:
        taken, failed = self.milliseconds, self.failed
        self.milliseconds, self.failed = [], 0
        return (round(statistics.median(taken), 1) if taken else 0.0), len(taken), failed


def main(items: int = 1_000_000) -> int:
    exit_on_sigterm()
    print(f"texts: {'of the real items' if REAL.exists() else 'one, over and over: ../shared/data is not there'}", flush=True)
    with open_engine(titles=True) as settings, database_in(settings.home) as dsn:
        asyncio.run(_prepare(settings))
        rounds = [*_rounds(settings, dsn, items)]
        complete = asyncio.run(_complete(settings))
    told = verdicts(rounds) | {"complete": complete, f"{rounds[-1].digested:,} of {items:,} digested": rounds[-1].digested == items}
    for what, holds in told.items():
        print(f"{'holds ' if holds else 'MISSED'} {what}")
    return 0 if all(told.values()) else 1


async def _prepare(settings: Settings) -> None:
    async with open_store(settings) as store, open_engines(settings) as engines:
        await ensure_version(store.pool, engines.version)


async def _complete(settings: Settings) -> bool:
    async with open_store(settings) as store:
        return (await read_status(store.pool)).complete


def _rounds(settings: Settings, dsn: str, items: int) -> Iterator[Round]:
    command = [sys.executable, "-m", "benchmarks.soak", "runner", str(settings.home), str(settings.llm_base_url), str(items)]
    passed: list[Round] = []
    with _serving(settings) as (url, server), _asking(url) as asked, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        try:
            for line in runner.stdout:
                search_ms, searches, failed = asked.take()
                passed.append(
                    Round(
                        **json.loads(line),
                        server_mb=_megabytes(server),
                        server_files=server.num_fds(),
                        connections=ask(dsn, CONNECTIONS),
                        database_mb=round(ask(dsn, SIZE) / 2**20, 1),
                        search_ms=search_ms,
                        searches=searches,
                        failed=failed,
                    )
                )
                print(_line(passed[-1]), flush=True)
                _save(passed)
                yield passed[-1]
        finally:
            runner.terminate()


@contextmanager
def _serving(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    port = free_port()
    command = [sys.executable, "-m", "starsearch.cli", "serve", "--port", str(port)]
    with (settings.home / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment_of(settings), stdout=log, stderr=log)
        with running(process, f"http://127.0.0.1:{port}/healthz"):
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)


@contextmanager
def _asking(url: str) -> Iterator[Asked]:
    """One question after another, a second between them."""
    asked, over = Asked([]), threading.Event()

    def go_on() -> None:
        with httpx2.Client(base_url=url, timeout=60) as client:
            for number in itertools.count():
                began = time.perf_counter()
                try:
                    client.get("/v1/search", params={"q": f"an error when it parses report {number}"}).raise_for_status()
                    asked.milliseconds.append((time.perf_counter() - began) * 1_000)
                except httpx2.HTTPError as error:
                    print(f"a question failed: {error!r}", file=sys.stderr, flush=True)
                    asked.failed += 1
                if over.wait(ASK_SECONDS):
                    return

    asking = threading.Thread(target=go_on)
    asking.start()
    try:
        yield asked
    finally:
        over.set()
        asking.join()


async def _run(settings: Settings, items: int) -> None:
    """The process whose memory counts: a line of JSON after each round."""
    process, texts = psutil.Process(), itertools.cycle(_texts())
    async with open_store(settings) as store, open_engines(settings) as engines:
        for first in range(0, items, ROUND):
            began, cpu = time.monotonic(), time.process_time()
            numbers = range(first, min(first + ROUND, items))
            async with recorded_run(store, "ingest") as run:
                await ingest(store, _source(numbers, texts), run)
                await digest(store, engines, run, workers=settings.workers, concurrency=settings.concurrency)
            if run.counts.dead_letters or run.counts.embedded != len(numbers):
                raise AssertionError(f"{run.counts} is not a clean round")
            told = {
                "digested": numbers.stop,
                "seconds": round(time.monotonic() - began, 1),
                "runner_cpu": round(time.process_time() - cpu, 1),
                "runner_mb": _megabytes(process),
                "runner_files": process.num_fds(),
            }
            print(json.dumps(told), flush=True)


async def _source(numbers: range, texts: Iterator[Item]) -> AsyncIterator[Chunk]:
    for start in range(numbers.start, numbers.stop, CHUNK):
        yield Chunk(tuple(_item(number, next(texts)) for number in range(start, min(start + CHUNK, numbers.stop))))


def _item(number: int, text: Item) -> Item:
    """Every tenth is an earlier one that changed: of ten rounds ago, so never in one round with what it changes."""
    earlier = number - 1 - 10 * ROUND
    place = earlier if number % CHANGED == 0 and earlier > 0 else number
    repository, position = f"soak/r{place % REPOSITORIES}", place // REPOSITORIES + 1
    return text.model_copy(
        update={
            "repo": repository,
            "number": position,
            "title": f"{text.title[:80]} ({number})",
            "url": f"https://github.com/{repository}/issues/{position}",
            "node_id": f"I_{place}",
            "database_id": None,
            "created_at": BEGAN + timedelta(seconds=place),
            "updated_at": BEGAN + timedelta(days=60, seconds=number),
            "excerpt": False,  # an excerpt would not take the place of the whole text that it changes
        }
    )


def _texts() -> list[Item]:
    if REAL.exists():
        return [item for chunk in read_chunks(REAL) for item in chunk.items]
    return [parse_item({"repo": "soak/r", "number": 1, "type": "issue", "title": "It fails", "body": TEXT * 12})]


def _megabytes(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)


def verdicts(rounds: Sequence[Round]) -> dict[str, bool]:
    """Each figure at the end beside what it was after the warm-up; the database by its megabytes for a thousand items."""
    tenth, warm = max(len(rounds) // 10, 1), int(len(rounds) * WARM)
    early, late = rounds[warm : warm + tenth], rounds[-tenth:]
    told = {f"{len(rounds)} rounds: with fewer than {ENOUGH} nothing is told of growth": len(rounds) >= ENOUGH}
    for name, extreme in WATCHED.items():
        before, after = (extreme(getattr(each, name) for each in some) for some in (early, late))
        told[f"{name}: {before:,.0f} after the warm-up, {after:,.0f} at the end"] = after <= before * GROWTH
    before, after = (statistics.median(each.database_mb / each.digested * 1_000 for each in some) for some in (early, late))
    told[f"database: {before:.2f} MB for a thousand items after the warm-up, {after:.2f} at the end"] = after <= before * GROWTH
    searches, failed = sum(each.searches for each in rounds), sum(each.failed for each in rounds)
    told[f"{searches:,} questions answered, {failed} failed"] = not failed and searches > 0
    return told


def _line(each: Round) -> str:
    return (
        f"{each.digested:>9,} digested, {each.seconds:.0f} s, {each.runner_cpu:.0f} s of CPU; runner {each.runner_mb:.0f} MB, "
        f"{each.runner_files} files; server {each.server_mb:.0f} MB, {each.server_files} files; {each.connections} connections; "
        f"database {each.database_mb:,.0f} MB; a question {each.search_ms:.0f} ms"
    )


def _save(rounds: Sequence[Round]) -> None:
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    (folder / "soak.json").write_text(json.dumps([asdict(each) for each in rounds], indent=2) + "\n")
    series = {
        "MB of the runner": [each.runner_mb for each in rounds],
        "files the runner has open": [each.runner_files for each in rounds],
        "MB of the search server": [each.server_mb for each in rounds],
        "files the search server has open": [each.server_files for each in rounds],
        "connections to PostgreSQL": [each.connections for each in rounds],
        "MB of the database for a thousand items": [each.database_mb / each.digested * 1_000 for each in rounds],
        "CPU seconds of the runner a round": [each.runner_cpu for each in rounds],
        "seconds a round": [each.seconds for each in rounds],
        "milliseconds a question": [each.search_ms for each in rounds],
    }
    (folder / "soak.svg").write_text(small_plots(series))


if __name__ == "__main__":
    if sys.argv[1:2] == ["runner"]:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_run(settings_of(Path(sys.argv[2]), sys.argv[3]), int(sys.argv[4])))
    else:
        sys.exit(main(*map(int, sys.argv[1:2])))
