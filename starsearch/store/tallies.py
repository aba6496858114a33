"""Kept counts of the state of every item, by block of 128 items, and the full count that checks them (migration 0009).

Whoever changes a row marks its block in the same transaction; folding counts the marked blocks again. A reader adds up the kept
counts of the other blocks and counts the marked ones itself, so what it says is exact at its snapshot, folded or not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Json

from starsearch.store.database import Pool
from starsearch.store.statements import statement

FOLD_LOCK = 7_827_112_003  # one folds at a time; whoever comes second has nothing left to do
EXAMPLES = 3  # items named of each repository of a gap
REPOSITORIES = 5  # named of each gap
BLOCKS = 100  # looked into for examples of each state: 12,800 items, a fifth of a second

COUNTS = """
WITH dirty AS MATERIALIZED (SELECT DISTINCT block FROM tally_dirty)
SELECT version_id, state, sum(items)::bigint AS items FROM (
  SELECT version_id, state, items FROM tally WHERE block NOT IN (SELECT block FROM dirty)
  UNION ALL
  SELECT s.version_id, s.state, s.items FROM dirty CROSS JOIN LATERAL (
    SELECT version_id, state, count(*) AS items FROM item_state WHERE id = ANY (ids_of(dirty.block)) GROUP BY 1, 2
  ) AS s
) AS every_block GROUP BY 1, 2
"""
RECOUNT = """
INSERT INTO tally (block, version_id, state, items)
SELECT b.block, s.version_id, s.state, s.items FROM unnest(%s::bigint[]) AS b (block) CROSS JOIN LATERAL (
  SELECT version_id, state, count(*) AS items FROM item_state WHERE id = ANY (ids_of(b.block)) GROUP BY 1, 2
) AS s
"""
Counted = dict[tuple[int, str], int]  # (version id, 0 for none; state): items


@dataclass(frozen=True)
class GapItem:
    """One item that is not where it should be, of `total` items of its repository in this state."""

    version_id: int
    state: str
    repository: str
    address: str
    total: int


@dataclass(frozen=True)
class Reconciliation:
    """A full count. differences: {version_id, state, kept, counted} where the kept counts were wrong; empty when all were right."""

    counted_at: datetime
    items: int
    differences: list[dict[str, Any]]
    seconds: float


async def fold(pool: Pool) -> int:
    """Count the marked blocks again; returns how many. 0 where somebody else is at it, or where this role may not write."""
    try:
        async with pool.connection() as connection:
            row = await (await connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [FOLD_LOCK])).fetchone()
            return await _fold(connection) if row and row[0] else 0
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        return 0


async def _fold(connection: AsyncConnection) -> int:
    """Marks first, counts after: a change that commits between the two leaves a mark that is still there."""
    cursor = await connection.execute("DELETE FROM tally_dirty RETURNING block")
    blocks = sorted({block for (block,) in await cursor.fetchall()})
    if blocks:
        await connection.execute("DELETE FROM tally WHERE block = ANY (%s)", [blocks])
        await connection.execute(RECOUNT, [blocks])
    return len(blocks)


async def read_counts(connection: AsyncConnection) -> Counted:
    """Exact at the transaction's snapshot."""
    cursor = await connection.execute(COUNTS)
    return {(version, state): items for version, state, items in await cursor.fetchall()}


async def read_gap_items(connection: AsyncConnection, version_ids: Sequence[int], *, every_one: bool = False) -> list[GapItem]:
    """Items in a state that is a gap: the first of the repositories with most of them, or every one."""
    limits = {"repositories": REPOSITORIES, "examples": EXAMPLES, "blocks": BLOCKS}
    async with connection.cursor(row_factory=class_row(GapItem)) as cursor:
        parameters = {"versions": [0, *version_ids]} | (dict.fromkeys(limits) if every_one else limits)
        await cursor.execute(statement("gap_items"), parameters)
        return await cursor.fetchall()


async def reconcile(pool: Pool) -> Reconciliation:
    """Count every item, compare with the kept counts, correct them, and write down what was found."""
    started = time.monotonic()
    async with pool.connection() as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        try:
            async with connection.transaction():
                kept = await read_counts(connection)
                cursor = await connection.execute("SELECT version_id, state, count(*) FROM item_state GROUP BY 1, 2")
                counted = {(version, state): items for version, state, items in await cursor.fetchall()}
                differences = [
                    {
                        "version_id": version,
                        "state": state,
                        "kept": kept.get((version, state), 0),
                        "counted": counted.get((version, state), 0),
                    }
                    for version, state in sorted(kept.keys() | counted.keys())
                    if kept.get((version, state), 0) != counted.get((version, state), 0)
                ]
                items = sum(number for (version, _), number in counted.items() if version == 0)
                seconds = time.monotonic() - started
                row = await (
                    await connection.execute(
                        "INSERT INTO reconciliation (items, differences, seconds) VALUES (%s, %s, %s) RETURNING counted_at",
                        [items, Json(differences), seconds],
                    )
                ).fetchone()
                if differences:
                    await connection.execute(
                        "INSERT INTO tally_dirty SELECT block FROM tally UNION SELECT DISTINCT block_of(id) FROM item_state"
                    )
        finally:
            await connection.set_isolation_level(None)
    assert row is not None
    await fold(pool)
    return Reconciliation(row[0], items, differences, seconds)


async def last_reconciliation(connection: AsyncConnection) -> Reconciliation | None:
    async with connection.cursor(row_factory=class_row(Reconciliation)) as cursor:
        await cursor.execute("SELECT counted_at, items, differences, seconds FROM reconciliation ORDER BY id DESC LIMIT 1")
        return await cursor.fetchone()


async def forget_old_measurements(pool: Pool) -> None:
    """Latencies and recalls are for looking back over a few weeks, and full counts over a year."""
    async with pool.connection() as connection:
        await connection.execute("DELETE FROM latency WHERE finished_at < now() - interval '30 days'")
        await connection.execute("DELETE FROM recall WHERE measured_at < now() - interval '1 year'")
        await connection.execute("DELETE FROM reconciliation WHERE counted_at < now() - interval '1 year'")
