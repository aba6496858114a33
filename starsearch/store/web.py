"""The web process's own tables: keys, feedback, and the secret its replicas share."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row, dict_row

from starsearch.store.database import Pool

KEY_PREFIX = "starsearch_"  # so that scanners of leaked secrets, and people, know what it is

QUESTIONS = """
SELECT query AS question, array_agg(url ORDER BY votes DESC, id) AS urls
FROM (
  SELECT f.query, i.id, i.url, sum(CASE WHEN f.useful THEN 1 ELSE -1 END) AS votes
  FROM feedback f JOIN item i ON i.id = f.item_id
  WHERE i.tombstoned_at IS NULL AND i.url IS NOT NULL
  GROUP BY f.query, i.id, i.url
) AS judged
WHERE votes > 0
GROUP BY query ORDER BY query
"""


@dataclass(frozen=True)
class ApiKey:
    """A key as it is stored; the key itself is known to its holder only."""

    id: int
    name: str
    requests_per_minute: int | None
    created_at: datetime
    revoked_at: datetime | None


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


async def create_key(pool: Pool, name: str, requests_per_minute: int | None) -> str:
    """A new key, told this once; raises psycopg's UniqueViolation where the name is taken."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO api_key (name, sha256, requests_per_minute) VALUES (%s, %s, %s)", [name, _hashed(key), requests_per_minute]
        )
    return key


async def revoke_key(pool: Pool, name: str) -> bool:
    async with pool.connection() as connection:
        done = await connection.execute("UPDATE api_key SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL", [name])
        return done.rowcount > 0


async def list_keys(pool: Pool) -> list[ApiKey]:
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(ApiKey)) as cursor:
        await cursor.execute("SELECT id, name, requests_per_minute, created_at, revoked_at FROM api_key ORDER BY id")
        return await cursor.fetchall()


async def find_key(pool: Pool, key: str) -> ApiKey | None:
    """The living key that this is; None for any other text."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(ApiKey)) as cursor:
        await cursor.execute(
            "SELECT id, name, requests_per_minute, created_at, revoked_at FROM api_key WHERE sha256 = %s AND revoked_at IS NULL",
            [_hashed(key)],
        )
        return await cursor.fetchone()


async def cursor_key(pool: Pool) -> bytes:
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT secret FROM web_secret")).fetchone()
    assert row is not None
    return bytes(row[0])


async def store_feedback(pool: Pool, feedback: dict[str, Any]) -> bool:
    """feedback: about, query, mode, index_version, useful, url (None for an answer). False where there is no such item."""
    async with pool.connection() as connection:
        await connection.execute("SET TRANSACTION READ WRITE")  # a login as the reader role begins read-only
        done = await connection.execute(
            """
            INSERT INTO feedback (about, query, mode, index_version, item_id, useful)
            SELECT %(about)s, %(query)s, %(mode)s, %(index_version)s, found.id, %(useful)s
            FROM (
              SELECT id FROM item WHERE url = %(url)s AND tombstoned_at IS NULL AND %(about)s = 'hit'
              UNION ALL SELECT NULL WHERE %(about)s = 'answer'
            ) AS found
            LIMIT 1
            """,
            feedback,
        )
        return done.rowcount > 0


async def read_questions(pool: Pool) -> list[dict[str, Any]]:
    """Questions whose right items people pointed out: {question, url, also_ok}, as `evaluate` reads them."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(QUESTIONS)
        return [{"question": row["question"], "url": row["urls"][0], "also_ok": row["urls"][1:]} async for row in cursor]
