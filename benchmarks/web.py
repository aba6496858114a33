"""What the web process adds to a search, how it stands many clients, and what a thousand requests at once do to it.

The bare search is the SQL function in this process, with the question's vector ready; the web process embeds the question first, as it
must. Both are asked the same questions in turn, so that whatever else runs on the machine slows both alike.

STARSEARCH_BENCH_DATABASE_URL names a database that is filled already; without it 1,500 invented items are ingested first.
"""

import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2
import psutil

from benchmarks.embedded import write_items
from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.engines import open_engines
from starsearch.finder import open_finder
from starsearch.inference.embed import embed
from starsearch.settings import Settings
from starsearch.store.search import search
from starsearch.store.versions import active_version

QUESTIONS = 150
CLIENTS = (1, 8, 32)
AT_ONCE = 1_000
DATABASE = "STARSEARCH_BENCH_DATABASE_URL"

Work = Callable[[str], Awaitable[object]]


def search_overhead() -> list[Figure]:
    """p50 and p95 of /v1/search beside the bare SQL function at 1, 8 and 32 clients; then a thousand requests at once."""
    with _filled() as settings, _serving(settings) as (base, process):
        return asyncio.run(_measure(settings, base, process))


async def _measure(settings: Settings, base: str, process: psutil.Process) -> list[Figure]:
    limits = httpx2.Limits(max_connections=AT_ONCE)
    async with open_finder(settings) as finder, httpx2.AsyncClient(base_url=base, limits=limits, timeout=120) as client:
        questions = await _questions(finder.pool)
        vectors = {}
        version = await active_version(finder.pool)
        async with open_engines(settings) as engines:

            async def embedding(question: str) -> None:
                vectors[question] = (await embed(engines.embedding, [question], dimensions=engines.dimensions))[0][0]

            async def bare(question: str) -> None:
                await search(finder.pool, version, question, vectors[question])

            async def over_http(question: str) -> None:
                (await client.get("/v1/search", params={"q": question})).raise_for_status()

            await _times([embedding, bare, over_http], questions[:20], clients=1)  # warm
            seconds = {clients: await _times([embedding, bare, over_http], questions, clients=clients) for clients in CLIENTS}
        print(f"{len(questions)} questions, ms: clients, then p50 and p95 of embedding, bare SQL, /v1/search")
        for clients, parts in seconds.items():
            print(f"{clients:>3} " + "  ".join(f"{_p(part, 0.5):7.1f} {_p(part, 0.95):7.1f}" for part in parts))
        embedding_1, bare_1, http_1 = (_p(part, 0.5) for part in seconds[1])
        answered, unanswered, megabytes = await _storm(client, questions, process)
    print(f"{AT_ONCE} at once: {answered} found, {unanswered} without an answer, the others told to come back")
    return [
        Figure("web.search.overhead", round(http_1 / bare_1, 2), "x bare SQL", "<=", 1.5),
        Figure("web.search.overhead_with_embedding", round(http_1 / (embedding_1 + bare_1), 2), "x embedding + SQL", "<=", 1.5),
        Figure("web.search.unanswered", unanswered, f"of {AT_ONCE}", "==", 0),
        Figure("web.search.memory_growth_mb", round(megabytes, 1), "MB", "<=", 150),
    ]


async def _times(works: Sequence[Work], questions: Sequence[str], *, clients: int) -> list[list[float]]:
    """Seconds of each kind of work. Each client does all kinds for one question before it takes the next."""
    seconds: list[list[float]] = [[] for _ in works]
    left = iter(questions)

    async def client() -> None:
        for question in left:
            for work, taken in zip(works, seconds, strict=True):
                started = time.perf_counter()
                await work(question)
                taken.append(time.perf_counter() - started)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seconds


def _p(seconds: Sequence[float], share: float) -> float:
    """Milliseconds."""
    return statistics.quantiles(seconds, n=100)[round(share * 100) - 1] * 1_000


async def _storm(client: httpx2.AsyncClient, questions: Sequence[str], process: psutil.Process) -> tuple[int, int, float]:
    """Found, without an answer, and by how many MB the process grew."""
    before = process.memory_info().rss
    asked = (client.get("/v1/search", params={"q": questions[n % len(questions)]}) for n in range(AT_ONCE))
    answers = await asyncio.gather(*asked, return_exceptions=True)
    found = sum(isinstance(answer, httpx2.Response) and answer.status_code == 200 for answer in answers)
    lost = [answer for answer in answers if not isinstance(answer, httpx2.Response) or answer.status_code not in {200, 429, 503}]
    for answer in lost:
        print(f"lost: {answer!r}")
    return found, len(lost), (process.memory_info().rss - before) / 2**20


async def _questions(pool: object) -> list[str]:
    """Titles of stored items: words that occur, as people's questions do."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT left(title, 80) FROM item WHERE length(title) > 15 ORDER BY hashint8(id) LIMIT %s", [QUESTIONS]
        )
        return [row[0] async for row in cursor]


@contextmanager
def _filled() -> Iterator[Settings]:
    folder = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    folder.chmod(0o755)
    try:
        if dsn := os.environ.get(DATABASE):
            yield Settings(_env_file=None, home=folder, database_url=dsn)
        else:
            settings = Settings(_env_file=None, home=folder)
            _command(settings, "ingest", str(write_items(folder / "items.jsonl")))
            yield settings
    finally:
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _serving(settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "starsearch.cli", "serve", "--port", str(port)]
    server = subprocess.Popen(command, env=_environment(settings))
    try:
        base = f"http://127.0.0.1:{port}"
        _wait(base)
        yield base, psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _wait(base: str) -> None:
    for _ in range(600):
        try:
            httpx2.get(f"{base}/readyz", timeout=60).raise_for_status()
            return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start within a minute")


def _command(settings: Settings, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "starsearch.cli", *arguments], env=_environment(settings), check=True, stdout=subprocess.DEVNULL)


def _environment(settings: Settings) -> dict[str, str]:
    address = {"STARSEARCH_DATABASE_URL": settings.database_url.get_secret_value()} if settings.database_url else {}
    return os.environ | {"STARSEARCH_HOME": str(settings.home)} | address
