"""Which index version serves: what another one lacks, and the swap, in one transaction.

Search reads the active version's id with each question and never waits for a swap. Whoever finishes a batch of the active version
takes a shared lock first; the swap takes it alone, so that nothing becomes searchable in the old version alone while the new one
catches up.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from psycopg import AsyncConnection, sql
from psycopg.types.json import Json

from starsearch.errors import StarsearchError
from starsearch.models import IndexVersion
from starsearch.store.database import Pool

SWAP_LOCK = 78_273  # first key of the advisory locks; the second is the version's id
WAITING = "waiting"

# Found in the version that serves, and not in the other one, or digested as it is in the one alone.
LOST = sql.SQL("(d.item_id IS NULL OR (serving.content_hash = i.content_hash AND d.content_hash <> i.content_hash))")
MISSING = sql.SQL("""
SELECT CASE
    WHEN x.item_id IS NOT NULL THEN 'dead letter: ' || x.reason
    WHEN u.item_id IS NOT NULL THEN 'waiting'
    ELSE 'forgotten'
  END AS reason, count(*) AS count
FROM digest serving
JOIN item i ON i.id = serving.item_id AND i.tombstoned_at IS NULL
LEFT JOIN digest d ON d.version_id = %(version)s AND d.item_id = serving.item_id AND d.partition_at = serving.partition_at
LEFT JOIN due u ON u.version_id = %(version)s AND u.item_id = serving.item_id
LEFT JOIN dead_letter x ON x.version_id = %(version)s AND x.item_id = serving.item_id
WHERE serving.version_id = %(serving)s
  AND i.repository_id NOT IN (SELECT id FROM repository WHERE gone_at IS NOT NULL)
  AND {lost}
GROUP BY 1 ORDER BY 2 DESC
""").format(lost=LOST)
LAGGING = sql.SQL("""
SELECT count(*) FILTER (WHERE late.is_due), count(*) FILTER (WHERE NOT late.is_due)
FROM (
  SELECT item_id, true AS is_due FROM due WHERE version_id = %(version)s
  UNION ALL
  SELECT item_id, false FROM dead_letter WHERE version_id = %(version)s
) AS late
JOIN item i ON i.id = late.item_id AND i.tombstoned_at IS NULL
JOIN digest serving ON serving.version_id = %(serving)s AND serving.item_id = i.id
LEFT JOIN digest d ON d.version_id = %(version)s AND d.item_id = i.id
WHERE {lost}
  AND i.repository_id NOT IN (SELECT id FROM repository WHERE gone_at IS NOT NULL)
""").format(lost=LOST)


async def missing(pool: Pool, version: IndexVersion, serving: IndexVersion) -> dict[str, int]:
    """What search would lose: items found in the serving version whose digest in the other is absent or older, by reason."""
    async with pool.connection() as connection:
        cursor = await connection.execute(MISSING, {"version": version.id, "serving": serving.id})
        return dict(await cursor.fetchall())


async def lagging(pool: Pool, version: IndexVersion, serving: IndexVersion) -> tuple[int, int]:
    """How many of those are due, and how many are dead letters: quick, because it looks at nothing else."""
    async with pool.connection() as connection:
        row = await (await connection.execute(LAGGING, {"version": version.id, "serving": serving.id})).fetchone()
    return row or (0, 0)


async def pass_swap(connection: AsyncConnection, version: IndexVersion) -> None:
    """Wait while another version takes over from this one; until the transaction ends, that one waits."""
    await connection.execute("SELECT pg_advisory_xact_lock_shared(%s, %s)", [SWAP_LOCK, version.id])


@asynccontextmanager
async def held(pool: Pool, version: IndexVersion) -> AsyncIterator[AsyncConnection]:
    """A transaction during which nobody else finishes a batch of this version. Searching, storing and claiming go on."""
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SWAP_LOCK, version.id])
        yield connection


async def swap(connection: AsyncConnection, version: IndexVersion, serving: IndexVersion, gate: Mapping[str, Any]) -> None:
    """Let `version` serve instead of `serving`, in the caller's transaction."""
    demoted = await connection.execute("UPDATE index_version SET status = 'shadow' WHERE id = %s AND status = 'active'", [serving.id])
    promoted = await connection.execute(
        "UPDATE index_version SET status = 'active', activated_at = now(), gate = %s WHERE id = %s AND status = 'shadow'",
        [Json(gate), version.id],
    )
    if (demoted.rowcount, promoted.rowcount) != (1, 1):
        raise StarsearchError("another swap came first: see `starsearch versions list`")
