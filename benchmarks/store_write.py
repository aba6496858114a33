"""Writing digests: what exactness costs beside the barest write PostgreSQL has, and whether 24 writers at once lose anything.

Both sides write the same vectors in batches of 500, in turns, each batch a transaction of its own over one connection. Ours is the
statement of store/digests.py into the real table: keys, references, the check against mixed versions and the marks for `status`
included. Every batch has new vectors: pgvector stores one that it already has three times as fast.
"""

import asyncio
import hashlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector, register_vector_async

from benchmarks.clustered import VERSION, World, build_index
from benchmarks.measure import Figure, cpu_seconds
from starsearch.audit import read_status
from starsearch.embedded import postgres
from starsearch.models import Chunk, DueItem, IndexVersion, Item, Summary, parse_item
from starsearch.store.database import Pool, connect, keep_plans, open_database
from starsearch.store.digests import Digest, finish_batch, store_digests
from starsearch.store.items import store_chunk
from starsearch.store.leases import claim, worker
from starsearch.store.runs import start_run
from starsearch.store.versions import active_version, ensure_version

BATCH = 500
PLAIN_BATCHES, INDEXED_BATCHES = 40, 12
INDEXED_ROWS = 20_000  # in both graphs beforehand: adding to a small one is cheaper
WRITERS, CHUNKS, CHUNK_ITEMS, COPIES = 24, 48, 100, 3
MOMENT = datetime(2026, 11, 1, tzinfo=UTC)
COLUMNS = "version_id, run_id, item_id, partition_at, content_hash, summary_key, embedding"
TYPES = ["int2", "int8", "int8", "timestamptz", "bytea", "bytea", "halfvec"]
ITEMS = """
INSERT INTO item (repository_id, number, partition_at, stored_at, type, state, title, url, content_hash)
SELECT (SELECT id FROM repository), n, %(moment)s, now(), 'issue', 'open', 'Title', '', sha256(n::text::bytea)
FROM generate_series(1, %(items)s) AS n
"""
SUMMARIES = """
INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens)
SELECT content_hash, 'What it is about, in the words of a summary.', 'model', %(model)s, 'v1', 0, 0 FROM item
"""
Write = Callable[[list[Digest]], None]


@dataclass
class Side:
    """One way to write: seconds, and CPU seconds of this process and the server's, for each batch."""

    write: Write
    backend: int  # its process id
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, digests: list[Digest]) -> None:
        before, started = self._cpu(), time.perf_counter()
        self.write(digests)
        self.seconds.append(time.perf_counter() - started)
        self.cpu.append(self._cpu() - before)

    def _cpu(self) -> float:
        return cpu_seconds(self.backend) + time.process_time()

    @property
    def rows_per_second(self) -> float:
        return BATCH / statistics.median(self.seconds)

    @property
    def rows_per_cpu_second(self) -> float:
        return BATCH / statistics.median(self.cpu)


def plain_vs_copy() -> list[Figure]:
    """Rows a second without an HNSW index, as a share of COPY into an unlogged table without any index."""
    with _database() as dsn:
        items = PLAIN_BATCHES * BATCH
        version, run = asyncio.run(_prepare(dsn, items))
        with psycopg.connect(dsn, autocommit=True) as plain:
            plain.execute(f"DROP INDEX digest_v{version.id}_embedding_idx")
            plain.execute(f"CREATE UNLOGGED TABLE bare AS SELECT {COLUMNS} FROM digest LIMIT 0")
            ours, bare = _race(dsn, plain, _copy(plain, version, run), version, run, range(1, items + 1))
        return [_figure("store.write.plain_vs_copy", ours, bare, 0.40)]


