"""What digesting costs beside the engine: CPU of the runner from lease to commit, requests for equal texts, memory over a long run.

The engine answers at once, from a process of its own; its CPU is not counted. PostgreSQL's is told beside the runner's.
"""

import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx2
import psutil
from psycopg import sql

from benchmarks.instant_engine import MODEL
from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.engines import open_engines
from starsearch.pipeline import digest, recorded_run
from starsearch.settings import Settings
from starsearch.storage import Store, open_store
from starsearch.store.versions import ensure_version

ITEMS = 1_000
ROUNDS = 3
BARE = 300
PROCESSES = 3
LONG = 50_000
WARM_UP = 5_000
PLOT = Path(__file__).resolve().parents[1] / "build" / "inference_memory.svg"
TEXT = "The server returns an error when it parses the config file after an update, and the log shows a timeout in thread 7. "


def overhead_cpu_ms_per_item() -> list[Figure]:
    """Process CPU for 1,000 items of 1,400 characters, median of three rounds after a warm-up.

    Busy neighbours make the same instructions cost twice the CPU time and more, so the second figure is a ratio to bare HTTP requests of
    the same size, sent by the same process in the same run. One costs 0.47 ms on this machine when it is quiet: 2 ms are 4.25 of them.
    """
    with open_engine() as settings:
        runner, server, bare = asyncio.run(_overhead(settings))
    return [
        Figure("inference.overhead_cpu_ms_per_item", round(runner, 2), f"ms, {server:.2f} of PostgreSQL", "<=", 2),
        Figure("inference.overhead_in_bare_requests", round(runner / bare, 2), f"of {bare:.2f} ms", "<=", 4.25),
    ]


async def _overhead(settings: Settings) -> tuple[float, float, float]:
    """CPU milliseconds an item of the runner and of PostgreSQL, and those of one bare request."""
    rounds, bare = [], []
    async with _opened(settings) as (store, run):
        for number in range(ROUNDS + 1):
            await fill(store, ITEMS, f"'round {number}, report ' || n")
            before = time.process_time(), await _server_cpu(store)
            await run()
            rounds.append((time.process_time() - before[0], await _server_cpu(store) - before[1]))
            bare.append(await _bare_requests(settings))
    runner, server = (statistics.median(each[part] for each in rounds[1:]) / ITEMS * 1_000 for part in (0, 1))
    return runner, server, statistics.median(bare[1:])


async def _bare_requests(settings: Settings) -> float:
    """CPU milliseconds of one POST by httpx2 alone, as many in flight as the runner has."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": TEXT * 20}]})
    slots = asyncio.Semaphore(settings.concurrency)
    async with httpx2.AsyncClient(headers={"content-type": "application/json"}) as client:

        async def ask() -> None:
            async with slots:
                json.loads((await client.post(f"{settings.llm_base_url}/chat/completions", content=body)).content)

        before = time.process_time()
        await asyncio.gather(*(ask() for _ in range(BARE)))
    return (time.process_time() - before) / BARE * 1_000


def duplicate_requests() -> list[Figure]:
    """Three processes of two workers meet 1,000 equal items at the same time."""
    with open_engine() as settings:
        asyncio.run(_duplicates(settings))
        command = [sys.executable, "-m", "starsearch.cli", "digest", "--json"]
        processes = [subprocess.Popen(command, env=environment_of(settings), stdout=subprocess.PIPE) for _ in range(PROCESSES)]
        digested = [json.loads(process.communicate()[0])["embedded"] for process in processes]
        if any(process.returncode for process in processes):
            raise AssertionError("not every process digested")
        asked = json.load(urllib.request.urlopen(f"{str(settings.llm_base_url).removesuffix('/v1')}/requests", timeout=5))
    if sum(digested) != ITEMS:
        raise AssertionError(f"{digested} is not {ITEMS} items digested")
    return [Figure("inference.duplicates.requests", asked["chat"], f"for {ITEMS} items, digested {digested}", "==", 1)]


async def _duplicates(settings: Settings) -> None:
    async with open_store(settings) as store:
        await fill(store, ITEMS, "'Bump lodash'")


def memory_growth_mb() -> list[Figure]:
    """Resident memory of a runner from 5,000 to 50,000 items, every second; plotted in build/inference_memory.svg."""
    with open_engine() as settings:
        command = [sys.executable, "-m", "benchmarks.inference_overhead", str(settings.home), str(settings.llm_base_url), str(LONG)]
        samples: list[tuple[int, float]] = json.loads(subprocess.check_output(command))
    PLOT.parent.mkdir(exist_ok=True)
    PLOT.write_text(plot(samples))
    warm = [megabytes for items, megabytes in samples if items >= WARM_UP]
    return [Figure("inference.memory_growth_mb", round(max(warm) - warm[0], 1), f"MB over {LONG:,} items, from {warm[0]:.0f}", "<=", 10)]


async def _sample_memory(settings: Settings, items: int) -> list[tuple[int, float]]:
    """Without an HNSW index, whose CPU is PostgreSQL's, and nine tenths of the time."""
    samples: list[tuple[int, float]] = []
    process = psutil.Process()
    async with _opened(settings) as (store, run):
        await fill(store, items, "'report ' || n")
        async with store.pool.connection() as connection:
            for (name,) in await (await connection.execute("SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")).fetchall():
                await connection.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier(name)))

        async def watch() -> None:
            while True:
                async with store.pool.connection() as connection:
                    row = await (await connection.execute("SELECT count(*) FROM digest")).fetchone()
                samples.append((row[0] if row else 0, process.memory_info().rss / 1e6))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await run()
        watching.cancel()
    return samples


