"""Leases: who digests which batch of due items.

A lease ends when its time has passed or when its worker is gone, whichever is first. A worker is a session of PostgreSQL that
holds an advisory lock; a killed process loses its session at once, so nobody waits for its leases to run out. (Such a session
needs a direct connection or a session pool, not PgBouncer's transaction mode.) Whatever a former holder still does is fenced
by the lease token: see digests.py.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from starsearch.errors import DatabaseUnavailable
from starsearch.models import DueItem
from starsearch.store.database import Pool, connect
from starsearch.store.statements import statement
from starsearch.store.tallies import fold

BATCH = 64  # items of one lease, one embedding request and one transaction
# Above the longest honest batch: two waves of requests at their timeout, retries included.
LEASE = timedelta(minutes=30)
LIVE, BACKFILL, BULK = 0, 1, 2  # priorities: what changed now, history asked for, what a new index version lacks (forgotten.sql)
WORKER_LOCK = 78_271  # first key of the workers' advisory locks; the second is the worker's number. The view living_worker knows it too
PING_SECONDS = 10.0  # a database that restarted knows a worker again after so long

log = logging.getLogger(__name__)

CLAIM = """
WITH picked AS (
  SELECT item_id FROM due WHERE version_id = %(version)s AND priority = %(priority)s AND due_at <= now()
  ORDER BY attempts, item_id LIMIT %(size)s FOR UPDATE SKIP LOCKED
), token AS (
  SELECT nextval('lease_token') AS token
), leased AS (
  UPDATE due SET lease_token = token, lease_worker = %(worker)s, due_at = now() + %(lease)s
  FROM picked, token WHERE due.version_id = %(version)s AND due.item_id = picked.item_id
  RETURNING due.item_id, lease_token, attempts
)
SELECT id, type, state, title, body, comments, content_hash, partition_at, attempts, lease_token, number,
  (SELECT full_name FROM repository WHERE repository.id = repository_id) AS repository
FROM leased JOIN item ON id = item_id ORDER BY id
"""


@dataclass(frozen=True)
class Batch:
    token: int
    items: list[DueItem]


@asynccontextmanager
async def worker(dsn: str) -> AsyncIterator[int]:
    """This process's number as a worker, alive for as long as the context is, through restarts of the database.

    Whoever asked while its session was gone has taken its leases; what it claims after that is its own again.
    """
    connection = await connect(dsn)
    cursor = await connection.execute("SELECT nextval('worker')::integer")
    row = await cursor.fetchone()
    assert row is not None
    await _live(connection, row[0])
    staying = asyncio.create_task(_stay_alive(dsn, row[0], connection))
    try:
        yield int(row[0])
    finally:
        staying.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await staying


async def _live(connection: AsyncConnection, number: int) -> None:
    await connection.execute("SELECT pg_advisory_lock(%s, %s)", [WORKER_LOCK, number])


async def _stay_alive(dsn: str, number: int, connection: AsyncConnection) -> None:
    try:
        while True:
            await asyncio.sleep(PING_SECONDS)
            try:
                if connection.closed:
                    connection = await connect(dsn)
                    await _live(connection, number)
                await connection.execute("SELECT 1")
            except (psycopg.Error, DatabaseUnavailable) as error:
                log.warning("the database does not answer; worker %d goes on and asks again: %s", number, error)
                await connection.close()
    finally:  # PostgreSQL ends a session a moment after its client has closed it; whoever asks next should not see us alive
        try:
            with contextlib.suppress(psycopg.Error):
                await connection.execute("SELECT pg_advisory_unlock_all()")
        finally:  # whoever waits for us may be cancelled a second time
            await connection.close()


async def find_due(pool: Pool) -> int:
    """Make due what is stored and neither digested, dead nor due; returns how many items that were."""
    await fold(pool)
    async with pool.connection() as connection:
        return (await connection.execute(statement("forgotten"))).rowcount


async def count_due(pool: Pool, version_id: int, *, priority: int = BULK) -> int:
    """How many items of that priority or a more urgent one are due, leased or waiting for another try."""
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM due WHERE version_id = %s AND priority <= %s", [version_id, priority])
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def exceeds_due(connection: AsyncConnection, items: int, *, priority: int) -> bool:
    """Whether more than so many are due at this priority or a more urgent one, in the version that serves. Counts no further."""
    cursor = await connection.execute(
        "SELECT count(*) > %(items)s FROM (SELECT FROM due WHERE version_id = (SELECT id FROM index_version WHERE status = 'active') "
        "AND priority <= %(priority)s LIMIT %(items)s + 1) AS found",
        {"items": items, "priority": priority},
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def release_dead(pool: Pool) -> int:
    """Hand back the leases of workers whose session is gone; returns how many items that were."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now() "
            "WHERE lease_worker IS NOT NULL AND lease_worker NOT IN (SELECT worker FROM living_worker)"
        )
        await connection.execute("DELETE FROM summary_lease WHERE expires_at < now() OR worker NOT IN (SELECT worker FROM living_worker)")
        await connection.execute(
            "UPDATE engine_call SET settled_at = now(), outcome = 'abandoned' WHERE settled_at IS NULL "
            "AND NOT EXISTS (SELECT FROM due WHERE due.lease_token = engine_call.lease_token)"
        )
        return cursor.rowcount


async def claim(pool: Pool, version_id: int, worker_number: int, *, size: int = BATCH, priority: int = BULK) -> Batch | None:
    """Lease up to `size` due items, all of one priority: the most urgent that has any, and none less urgent than `priority`.

    A live item in one batch with the backfill's would wait for all of theirs. Fresh ones come first. None where nothing is due now.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        for urgency in range(priority + 1):
            await cursor.execute(CLAIM, {"version": version_id, "priority": urgency, "size": size, "worker": worker_number, "lease": LEASE})
            if rows := await cursor.fetchall():
                tokens = {row.pop("lease_token") for row in rows}
                return Batch(tokens.pop(), [_due_item(row) for row in rows])
    return None


def _due_item(row: dict[str, Any]) -> DueItem:
    return DueItem(**row | {"comments": tuple(comment["body"] for comment in row["comments"])})


async def next_retry(pool: Pool, version_id: int, *, priority: int = BULK) -> datetime | None:
    """When the next item that failed before is due again; None where nothing waits."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT min(due_at) FROM due WHERE version_id = %s AND priority <= %s AND lease_token IS NULL", [version_id, priority]
        )
        row = await cursor.fetchone()
    return row[0] if row else None


async def give_back(connection: AsyncConnection, token: int) -> None:
    """End a lease without a result and without counting an attempt."""
    await connection.execute("UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now() WHERE lease_token = %s", [token])