def hnsw_vs_insert() -> list[Figure]:
    """Rows a second with an HNSW index, as a share of INSERT alone into a table with the same key and index and nothing else."""
    with _database() as dsn:
        items = INDEXED_ROWS + INDEXED_BATCHES * BATCH
        version, run = asyncio.run(_prepare(dsn, items))
        with psycopg.connect(dsn, autocommit=True) as bare:
            bare.execute("CREATE TABLE bare (LIKE digest INCLUDING DEFAULTS, PRIMARY KEY (version_id, item_id, partition_at))")
            bare.execute(f"DROP INDEX digest_v{version.id}_embedding_idx")
            asyncio.run(_store(dsn, version, run, _digests(range(1, INDEXED_ROWS + 1))))
            bare.execute("INSERT INTO bare SELECT * FROM digest")
            for table in (f"digest_v{version.id}", "bare"):
                build_index(bare, table)
            bare.execute("VACUUM ANALYZE")
            bare.execute("CHECKPOINT")
            ours, theirs = _race(dsn, bare, _insert(bare, version, run), version, run, range(INDEXED_ROWS + 1, items + 1))
        return [_figure("store.write.hnsw_vs_insert", ours, theirs, 0.9)]


def _figure(name: str, ours: Side, bare: Side, target: float) -> Figure:
    """By CPU time; wall time, which holds the waits for the disk and for whoever else uses the machine, is told beside it."""
    by_wall = ours.rows_per_second / bare.rows_per_second
    detail = f"of {bare.rows_per_cpu_second:,.0f} rows a CPU second ({by_wall:.2f} by wall time, of {bare.rows_per_second:,.0f} rows/s)"
    return Figure(name, round(ours.rows_per_cpu_second / bare.rows_per_cpu_second, 3), detail, ">=", target)


def writers() -> list[Figure]:
    """24 processes store items that others store at the same time, in another order, and digest what is due, HNSW index included."""
    with _database() as dsn:
        asyncio.run(_prepare(dsn, 0))
        command = [sys.executable, "-m", "benchmarks.store_write", dsn]
        started = time.perf_counter()
        processes = [subprocess.Popen([*command, str(number)]) for number in range(WRITERS)]
        failed = sum(process.wait(900) != 0 for process in processes)
        seconds = time.perf_counter() - started
        with psycopg.connect(dsn) as connection:
            ((deadlocks,),) = connection.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchall()
            ((items, digests, distinct),) = connection.execute(
                "SELECT (SELECT count(*) FROM item), count(*), count(DISTINCT item_id) FROM digest JOIN item i ON i.id = item_id "
                "WHERE digest.content_hash = i.content_hash"
            ).fetchall()
        complete = asyncio.run(_complete(dsn))
    expected = CHUNKS * CHUNK_ITEMS
    of = f"of {expected:,} items by {WRITERS} writers in {seconds:.0f} s"
    return [
        Figure("store.write.deadlocks", deadlocks, f"{of}; {failed} writers failed", "==", 0),
        Figure("store.write.lost", expected - distinct + failed, f"{of}, complete: {complete}", "==", 0),
        Figure("store.write.duplicates", items - expected + digests - distinct, of, "==", 0),
    ]


@contextmanager
def _database() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    folder.chmod(0o755)
    server = postgres.start(folder)
    try:
        yield server.dsn
    finally:
        server.close()
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


async def _prepare(dsn: str, items: int) -> tuple[IndexVersion, int]:
    """So many items, each with a summary: what digests refer to; and a run."""
    async with open_database(dsn, size=1) as pool:
        version = await ensure_version(pool, VERSION)
        async with pool.connection() as connection:
            await connection.execute("INSERT INTO repository (full_name) VALUES ('bench/repository')")
            await connection.execute(ITEMS, {"moment": MOMENT, "items": items})
            await connection.execute(SUMMARIES, {"model": VERSION.summary_model})
        async with pool.connection() as connection:
            await connection.set_autocommit(True)
            await connection.execute("VACUUM ANALYZE")
        return version, await start_run(pool, "bench")


def _digests(numbers: range) -> list[Digest]:
    vectors = World().rows(len(numbers), seed=numbers.start).vectors
    keys = [hashlib.sha256(str(number).encode()).digest() for number in numbers]
    return [
        Digest(DueItem(number, "issue", "open", "Title", "", (), key, MOMENT), Summary(key, "", "model"), vector)
        for number, key, vector in zip(numbers, keys, vectors, strict=True)
    ]


