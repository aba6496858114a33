"""Flow runs at work: a row for each, and a session whose advisory lock says that it lives.

What Prefect says of a run can be wrong for ever (a killed pod that stays Running); a session of PostgreSQL ends with its process.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import psycopg

from starsearch.errors import DatabaseUnavailable
from starsearch.store.database import Pool, connect
from starsearch.store.leases import lock_as_worker

PING_SECONDS = 10.0  # a database that restarted knows us again after so long
KEPT = timedelta(days=30)

log = logging.getLogger(__name__)


@asynccontextmanager
async def present(dsn: str, flow_run: UUID) -> AsyncIterator[None]:
    """Known to be at work for as long as the block lasts, through restarts of the database."""
    connection = await connect(dsn)
    await _enter(connection, flow_run)
    staying = asyncio.create_task(_stay(dsn, flow_run, connection))
    try:
        yield
    finally:
        staying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await staying
        await _leave(dsn, flow_run)


async def _enter(connection: psycopg.AsyncConnection, flow_run: UUID) -> None:
    number = await lock_as_worker(connection)
    await connection.execute(
        "INSERT INTO flow_run (id, worker) VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET worker = excluded.worker, ended_at = NULL",
        [flow_run, number],
    )


async def _stay(dsn: str, flow_run: UUID, connection: psycopg.AsyncConnection) -> None:
    try:
        while True:
            await asyncio.sleep(PING_SECONDS)
            try:
                if connection.closed:
                    connection = await connect(dsn)
                    await _enter(connection, flow_run)
                await connection.execute("SELECT 1")
            except (psycopg.Error, DatabaseUnavailable) as error:
                log.warning("the database does not answer; this run goes on and asks again: %s", error)
                await connection.close()
    finally:
        await connection.close()


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
