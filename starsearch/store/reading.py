"""Reading for people: one item with its texts, hits by their ids, and what was done hour by hour."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import class_row, dict_row

from starsearch.models import Hit
from starsearch.store.database import Pool

ITEM = """
SELECT
  i.url, r.full_name AS repo, i.number, i.type, i.state, i.author, i.labels, i.title, i.body, i.excerpt, i.comments_count,
  s.text AS summary, s.source AS summary_source, i.created_at, i.updated_at, i.closed_at, i.merged_at
FROM item i
JOIN repository r ON r.id = i.repository_id
LEFT JOIN index_version v ON v.status = 'active'
LEFT JOIN digest d ON d.version_id = v.id AND d.item_id = i.id
LEFT JOIN summary s ON s.key = d.summary_key
WHERE lower(r.full_name) = lower(%(repo)s) AND i.number = %(number)s AND r.host = %(host)s AND r.gone_at IS NULL
  AND i.stored_at IS NOT NULL AND i.tombstoned_at IS NULL
"""
# of the version that serves now, which need not be the one that ranked them
HITS = """
SELECT
  i.id, i.url, r.full_name AS repo, i.number, i.type, i.state, i.author, i.labels, i.title, s.text AS summary,
  s.source AS summary_source, i.created_at, i.updated_at, i.closed_at
FROM item i
JOIN repository r ON r.id = i.repository_id AND r.gone_at IS NULL
JOIN index_version v ON v.status = 'active'
JOIN digest d ON d.version_id = v.id AND d.item_id = i.id
JOIN summary s ON s.key = d.summary_key
WHERE i.id = ANY (%(ids)s) AND i.tombstoned_at IS NULL
ORDER BY array_position(%(ids)s, i.id)
"""
HOURS = """
SELECT hour, coalesce(digested, 0) AS digested, coalesce(tokens, 0) AS tokens, coalesce(stored, 0) AS stored
FROM
  generate_series(date_trunc('hour', now()) - make_interval(hours => %(hours)s - 1), now(), '1 hour') AS hours (hour)
  LEFT JOIN (
    SELECT
      date_trunc('hour', settled_at) AS hour, sum(items) FILTER (WHERE purpose = 'embedding' AND outcome = 'ok') AS digested,
      sum(coalesce(prompt_tokens, 0) + coalesce(completion_tokens, 0)) AS tokens
    FROM engine_call WHERE settled_at > now() - make_interval(hours => %(hours)s) GROUP BY 1
  ) AS engine USING (hour)
  LEFT JOIN (
    SELECT date_trunc('hour', finished_at) AS hour, sum((counts->>'inserted')::bigint + (counts->>'updated')::bigint) AS stored
    FROM run WHERE finished_at > now() - make_interval(hours => %(hours)s) GROUP BY 1
  ) AS runs USING (hour)
ORDER BY hour
"""


@dataclass(frozen=True)
class Hour:
    """What was done within one hour (UTC): items stored anew, items digested, tokens read and written by engines."""

    hour: datetime
    digested: int
    tokens: int
    stored: int


async def read_item(pool: Pool, address: dict[str, Any]) -> dict[str, Any] | None:
    """address: host, repo, number. None for an item that is not stored, or that GitHub does not have any more."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(ITEM, address)
        return await cursor.fetchone()


async def hits_of_items(pool: Pool, scores: dict[int, tuple[float, dict[str, float | None]]]) -> list[Hit]:
    """Hits of a list ranked before, in its order. scores: of each item id, the score and its parts. What is gone is left out."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(HITS, {"ids": list(scores)})
        return [Hit(**row, score=scores[row["id"]][0], scores=scores[row["id"]][1]) async for row in cursor]


async def read_hours(pool: Pool, hours: int) -> list[Hour]:
    """The last `hours` hours, oldest first, the current one included."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Hour)) as cursor:
        await cursor.execute(HOURS, {"hours": hours})
        return await cursor.fetchall()