def _race(dsn: str, other: psycopg.Connection, write: Write, version: IndexVersion, run: int, numbers: range) -> tuple[Side, Side]:
    """Our side and the other, batch by batch in turns."""
    with asyncio.Runner() as runner:
        connection = runner.run(connect(dsn))
        runner.run(register_vector_async(connection))

        async def write_ours(digests: list[Digest]) -> None:
            async with connection.transaction():
                await keep_plans(connection)
                await store_digests(connection, version.id, digests, run)

        ours = Side(lambda digests: runner.run(write_ours(digests)), connection.info.backend_pid)
        theirs = Side(write, other.info.backend_pid)
        digests = _digests(numbers)
        for start in range(0, len(digests), BATCH):
            for side in (ours, theirs):
                side.take(digests[start : start + BATCH])
        runner.run(connection.close())
    return ours, theirs


def _copy(connection: psycopg.Connection, version: IndexVersion, run: int) -> Write:
    def write(digests: list[Digest]) -> None:
        with connection.cursor().copy(f"COPY bare ({COLUMNS}) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(TYPES)
            for each in digests:
                item = each.item
                copy.write_row((version.id, run, item.id, item.partition_at, item.content_hash, each.summary.key, HalfVector(each.vector)))

    register_vector(connection)
    return write


def _insert(connection: psycopg.Connection, version: IndexVersion, run: int) -> Write:
    def write(digests: list[Digest]) -> None:
        connection.execute(
            f"INSERT INTO bare ({COLUMNS}) SELECT %s, %s, * "
            "FROM unnest(%b::bigint[], %b::timestamptz[], %b::bytea[], %b::bytea[], %b::halfvec[])",
            [
                version.id,
                run,
                [each.item.id for each in digests],
                [each.item.partition_at for each in digests],
                [each.item.content_hash for each in digests],
                [each.summary.key for each in digests],
                [HalfVector(each.vector) for each in digests],
            ],
        )

    register_vector(connection)
    return write


async def _store(dsn: str, version: IndexVersion, run: int, digests: list[Digest]) -> None:
    async with open_database(dsn, size=1) as pool:
        for start in range(0, len(digests), BATCH):
            async with pool.connection() as connection:
                await store_digests(connection, version.id, digests[start : start + BATCH], run)


async def _complete(dsn: str) -> bool:
    async with open_database(dsn, size=1) as pool:
        return (await read_status(pool)).complete


async def _write(dsn: str, number: int) -> None:
    """One of the writers: its share of the chunks, each of which COPIES writers store, then batches until nothing is due."""
    chunks = [chunk for chunk in range(CHUNKS) for copy in range(COPIES) if (chunk + copy * 7) % WRITERS == number]
    shuffle = random.Random(number)
    async with open_database(dsn, size=1) as pool, worker(dsn) as lease_worker:
        version = await active_version(pool)
        assert version is not None
        run = await start_run(pool, "bench")
        for chunk in chunks:
            items = [_item(chunk * CHUNK_ITEMS + n, number) for n in range(1, CHUNK_ITEMS + 1)]
            shuffle.shuffle(items)
            await store_chunk(pool, Chunk(tuple(items)), run_id=run)
            await _digest_some(pool, version, lease_worker, run)
        while await _digest_some(pool, version, lease_worker, run):
            pass


def _item(number: int, writer: int) -> Item:
    """Texts differ by writer, and the later writer's is the newer one."""
    moment = MOMENT + timedelta(seconds=writer)
    return parse_item(
        {
            "repo": "bench/repository",
            "number": number,
            "type": "issue",
            "title": f"Title {number} of {writer}",
            "updated_at": moment.isoformat(),
            "created_at": MOMENT.isoformat(),
        }
    )


async def _digest_some(pool: Pool, version: IndexVersion, lease_worker: int, run: int) -> bool:
    """A batch, if anything is due. What another writer changes meanwhile is due again, and somebody takes it."""
    batch = await claim(pool, version.id, lease_worker)
    if batch is None:
        return False
    vectors = World().queries(len(batch.items), seed=batch.token)
    digests = [
        Digest(item, Summary(hashlib.sha256(item.title.encode()).digest(), item.title, "model"), vector)
        for item, vector in zip(batch.items, vectors, strict=True)
    ]
    await finish_batch(pool, version, batch, digests, [], [], run_id=run)
    return True


if __name__ == "__main__":
    asyncio.run(_write(sys.argv[1], int(sys.argv[2])))
