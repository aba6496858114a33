"""Checks that go round all items, a part each time."""

from dataclasses import dataclass
from datetime import datetime

from psycopg.rows import class_row

from starsearch.store.database import Pool


@dataclass(frozen=True)
class Checked:
    """A stored open item as we know it."""

    id: int
    node_id: str
    updated_at: datetime | None
    comments_count: int | None
    repository: int
    repository_node: str


async def next_items(pool: Pool, name: str, *, host: str, limit: int) -> list[Checked]:
    """The open items behind the last one checked; at the end, none, and the next call begins again at the first."""
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Checked)) as cursor:
        await cursor.execute(
            "SELECT i.id, i.node_id, i.updated_at, i.comments_count, r.id AS repository, r.node_id AS repository_node "
            "FROM item i JOIN repository r ON r.id = i.repository_id "
            "WHERE i.id > coalesce((SELECT item_id FROM rotation WHERE name = %s), 0) AND i.state = 'open' AND i.node_id IS NOT NULL "
            "AND i.stored_at IS NOT NULL AND i.tombstoned_at IS NULL AND r.host = %s AND r.node_id IS NOT NULL AND r.gone_at IS NULL "
            "ORDER BY i.id LIMIT %s",
            [name, host, limit],
        )
        items = await cursor.fetchall()
    if not items:
        await turn(pool, name, 0)
    return items


async def turn(pool: Pool, name: str, item: int) -> None:
    """The rotation has got to this item."""
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO rotation (name, item_id) VALUES (%s, %s) "
            "ON CONFLICT (name) DO UPDATE SET item_id = excluded.item_id, turned_at = now()",
            [name, item],
        )
