"""Flow runs at work: a row for each, and a session whose advisory lock says that it lives.

What Prefect says of a run can be wrong for ever (a killed pod that stays Running); a session of PostgreSQL ends with its process.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import psycopg

from starsearch.errors import DatabaseUnavailable
from starsearch.store.database import Pool, connect
from starsearch.store.leases import worker

KEPT = timedelta(days=30)


@asynccontextmanager
async def present(dsn: str, flow_run: UUID) -> AsyncIterator[None]:
    """Known to be at work for as long as the block lasts, through restarts of the database."""
    async with worker(dsn) as number:
        async with await connect(dsn) as connection:
            await connection.execute(
                "INSERT INTO flow_run (id, worker) VALUES (%s, %s) "
                "ON CONFLICT (id) DO UPDATE SET worker = excluded.worker, ended_at = NULL",
                [flow_run, number],
            )
        try:
            yield
        finally:
            await _leave(dsn, flow_run)


async def _leave(dsn: str, flow_run: UUID) -> None:
    """Only a note: without it the run is known to be gone all the same."""
    with contextlib.suppress(psycopg.Error, DatabaseUnavailable):
        async with await connect(dsn) as connection:
            await connection.execute("UPDATE flow_run SET ended_at = now() WHERE id = %s", [flow_run])


async def absent(pool: Pool, flow_runs: Sequence[UUID]) -> set[UUID]:
    """Those of them that are not at work: never begun, ended, or gone without a word."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT id FROM flow_run JOIN living_worker USING (worker) WHERE ended_at IS NULL AND id = ANY (%s)", [list(flow_runs)]
        )
        return set(flow_runs) - {row[0] for row in await cursor.fetchall()}


async def forget_old_runs(pool: Pool) -> None:
    """Rows of flow runs and shards that ended, or were left, a month ago."""
    async with pool.connection() as connection:
        await connection.execute(
            "DELETE FROM flow_run WHERE began_at < now() - %s AND worker NOT IN (SELECT worker FROM living_worker)", [KEPT]
        )
        await connection.execute("DELETE FROM shard WHERE ended_at < now() - %s", [KEPT])
