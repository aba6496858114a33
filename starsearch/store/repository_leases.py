"""Leases of repositories: crawls at the same time share the followed list instead of each reading all of it.

A crawl sweeps what nobody has swept since it began. A lease ends in the transaction that completes its repository, fenced by its
token; it ends too when the crawl that holds it is gone (its session's advisory lock, see leases.py) or when its time has passed.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg import AsyncConnection

from starsearch.models import ITEM_TYPES, Followed
from starsearch.store.database import Pool
from starsearch.store.repositories import ARCHIVED_CHECK, GONE_CHECK
from starsearch.store.statements import statement

log = logging.getLogger(__name__)
BATCH = 500  # repositories of one lease: ten sweeps
LEASE = timedelta(hours=1)  # a crawl that waits for GitHub's next hour still holds what it was about to ask
LOCKED_SECONDS, LOCKED_NAP_SECONDS = 60.0, 0.1


@dataclass(frozen=True)
class Sweeper:
    """One crawl of the followed list. began: by the database's clock; now: by GitHub's; since: where a first sweep starts."""

    host: str
    worker: int
    began: datetime
    now: datetime
    since: datetime


async def begin_sweep(pool: Pool, host: str, worker: int, *, now: datetime, since: datetime) -> Sweeper:
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT clock_timestamp()")).fetchone()
    assert row is not None
    return Sweeper(host, worker, row[0], now, since)


async def claim_repositories(pool: Pool, sweeper: Sweeper, *, size: int = BATCH) -> list[Followed]:
    """The next repositories to sweep; where none are free, those of crawls that died. Empty: the list is done, or in living hands.

    What another transaction locks for a moment (a new ranking, another crawl that frees what the dead held) is waited for: a crawl that
    passed it over would end without it. What stays locked joins the next crawl.
    """
    patient_until = time.monotonic() + LOCKED_SECONDS
    while not (claimed := await _claim(pool, sweeper, size)):
        if await release_dead_sweeps(pool):
            continue
        _, free = await _count_unswept(pool, sweeper)
        if not free:
            break
        if time.monotonic() > patient_until:
            log.warning("%d repositories are locked by another transaction: they join the next crawl", free)
            break
        await asyncio.sleep(LOCKED_NAP_SECONDS)
    return claimed


async def _claim(pool: Pool, sweeper: Sweeper, size: int) -> list[Followed]:
    async with pool.connection() as connection:
        cursor = await connection.execute(statement("claim_repositories"), vars(sweeper) | {"size": size, "lease": LEASE})
        rows = await cursor.fetchall()
    return [Followed(id, node, name, dict(zip(ITEM_TYPES, starts, strict=True)), lease=lease) for id, node, name, *starts, lease in rows]


async def count_unswept(pool: Pool, sweeper: Sweeper) -> int:
    """How many repositories the list still holds for this crawl, the leased ones too."""
    every, _ = await _count_unswept(pool, sweeper)
    return every


async def _count_unswept(pool: Pool, sweeper: Sweeper) -> tuple[int, int]:
    """(all, those that nobody leases)"""
    async with pool.connection() as connection:
        row = await (await connection.execute(statement("unswept"), vars(sweeper))).fetchone()
    assert row is not None
    return row[0], row[1]


async def end_leases(connection: AsyncConnection, repositories: Sequence[Followed], *, at: datetime) -> int:
    """These are swept, or have failed for now: nobody at work now takes them again. Returns how many leases were still ours."""
    leased = [repository for repository in repositories if repository.lease]
    if not leased:
        return 0
    cursor = await connection.execute(
        "UPDATE repository r SET released_at = clock_timestamp(), lease_token = NULL, lease_worker = NULL, lease_until = NULL, "
        "not_before = CASE WHEN r.gone_at IS NOT NULL THEN %(at)s + %(gone)s WHEN r.failure IS NOT NULL THEN NULL "
        "WHEN r.archived THEN %(at)s + %(archived)s END "
        "FROM unnest(%(ids)s::bigint[], %(tokens)s::bigint[]) AS l (id, token) WHERE r.id = l.id AND r.lease_token = l.token",
        {
            "at": at,
            "gone": GONE_CHECK,
            "archived": ARCHIVED_CHECK,
            "ids": [repository.id for repository in leased],
            "tokens": [repository.lease for repository in leased],
        },
    )
    return cursor.rowcount


async def give_back_repositories(pool: Pool, worker: int) -> int:
    """What a crawl leased and did not get to; returns how many repositories that are."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "UPDATE repository SET lease_token = NULL, lease_worker = NULL, lease_until = NULL WHERE lease_worker = %s", [worker]
        )
        return cursor.rowcount


async def release_dead_sweeps(pool: Pool) -> int:
    """Free what crawls hold that are gone or too late; returns how many repositories that are."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "UPDATE repository SET lease_token = NULL, lease_worker = NULL, lease_until = NULL WHERE lease_token IS NOT NULL "
            "AND (lease_until < now() OR lease_worker NOT IN (SELECT worker FROM living_worker))"
        )
        return cursor.rowcount
