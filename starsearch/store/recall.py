"""What measuring search reads and writes: titles to ask for, every vector compared, and how much of that search found."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from starsearch.models import Filters, IndexVersion
from starsearch.store.database import Pool
from starsearch.store.nearest import FILTERS, filter_parameters

# OFFSET 0 keeps the planner from walking the index, which is what is being checked
EXACT = """
SELECT 1 - distance FROM (
  SELECT d.embedding::halfvec({dimensions}) <=> %(vector)s AS distance
  FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
  WHERE {filters}
  OFFSET 0
) AS every_one ORDER BY distance LIMIT {limit}
"""


async def exact_similarities(pool: Pool, version: IndexVersion, vector: NDArray[Any], filters: Filters, *, limit: int) -> list[float]:
    """Cosines of the nearest `limit` items that pass the filters, nearest first, found by comparing every one."""
    numbers = {"version": version.id, "dimensions": version.dimensions, "limit": limit}
    statement = sql.SQL(EXACT).format(filters=sql.SQL(FILTERS), **{name: sql.Literal(number) for name, number in numbers.items()})
    async with pool.connection() as connection, connection.cursor() as cursor:
        asked = await filter_parameters(cursor, filters)
        await cursor.execute(statement, asked | {"vector": HalfVector(vector)})
        return [similarity for (similarity,) in await cursor.fetchall()]


async def sample_titles(pool: Pool, number: int) -> list[tuple[str, str]]:
    """(title, url) of up to so many random stored items, found by random ids: no scan, whatever the size."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            SELECT DISTINCT picked.title, picked.url
            FROM (SELECT min(id) AS first, max(id) AS last FROM item) AS ends
            CROSS JOIN generate_series(1, %s) AS n
            CROSS JOIN LATERAL (SELECT ends.first + floor(random() * (ends.last - ends.first + 1) + n * 0)::bigint AS id) AS dice
            CROSS JOIN LATERAL (
              SELECT title, url FROM item WHERE item.id >= dice.id AND stored_at IS NOT NULL AND tombstoned_at IS NULL
              ORDER BY item.id LIMIT 1
            ) AS picked
            """,
            [number],
        )
        return await cursor.fetchall()


async def record_recall(pool: Pool, version: IndexVersion, measured: Mapping[str, tuple[int, float]]) -> None:
    """measured: by class of filter, the number of questions and the recall."""
    async with pool.connection() as connection, connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO recall (version_id, filter, queries, recall) VALUES (%s, %s, %s, %s)",
            [(version.id, name, queries, recall) for name, (queries, recall) in measured.items()],
        )
