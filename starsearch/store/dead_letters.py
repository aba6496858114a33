"""Dead letters: items whose attempts are spent, of the fetch and of the digest, and how they come back."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row

from starsearch.store.database import Pool
from starsearch.store.statements import statement


@dataclass(frozen=True)
class DeadLetter:
    """stage: fetch, summarize or embed. `detail` is what GitHub or the engine said. index_version is None for the fetch."""

    item_id: int
    version_id: int | None
    stage: str
    reason: str
    detail: str
    attempts: int
    dead_since: datetime
    index_version: str | None
    url: str
    repo: str
    number: int
    title: str | None


@dataclass(frozen=True)
class Choice:
    """Which dead letters: all that match everything given. error: a part of "reason: detail", without case."""

    stage: str | None = None
    error: str | None = None
    address: dict[str, Any] | None = None  # host, repo and number of one item

    def parameters(self) -> dict[str, Any]:
        address = self.address or {"host": None, "repo": None, "number": None}
        return {"stage": self.stage, "error": self.error and self.error.lower(), "limit": None} | address


async def find_dead_letters(pool: Pool, choice: Choice, *, limit: int | None = None) -> list[DeadLetter]:
    """The newest first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(DeadLetter)) as cursor:
        await cursor.execute(statement("dead_letters"), choice.parameters() | {"limit": limit})
        return await cursor.fetchall()


async def count_dead_letters(pool: Pool, choice: Choice) -> list[tuple[str, str, int]]:
    """(stage, reason, how many), the most frequent first."""
    query = b"SELECT stage, reason, count(*) FROM (" + statement("dead_letters") + b") AS d GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    async with pool.connection() as connection:
        cursor = await connection.execute(query, choice.parameters())
        return [(stage, reason, count) for stage, reason, count in await cursor.fetchall()]


async def retry_dead_letters(pool: Pool, choice: Choice) -> dict[str, int]:
    """Give them all their attempts again, in one statement; how many the next digest takes up, and how many the next crawl."""
    query = b"WITH chosen AS MATERIALIZED (" + statement("dead_letters") + b")" + RETRY
    async with pool.connection() as connection:
        row = await (await connection.execute(query, choice.parameters())).fetchone()
    assert row is not None
    return {"digest": row[0], "fetch": row[1]}


RETRY = b""", back AS (
  DELETE FROM dead_letter x USING chosen c WHERE x.version_id = c.version_id AND x.item_id = c.item_id RETURNING x.version_id, x.item_id
), made_due AS (
  INSERT INTO due (version_id, item_id) SELECT version_id, item_id FROM back ORDER BY 1, 2
  ON CONFLICT (version_id, item_id) DO UPDATE SET attempts = 0
), fetched AS (
  DELETE FROM fetch_failure f USING chosen c WHERE c.stage = 'fetch' AND f.item_id = c.item_id RETURNING f.item_id
)
SELECT (SELECT count(*) FROM back), (SELECT count(*) FROM fetched)
"""
