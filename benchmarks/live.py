"""How soon a new item is searchable while a backfill of 200,000 is being digested.

`starsearch ingest` of one item, from its start until its digest is there, when nothing else is due, and when two other processes work
through the backfill. The engine, in a process of its own, takes a second for a summary, as a quick GPU does: with one that answers at once
(STARSEARCH_BENCH_ENGINE_SECONDS=0) the backfill takes every core there is. What a process needs to start is in both times.
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg

from benchmarks.inference_overhead import environment_of, fill, open_engine
from benchmarks.measure import Figure, ask
from starsearch.embedded import postgres
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.leases import BACKFILL

ITEMS = int(os.environ.get("STARSEARCH_BENCH_ITEMS", "200000"))
ENGINE_SECONDS = float(os.environ.get("STARSEARCH_BENCH_ENGINE_SECONDS", "1"))
LIVE, DIGESTERS, PATIENCE_SECONDS = 10, 2, 120.0
DIGESTED, DUE = "SELECT count(*) FROM digest", "SELECT count(*) FROM due"
# by its keys alone: whoever looks every moment must not read tables that the backfill fills
SEARCHABLE = """
SELECT count(*) FROM index_version v, repository r JOIN item i ON i.repository_id = r.id AND i.number = {number}, digest d
WHERE r.full_name = 'live/items' AND d.version_id = v.id AND d.item_id = i.id AND d.partition_at = i.partition_at
"""


def beside_a_backfill() -> list[Figure]:
    with open_engine(seconds=ENGINE_SECONDS) as settings, database_in(settings.home) as dsn:
        _searchable_after(settings, dsn, LIVE * 2)  # the schema, and what is read from disk once
        idle = [_searchable_after(settings, dsn, n) for n in range(LIVE)]
        asyncio.run(_backfill(settings))
        with ExitStack() as digesting:
            for _ in range(DIGESTERS):
                digesting.enter_context(_command(settings, "digest"))
            before = _until(dsn, DIGESTED, above=ask(dsn, DIGESTED))
            busy = [_searchable_after(settings, dsn, LIVE + n) for n in range(LIVE)]
            done, left = ask(dsn, DIGESTED) - before, ask(dsn, DUE)
    assert left, "the backfill was over too early to prove anything"
    detail = (
        f"times the idle time: medians {statistics.median(busy):.2f} and {statistics.median(idle):.2f} s, longest {max(busy):.2f} and "
        f"{max(idle):.2f} s; {done:,} of the backfill digested meanwhile, {left:,} still due"
    )
    return [Figure("store.live_beside_backfill", round(statistics.median(busy) / statistics.median(idle), 2), detail, "<=", 2.0)]


async def _backfill(settings: Settings) -> None:
    async with open_store(settings) as store:
        await fill(store, ITEMS, "'report ' || n")
        async with store.pool.connection() as connection:
            await connection.execute(
                "INSERT INTO due (version_id, item_id, priority) SELECT v.id, i.id, %s FROM item i, index_version v "
                "WHERE NOT EXISTS (SELECT FROM digest d WHERE d.item_id = i.id)",
                [BACKFILL],
            )


def _searchable_after(settings: Settings, dsn: str, number: int) -> float:
    """Seconds, and the command is ended: it would go on with the backfill."""
    title = f"Live item {number}"
    item = {"repo": "live/items", "number": number + 1, "type": "issue", "title": title, "state": "open", "body": "Somebody waits for it."}
    file = settings.home / "live.jsonl"
    file.write_text(json.dumps(item | {"url": f"https://github.com/live/items/issues/{number + 1}"}))
    began = time.monotonic()
    with _command(settings, "ingest", str(file)):
        _until(dsn, SEARCHABLE.format(number=number + 1), above=0)
        return time.monotonic() - began


def _until(dsn: str, query: str, *, above: int) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            with suppress(psycopg.errors.UndefinedTable):
                row = connection.execute(query.encode()).fetchone()
                if row and row[0] > above:
                    return int(row[0])
            time.sleep(0.02)  # nobody tells when it is there; so much is added to times of seconds
    raise AssertionError(f"nothing came within {PATIENCE_SECONDS:.0f} s")


@contextmanager
def database_in(home: Path) -> Iterator[str]:
    server = postgres.start(home)
    try:
        yield server.dsn
    finally:
        server.close()


@contextmanager
def _command(settings: Settings, *arguments: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "starsearch.cli", *arguments], env=environment_of(settings), stdout=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)
