"""One table of vectors, or a range partition a month? python -m benchmarks.partitions

The same 500,000 clustered digests (benchmarks/clustered.py, STARSEARCH_BENCH_HOME) copied into one table and into twelve partitions by
time, vectors alone. Built, searched over all and over the newest month, a twentieth deleted and vacuumed, the oldest month removed. CPU is
that of the database's own process, because other work on the machine moves wall time. Both tables go at the end.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg import sql

from benchmarks.clustered import BUILD_MEMORY, DAYS, DIMENSIONS, NOW, World
from benchmarks.measure import cpu_seconds
from benchmarks.store_search import HOME, QUERIES, ROWS, TOP, prepare
from starsearch.embedded import postgres
from starsearch.store.versions import GRAPH

MONTHS = 12
BREADTHS = (20, 40, 80, 200)  # ef_search
DEPTH = 100
TABLES = ("one", "ranged")


def main() -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o755)
    server = postgres.start(HOME)
    try:
        with psycopg.connect(prepare(server, ROWS), autocommit=True) as connection:
            register_vector(connection)
            _measure(connection, World().queries(QUERIES, seed=10**9))
    finally:
        server.close()


def _measure(connection: psycopg.Connection, queries: NDArray[np.float32]) -> None:
    months = [NOW - timedelta(days=DAYS * n / MONTHS) for n in range(MONTHS + 1)]
    connection.execute(sql.SQL("SET maintenance_work_mem = {}").format(BUILD_MEMORY))
    connection.execute("SET max_parallel_maintenance_workers = 0")  # so that all of a build's CPU is this session's
    try:
        for table in TABLES:
            _make(connection, table, months)
        _search(connection, queries, "all", "")
        _search(connection, queries, "30 days", sql.SQL("WHERE partition_at >= {}").format(NOW - timedelta(days=30)).as_string(connection))
        for table in TABLES:
            connection.execute(f"DELETE FROM {table} WHERE item_id % 20 = 0")
            _print(f"{table}: vacuum after a twentieth was deleted", _cost(connection, f"VACUUM {table}"))
        oldest = sql.SQL("DELETE FROM one WHERE partition_at < {}").format(months[-2]).as_string(connection)
        _print("one: the oldest month deleted", _cost(connection, oldest))
        _print("one: and vacuumed", _cost(connection, "VACUUM one"))
        _print("ranged: the oldest month dropped", _cost(connection, f"DROP TABLE ranged_{MONTHS - 1}"))
    finally:
        connection.execute("DROP TABLE IF EXISTS one, ranged")


def _make(connection: psycopg.Connection, table: str, months: Sequence[object]) -> None:
    columns = "item_id bigint, partition_at timestamptz, embedding halfvec"
    if table == "one":
        connection.execute(f"CREATE TABLE one ({columns})")
        parts = ["one"]
    else:
        connection.execute(f"CREATE TABLE ranged ({columns}) PARTITION BY RANGE (partition_at)")
        parts = [f"ranged_{n}" for n in range(MONTHS)]
        for n, part in enumerate(parts):
            bounds = [sql.Literal(months[n + 1]), sql.Literal(months[n]) if n else sql.SQL("MAXVALUE")]
            connection.execute(
                sql.SQL("CREATE TABLE {} PARTITION OF ranged FOR VALUES FROM ({}) TO ({})").format(sql.Identifier(part), *bounds)
            )
    connection.execute(f"INSERT INTO {table} SELECT item_id, partition_at, embedding FROM digest")
    index = f"USING hnsw ((embedding::halfvec({DIMENSIONS})) halfvec_cosine_ops) WITH ({GRAPH})"
    costs = [_cost(connection, f"CREATE INDEX ON {part} {index}") for part in parts]
    ((size,),) = connection.execute(
        "SELECT sum(pg_indexes_size(part::regclass)) / 2^20 FROM unnest(%s::text[]) AS part", [parts]
    ).fetchall()
    connection.execute(f"ANALYZE {table}")
    _print(f"{table}: built, {size:.0f} MB", (sum(cpu for cpu, _ in costs), sum(seconds for _, seconds in costs)))


def _search(connection: psycopg.Connection, queries: NDArray[np.float32], what: str, where: str) -> None:
    connection.execute("SET hnsw.iterative_scan = relaxed_order")
    with _without_index(connection):
        exact = [_nearest(connection, "one", query, where, TOP) for query in queries]
    print(f"{what}: recall@{TOP} and CPU ms a question at ef_search {BREADTHS}")
    for table in TABLES:
        told = []
        for breadth in BREADTHS:
            connection.execute(f"SET hnsw.ef_search = {breadth}")
            for query in queries[:20]:
                _nearest(connection, table, query, where, DEPTH)
            before = cpu_seconds(connection.info.backend_pid)
            found = [_nearest(connection, table, query, where, DEPTH) for query in queries]
            cpu = (cpu_seconds(connection.info.backend_pid) - before) / len(queries) * 1_000
            recall = np.mean([len(set(right) & set(ids)) / len(right) for right, ids in zip(exact, found, strict=True)])
            told.append(f"{recall:.3f} {cpu:5.1f}")
        print(f"  {table:8}" + "   ".join(told), flush=True)


def _nearest(connection: psycopg.Connection, table: str, query: NDArray[np.float32], where: str, count: int) -> list[int]:
    statement = f"SELECT item_id FROM {table} {where} ORDER BY embedding::halfvec({DIMENSIONS}) <=> %s LIMIT {count}"
    return [item for (item,) in connection.execute(statement.encode(), [HalfVector(query)]).fetchall()]


@contextmanager
def _without_index(connection: psycopg.Connection) -> Iterator[None]:
    connection.execute("SET enable_indexscan = off")
    yield
    connection.execute("RESET enable_indexscan")


def _cost(connection: psycopg.Connection, statement: str) -> tuple[float, float]:
    """Of a statement: CPU seconds of this session, and seconds."""
    before, started = cpu_seconds(connection.info.backend_pid), time.perf_counter()
    connection.execute(statement.encode())
    return cpu_seconds(connection.info.backend_pid) - before, time.perf_counter() - started


def _print(what: str, cost: tuple[float, float]) -> None:
    print(f"{what}: {cost[0]:.1f} s of CPU, {cost[1]:.1f} s", flush=True)


if __name__ == "__main__":
    main()
