"""Runs: what was started, what it did, what it had to reject."""

from typing import Any

from psycopg.types.json import Json

from starsearch.models import Counts
from starsearch.store.database import Pool


async def start_run(pool: Pool, kind: str) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("INSERT INTO run (kind) VALUES (%s) RETURNING id", [kind])
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def finish_run(pool: Pool, run_id: int, counts: Counts, github: dict[str, Any] | None = None, *, failure: str | None = None) -> None:
    """`github`: what GitHub charged the run (points, requests, splits, waits). failure: why it ended early."""
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE run SET finished_at = now(), counts = %s, github = %s, failure = %s WHERE id = %s",
            [Json(counts.as_dict()), github and Json(github), failure, run_id],
        )


async def rejections(pool: Pool, run_id: int, *, limit: int) -> list[tuple[str, int, str]]:
    """(source, line, reason) of a run's first rejected lines."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT source, line, reason FROM rejection WHERE run_id = %s ORDER BY ctid LIMIT %s", [run_id, limit]
        )
        return [(source, line, reason) for source, line, reason in await cursor.fetchall()]
