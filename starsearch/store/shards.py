"""Shards: what a parent dispatches, each to lease up to so many due items in a process of its own, and what became of them.

Which items a shard gets, its leases decide (leases.py); so a shard that is started twice, late, or after its parent gave it up does no
harm: it finds less to do, or nothing. What a parent asks is the database: how many items are due, and which shards are at work.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from psycopg import AsyncConnection
from psycopg.rows import class_row, dict_row

from starsearch.errors import StarsearchError
from starsearch.logs import about
from starsearch.models import Counts
from starsearch.store.database import Pool
from starsearch.store.statements import statement

PLAN_LOCK = 78_274  # an advisory lock: two parents must not fill the same free places
STARTS_WITHIN = timedelta(minutes=5)  # queue, scheduling and image included; one that comes later finds its work done, or does some
ATTEMPTS = 4
PAUSE = timedelta(seconds=20)  # before the second attempt, twice that before the third …: an API server is gone for a minute at times
NOT_STARTED = "it did not start"
GONE = "its process is gone"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A shard to start. key: the same for the same attempt, so that starting it twice starts one."""

    id: int
    parent: UUID
    number: int
    attempt: int
    size: int

    @property
    def key(self) -> str:
        return f"{self.parent}:{self.number}:{self.attempt}"


@dataclass(frozen=True)
class Outlook:
    """What a parent waits for. due: items due now or leased; retry_at: when those that failed are due again; open: shards, anybody's.

    begun: of the open ones; reporting: this parent's that have begun and not yet written down what they did.
    failures: why shards of this parent failed that had no later attempt; worn_out: those whose attempts are spent.
    """

    due: int
    retry_at: datetime | None
    open: int
    begun: int
    reporting: int
    failures: tuple[str, ...]
    worn_out: tuple[str, ...]


async def plan(pool: Pool, parent: UUID, version_id: int, *, priority: int, size: int, most: int) -> list[Shard]:
    """The shards to start now, written down: as many as what is due needs beyond those at work, and no more than `most` at once.

    Those of this parent that Prefect was perhaps not told of come again, under the same key.
    """
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Shard)) as cursor:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [PLAN_LOCK])
        await _end_lost(connection)
        await cursor.execute(
            statement("plan_shards"),
            {
                "parent": parent,
                "version": version_id,
                "priority": priority,
                "size": size,
                "most": most,
                "attempts": ATTEMPTS,
                "pause": PAUSE,
            },
        )
        return await cursor.fetchall()


async def _end_lost(connection: AsyncConnection) -> None:
    """Shards whose process is gone, that did not begin in time, or whose parent died between writing them down and starting them."""
    cursor = await connection.execute(
        "WITH gone AS (SELECT id FROM flow_run WHERE ended_at IS NOT NULL OR worker NOT IN (SELECT worker FROM living_worker)) "
        "UPDATE shard s SET ended_at = now(), failure = CASE WHEN s.began_at IS NULL THEN %(not_started)s ELSE %(gone)s END "
        "WHERE s.ended_at IS NULL AND CASE WHEN s.began_at IS NULL "
        "THEN s.dispatched_at < now() - %(within)s OR (s.flow_run IS NULL AND s.parent IN (SELECT id FROM gone)) "
        "ELSE NOT EXISTS (SELECT FROM flow_run f JOIN living_worker USING (worker) WHERE f.id = s.flow_run AND f.ended_at IS NULL) END "
        "RETURNING s.id, s.failure",
        {"not_started": NOT_STARTED, "gone": GONE, "within": STARTS_WITHIN},
    )
    for shard_id, failure in await cursor.fetchall():
        with about(shard=shard_id):
            log.warning("shard lost: %s", failure)


async def look(pool: Pool, parent: UUID, version_id: int, *, priority: int) -> Outlook:
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement("outlook"), {"parent": parent, "version": version_id, "priority": priority, "attempts": ATTEMPTS})
        row = await cursor.fetchone()
    assert row is not None
    return Outlook(**row | {"failures": tuple(row["failures"]), "worn_out": tuple(row["worn_out"])})


async def told(pool: Pool, shard: Shard, flow_run: UUID) -> None:
    """Prefect knows of it, as this flow run."""
    async with pool.connection() as connection:
        await connection.execute("UPDATE shard SET flow_run = %s WHERE id = %s AND began_at IS NULL", [flow_run, shard.id])


async def waiting(pool: Pool, parent: UUID) -> dict[UUID, int]:
    """The flow runs of a parent's shards that have not begun, with the shard's number."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT flow_run, id FROM shard WHERE parent = %s AND flow_run IS NOT NULL AND began_at IS NULL AND ended_at IS NULL", [parent]
        )
        return dict(await cursor.fetchall())


async def give_up(pool: Pool, shard_id: int, reason: str) -> None:
    """It will not begin, as far as anyone knows; should it begin all the same, it is at work again."""
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE shard SET ended_at = now(), failure = %s WHERE id = %s AND began_at IS NULL AND ended_at IS NULL", [reason, shard_id]
        )


@asynccontextmanager
async def at_work(pool: Pool, shard_id: int, flow_run: UUID, run_id: int) -> AsyncIterator[None]:
    """From a shard's beginning to its end, whichever: the flow run must be present (presence.py), or it is taken for gone."""
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE shard SET began_at = now(), flow_run = %s, run_id = %s, ended_at = NULL, failure = NULL WHERE id = %s",
            [flow_run, run_id, shard_id],
        )
    failure: str | None = None
    try:
        yield
    except BaseException as error:
        failure = str(error) if isinstance(error, StarsearchError) else type(error).__name__
        raise
    finally:
        async with pool.connection() as connection:
            await connection.execute("UPDATE shard SET ended_at = now(), failure = %s WHERE id = %s", [failure, shard_id])


async def runs_of(connection: AsyncConnection, whose: int | UUID) -> list[int]:
    """The runs of a parent's shards. Whose: the parent's flow run; or a run, which counts with the other shards of its parent."""
    own = whose if isinstance(whose, int) else None
    cursor = await connection.execute(
        "SELECT run_id FROM shard WHERE run_id IS NOT NULL "
        "AND parent IN (SELECT %(parent)s::uuid UNION SELECT parent FROM shard WHERE run_id = %(run)s::bigint) "
        "UNION SELECT run FROM (SELECT %(run)s::bigint AS run) AS own WHERE run IS NOT NULL",
        {"run": own, "parent": None if isinstance(whose, int) else whose},
    )
    return [run for (run,) in await cursor.fetchall()]


async def shard_counts(pool: Pool, parent: UUID) -> Counts:
    """What the shards of a parent have done, those that failed included; their dollars and seconds are the sum of their own."""
    total = Counts()
    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT r.counts FROM shard s JOIN run r ON r.id = s.run_id WHERE s.parent = %s", [parent])
        for (counts,) in await cursor.fetchall():
            total.add(Counts(**counts or {}))
    return total
