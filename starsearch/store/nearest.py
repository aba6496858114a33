"""The nearest vectors of one version, by its index or by looking at every one; and titles to ask for."""

from typing import Any

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql

from starsearch.models import IndexVersion
from starsearch.store.database import Pool


async def nearest(pool: Pool, version: IndexVersion, vector: NDArray[Any], *, limit: int, exact: bool = False) -> list[int]:
    """Item ids, nearest first."""
    statement = sql.SQL("SELECT item_id FROM digest WHERE version_id = {version} ORDER BY embedding::halfvec({n}) <=> %s LIMIT {limit}")
    async with pool.connection() as connection:
        if exact:
            await connection.execute("SET LOCAL enable_indexscan = off")
        cursor = await connection.execute(
            statement.format(version=sql.Literal(version.id), n=sql.Literal(version.dimensions), limit=sql.Literal(limit)),
            [HalfVector(vector)],
        )
        return [row[0] for row in await cursor.fetchall()]


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
