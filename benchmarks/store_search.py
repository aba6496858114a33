"""Search over clustered vectors: how many of the exact ten nearest it finds, with and without filters, and what a question costs,
beside hnswlib: the same kind of graph in memory, without rows, filters, transactions or durability.

The databases (benchmarks/clustered.py) are made once, in build/bench or the folder STARSEARCH_BENCH_HOME names, and kept: filling and
indexing 500,000 rows took twenty minutes of a busy machine. STARSEARCH_BENCH_ROWS makes the large one smaller. CPU is that of the
database's own process, because other work on the machine moves wall time.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector

from benchmarks.clustered import CHUNK, DIMENSIONS, NOW, VERSION, World, build_index, fill
from benchmarks.measure import Figure, cpu_seconds
from starsearch.embedded import postgres
from starsearch.models import Filters, IndexVersion
from starsearch.store.database import Pool, open_database
from starsearch.store.nearest import NO_FILTERS, nearest
from starsearch.store.versions import BUILD_CANDIDATES, EDGES, active_version, ensure_version

ROWS = int(os.environ.get("STARSEARCH_BENCH_ROWS", "500000"))
SMALL_ROWS = 10_000
HOME = Path(os.environ.get("STARSEARCH_BENCH_HOME") or Path(__file__).resolve().parents[1] / "build" / "bench")
QUERIES = int(os.environ.get("STARSEARCH_BENCH_QUERIES", "100"))
TOP = 10
GRAPH_BREADTHS = (20, 30, 40, 60, 80, 120, 200, 400)  # hnswlib's ef, from the cheapest
RANKS = (1, 2, 5, 30, 300, 3_000)  # repositories, by how much they hold: from a twelfth of everything down to a dozen rows


def search_recall() -> list[Figure]:
    """Recall@10 against comparing every row, by the path that search itself chooses; rows missing; CPU a question as the rows grow."""
    HOME.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o755)  # root's server runs as another user
    server = postgres.start(HOME)
    try:
        small = asyncio.run(_cpu(prepare(server, SMALL_ROWS)))
        return asyncio.run(_measure(prepare(server, ROWS), small))
    finally:
        server.close()


def prepare(server: postgres.EmbeddedPostgres, rows: int) -> str:
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
            backend = connection.info.backend_pid
        for query in queries:
            await nearest(pool, version, query)
        before = cpu_seconds(backend)
        for query in queries:
            await nearest(pool, version, query)
        return (cpu_seconds(backend) - before) / len(queries) * 1000


def search_cpu_vs_hnswlib() -> list[Figure]:
    """CPU of the database a question, beside hnswlib's at the least ef that finds as much; and how both grow with the rows."""
    try:
        import hnswlib  # noqa: F401
    except ImportError:
        # it comes as source, to be compiled for the processor at hand: no dependency of those who only run the tests
        print("store.search.cpu_vs_hnswlib: `VIRTUAL_ENV=.venv .uv/bin/uv pip install hnswlib` compiles what it is measured against")
        return []
    HOME.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o755)
    server = postgres.start(HOME)
    try:
        small, large = (_beside_hnswlib(prepare(server, rows), rows) for rows in (SMALL_ROWS, ROWS))
    finally:
        server.close()
    growth = (
        f"{large.ours_ms / small.ours_ms:.1f} times as much as at {SMALL_ROWS:,}, hnswlib {large.theirs_ms / small.theirs_ms:.1f} times"
    )
    detail = f"times {large.theirs_ms:.2f} ms at recall {large.theirs:.3f}, ours {large.ours:.3f} in {large.ours_ms:.2f} ms, {growth}"
    detail += f"; at {SMALL_ROWS:,} rows {small.ours_ms / small.theirs_ms:.1f} times"
    return [Figure("store.search.cpu_vs_hnswlib", round(large.ours_ms / large.theirs_ms, 1), detail, "<=", 10)]


@dataclass(frozen=True)
class Beside:
    """Recall@10 and CPU milliseconds a question, ours and hnswlib's."""

    ours: float
    ours_ms: float
    theirs: float
    theirs_ms: float


def _beside_hnswlib(dsn: str, rows: int) -> Beside:
    queries = World().queries(QUERIES, seed=10**9)
    exact, found = asyncio.run(_both_paths(dsn, queries))
    ours = _found(exact, found)
    ours_ms = asyncio.run(_cpu(dsn))
    index = _hnswlib_index(dsn, rows)
    for breadth in GRAPH_BREADTHS:
        index.set_ef(breadth)
        theirs = _found(exact, [index.knn_query(query, TOP)[0][0].tolist() for query in queries])
        before = time.process_time()
        for query in queries:
            index.knn_query(query, TOP)
        theirs_ms = (time.process_time() - before) / len(queries) * 1000
        if theirs >= ours:
            break
    return Beside(ours, ours_ms, theirs, theirs_ms)


async def _both_paths(dsn: str, queries: Sequence[NDArray]) -> tuple[list[list[int]], list[list[int]]]:
    """The ten nearest of each query by comparing all, and what search finds, of which it ranks a hundred."""
    async with open_database(dsn, size=1) as pool:
        version = await active_version(pool)
        assert version is not None
        exact = [(await nearest(pool, version, query, count=TOP, path="exact")).ids for query in queries]
        return exact, [(await nearest(pool, version, query)).ids for query in queries]


def _found(exact: Sequence[Sequence[int]], found: Sequence[Sequence[int]]) -> float:
    return sum(len(set(right) & set(ids)) for right, ids in zip(exact, found, strict=True)) / sum(map(len, exact))


def _hnswlib_index(dsn: str, rows: int) -> Any:
    """The vectors of the database in hnswlib, with the same m and ef_construction; kept in HOME."""
    import hnswlib

    index = hnswlib.Index("cosine", DIMENSIONS)
    path = HOME / f"hnswlib_{rows}.bin"
    if path.exists():
        index.load_index(str(path))
    else:
        index.init_index(rows, M=EDGES, ef_construction=BUILD_CANDIDATES)
        with psycopg.connect(dsn) as connection:
            register_vector(connection)
            with connection.cursor("vectors", binary=True) as cursor:
                cursor.execute("SELECT item_id, embedding FROM digest")
                while chunk := cursor.fetchmany(CHUNK):
                    index.add_items(np.stack([vector.to_numpy() for _, vector in chunk]).astype("f4"), [item for item, _ in chunk])
        index.save_index(str(path))
    index.set_num_threads(1)
    return index