def plot(samples: list[tuple[int, float]]) -> str:
    """Memory (from 0) over items, as SVG."""
    width, height, left, bottom = 800, 300, 60, 40
    most, top = max(items for items, _ in samples) or 1, max(megabytes for _, megabytes in samples) * 1.2
    points = " ".join(
        f"{left + items / most * (width - left - 20):.0f},{(height - bottom) * (1 - megabytes / top) + 10:.0f}"
        for items, megabytes in samples
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<path d="M{left} 10V{height - bottom + 10}H{width - 20}" fill="none" stroke="black"/>'
        f'<polyline points="{points}" fill="none" stroke="#0b62a4" stroke-width="2"/>'
        f'<text x="{left}" y="{height - 8}">0</text>'
        f'<text x="{width - 20}" y="{height - 8}" text-anchor="end">{most:,} items digested</text>'
        f'<text x="{left - 6}" y="20" text-anchor="end">{top:.0f} MB</text>'
        f'<text x="{left - 6}" y="{height - bottom + 10}" text-anchor="end">0</text>'
        "</svg>\n"
    )


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[tuple[Store, Callable[[], Awaitable[None]]]]:
    async with open_store(settings) as store, open_engines(settings) as engines:
        await ensure_version(store.pool, engines.version)

        async def run() -> None:
            async with recorded_run(store, "digest") as run:
                await digest(store, engines, run, workers=settings.workers, concurrency=settings.concurrency)
            if run.counts.dead_letters or not run.counts.embedded:
                raise AssertionError(f"{run.counts} is not a clean run")

        yield store, run


async def fill(store: Store, items: int, title: str) -> None:
    """Items straight into the table: how they got there is not measured here. `title` is SQL over n."""
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO repository (full_name) SELECT 'bench/repository' WHERE NOT EXISTS (SELECT FROM repository)",
        )
        await connection.execute(
            "INSERT INTO item (repository_id, number, stored_at, type, state, title, body, url, content_hash) "
            f"SELECT 1, base + n, now(), 'issue', 'open', {title}, repeat(%s, 12), '', sha256((base + n)::text::bytea) "
            "FROM (SELECT coalesce(max(number), 0) AS base FROM item) AS b CROSS JOIN generate_series(1, %s) AS n",
            [TEXT, items],
        )


async def _server_cpu(store: Store) -> float:
    """CPU seconds of PostgreSQL's processes that live now."""
    async with store.pool.connection() as connection:
        pids = [pid for (pid,) in await (await connection.execute("SELECT pid FROM pg_stat_activity")).fetchall()]
    times = [psutil.Process(pid).cpu_times() for pid in pids if psutil.pid_exists(pid)]
    return float(sum(each.user + each.system for each in times))


@contextmanager
def open_engine(*, seconds: float = 0.0, titles: bool = False) -> Iterator[Settings]:
    """An engine that needs so long for a summary, and an empty home folder, both gone at the end. titles: see instant_engine."""
    home = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    home.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    summaries = ["titles"] if titles else []
    engine = subprocess.Popen([sys.executable, "-m", "benchmarks.instant_engine", str(port), str(seconds), *summaries])
    try:
        url = f"http://127.0.0.1:{port}/v1"
        deadline = time.monotonic() + 60
        while not _answers(f"{url}/models") and time.monotonic() < deadline:
            time.sleep(0.1)
        yield settings_of(home, url)
    finally:
        engine.terminate()
        engine.wait(30)
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)


def settings_of(home: Path, url: str) -> Settings:
    return Settings(_env_file=None, home=home, llm_base_url=url, llm_model=MODEL, embedding_base_url=url, embedding_model=MODEL)


def environment_of(settings: Settings) -> dict[str, str]:
    """The same for a command."""
    names = ("home", "llm_base_url", "llm_model", "embedding_base_url", "embedding_model")
    return os.environ | {f"STARSEARCH_{name.upper()}": str(getattr(settings, name)) for name in names}


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    json.dump(asyncio.run(_sample_memory(settings_of(Path(sys.argv[1]), sys.argv[2]), int(sys.argv[3]))), sys.stdout)
