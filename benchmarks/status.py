"""Status at a million items: what it costs when nothing, and when 350 items changed since the counts were last folded.

A run folds when it ends, so what is left to count is what changed since: 350 items are five minutes of 40,000 repositories.
CPU seconds of PostgreSQL's backend and of this process together; wall time beside it. The vectors are short and have no index:
neither is read by status, and an index over a million takes hours to build.
"""

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import psutil
from psycopg import AsyncConnection

from benchmarks.measure import Figure
from starsearch.audit import read_status
from starsearch.embedded import postgres
from starsearch.models import IndexVersion
from starsearch.store.database import Pool, open_database
from starsearch.store.tallies import reconcile
from starsearch.store.versions import ensure_version

ITEMS, REPOSITORIES, CHANGED, ROUNDS = 1_000_000, 40_000, 350, 5
DIMENSIONS = 16
FILL = (
    "DROP INDEX digest_v1_embedding_idx, item_words",  # neither is read here
    "SET LOCAL session_replication_role = replica",  # without foreign keys it fills in half the time; the counts' triggers stay on
    "INSERT INTO repository (full_name) SELECT 'owner/r' || n FROM generate_series(1, %(repositories)s) AS n",
    "INSERT INTO item (repository_id, number, stored_at, type, state, title, url, content_hash, updated_at, created_at) "
    "SELECT 1 + n %% %(repositories)s, n, now(), 'issue', 'open', 'Title ' || n, 'https://github.com/owner/r/issues/' || n, "
    "sha256(n::text::bytea), now(), now() FROM generate_series(1, %(items)s) AS n",
    "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) "
    "SELECT content_hash, title, 'model', 'bench', 'v1', 0, 0 FROM item",
    "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
    "SELECT 1, id, partition_at, content_hash, content_hash, array_fill(0.25, ARRAY[%(dimensions)s])::vector::halfvec FROM item",
)


def status_seconds() -> list[Figure]:
    folder = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    folder.chmod(0o755)
    server = postgres.start(folder)
    try:
        return asyncio.run(_measure(server.dsn))
    finally:
        server.close()
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


async def _measure(dsn: str) -> list[Figure]:
    async with open_database(dsn, size=1) as pool:
        await ensure_version(pool, IndexVersion("bench", "", DIMENSIONS, "recipe", "bench", "v1"))
        async with pool.connection() as connection:
            for statement in FILL:
                await connection.execute(
                    statement.encode(),
                    {"items": ITEMS, "repositories": REPOSITORIES, "dimensions": DIMENSIONS} if "%" in statement else None,
                )
            await connection.execute("ANALYZE")
            backend = psutil.Process(connection.info.backend_pid)
        first = await _timed(pool, backend)
        quiet = min([await _timed(pool, backend) for _ in range(ROUNDS)])
        busy = []
        for turn in range(ROUNDS):
            async with pool.connection() as connection:
                await _change(connection, turn)
            busy.append(await _timed(pool, backend))
        started = time.perf_counter()
        differences = (await reconcile(pool)).differences
        full = time.perf_counter() - started
    print(f"first count of all {ITEMS:,}: {first[1]:.1f} s ({first[0]:.1f} CPU); full count and fold {full:.1f} s; {differences=}")
    return [
        Figure("store.status.seconds", round(quiet[1], 3), f"s at {ITEMS:,} items ({quiet[0]:.3f} CPU)", "<=", 1),
        Figure("store.status.cpu_seconds_after_changes", round(min(busy)[0], 3), f"CPU s after {CHANGED:,} changes all over", "<=", 1),
        Figure("store.status.differences", len(differences), "kept counts that a full count corrects", "==", 0),
    ]


async def _timed(pool: Pool, backend: psutil.Process) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one status."""
    cpu, started = _cpu(backend), time.perf_counter()
    await read_status(pool)
    return _cpu(backend) - cpu, time.perf_counter() - started


def _cpu(backend: psutil.Process) -> float:
    times = backend.cpu_times()
    return float(times.user + times.system) + time.process_time()


async def _change(connection: AsyncConnection, turn: int) -> None:
    """Items all over the table lose their digest: as many blocks to count again, and gaps to name."""
    await connection.execute("DELETE FROM digest WHERE item_id %% %s = %s", [ITEMS // CHANGED, turn])
