"""Search over clustered vectors: how many of the exact ten nearest it finds, with and without filters, and what a question costs.

The databases (benchmarks/clustered.py) are made once, in build/bench or the folder STARSEARCH_BENCH_HOME names, and kept: filling and
indexing 500,000 rows took twenty minutes of a busy machine. STARSEARCH_BENCH_ROWS makes the large one smaller. CPU is that of the
database's own process, because other work on the machine moves wall time.
"""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import psutil
import psycopg
from numpy.typing import NDArray

from benchmarks.clustered import NOW, VERSION, World, build_index, fill
from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.models import Filters, IndexVersion
from starsearch.store.database import Pool, open_database
from starsearch.store.nearest import NO_FILTERS, nearest
from starsearch.store.versions import active_version, ensure_version

ROWS = int(os.environ.get("STARSEARCH_BENCH_ROWS", "500000"))
SMALL_ROWS = 10_000
HOME = Path(os.environ.get("STARSEARCH_BENCH_HOME") or Path(__file__).resolve().parents[1] / "build" / "bench")
QUERIES = int(os.environ.get("STARSEARCH_BENCH_QUERIES", "50"))
TOP = 10
RANKS = (1, 2, 5, 30, 300, 3_000)  # repositories, by how much they hold: from a twelfth of everything down to a dozen rows


def search_recall() -> list[Figure]:
    """Recall@10 against comparing every row, by the path that search itself chooses; rows missing; CPU a question as the rows grow."""
    HOME.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o755)  # root's server runs as another user
    server = postgres.start(HOME)
    try:
        small = asyncio.run(_cpu(_prepare(server, SMALL_ROWS)))
        return asyncio.run(_measure(_prepare(server, ROWS), small))
    finally:
        server.close()


def _prepare(server: postgres.EmbeddedPostgres, rows: int) -> str:
    """The address of a database with so many rows; made where there is none."""
    name = f"clustered_{rows}"
    dsn = server.place.dsn(name)
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [name]).fetchall():
            return dsn
        connection.execute(f"CREATE DATABASE {name}_unfinished")
    unfinished = server.place.dsn(f"{name}_unfinished")
    version = asyncio.run(_version(unfinished))
    with psycopg.connect(unfinished) as connection:
        connection.execute(f"DROP INDEX digest_v{version.id}_embedding_idx")
        fill(connection, World(), rows, version.id)
        build_index(connection, f"digest_v{version.id}")
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name}_unfinished RENAME TO {name}")
    return dsn


async def _version(dsn: str) -> IndexVersion:
    async with open_database(dsn) as pool:
        return await ensure_version(pool, VERSION)


async def _measure(dsn: str, small_cpu_ms: float) -> list[Figure]:
    queries = World().queries(QUERIES, seed=10**9)
    async with open_database(dsn, size=1) as pool:
        version = await active_version(pool)
        assert version is not None
        month = Filters(since=NOW - timedelta(days=30))
        by_repository = [Filters(repos=(f"bench/repository-{rank}",)) for rank in RANKS]
        plain, short = await _recall(pool, version, queries, [NO_FILTERS])
        repository, short_repository = await _recall(pool, version, queries, by_repository)
        days, short_days = await _recall(pool, version, queries, [month])
    cpu_ms = await _cpu(dsn)
    return [
        Figure("store.search.recall", round(plain, 4), "recall@10", ">=", 0.97),
        Figure("store.search.recall_repository", round(repository, 4), "recall@10", ">=", 0.99),
        Figure("store.search.recall_30_days", round(days, 4), "recall@10", ">=", 0.97),
        Figure("store.search.rows_missing", short + short_repository + short_days, "rows", "==", 0),
        Figure(
            "store.search.growth",
            round(cpu_ms / small_cpu_ms, 2),
            f"times the CPU ({cpu_ms:.1f} ms), {ROWS // SMALL_ROWS} times the rows",
            "<=",
            4,
        ),
    ]


async def _recall(pool: Pool, version: IndexVersion, queries: Sequence[NDArray], filters: Sequence[Filters]) -> tuple[float, int]:
    """Recall@10 over every query and filter; and how many rows that exist were not returned."""
    found = expected = missing = 0
    for each in filters:
        for query in queries:
            exact = (await nearest(pool, version, query, filters=each, count=TOP, path="exact")).ids
            ids = (await nearest(pool, version, query, filters=each)).ids
            found += len(set(exact) & set(ids))
            expected += len(exact)
            missing += max(len(exact) - len(ids), 0)
    return found / expected, missing


async def _cpu(dsn: str) -> float:
    """Milliseconds of the database's CPU a question without filters, the second time round."""
    queries = World().queries(QUERIES, seed=10**9)
    async with open_database(dsn, size=1) as pool:
        version = await active_version(pool)
        assert version is not None
        async with pool.connection() as connection:
            backend = psutil.Process(connection.info.backend_pid)
        for query in queries:
            await nearest(pool, version, query)
        before = sum(backend.cpu_times()[:2])
        for query in queries:
            await nearest(pool, version, query)
        return (sum(backend.cpu_times()[:2]) - before) / len(queries) * 1000
