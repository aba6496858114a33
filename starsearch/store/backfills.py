"""Backfills under way: which lists of which repositories are read, and which are not."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Json

from starsearch.models import Followed, ItemType
from starsearch.store.database import Pool


@dataclass(frozen=True)
class Backfill:
    """A range: items updated at `since` or later and created up to `until`."""

    id: int
    since: datetime
    until: datetime


async def begin(pool: Pool, request: dict[str, Any], *, since: datetime, until: datetime) -> Backfill:
    """The unfinished backfill of the same request, with the times it began with, or a new one."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "INSERT INTO backfill AS b (request, since, until) VALUES (%s, %s, %s) "
            "ON CONFLICT (request) WHERE finished_at IS NULL DO UPDATE SET request = b.request "
            "RETURNING id, since, until",
            [Json(request), since, until],
        )
        row = await cursor.fetchone()
    assert row is not None
    return Backfill(*row)


async def add_parts(pool: Pool, backfill: int, nodes: Sequence[str], kinds: Sequence[ItemType]) -> None:
    async with pool.connection() as connection:
        await connection.execute(
            "INSERT INTO backfill_part (backfill_id, repository_id, kind) SELECT %s, r.id, kind FROM repository r "
            "CROSS JOIN unnest(%s::text[]) AS kinds (kind) WHERE r.node_id = ANY (%s) ON CONFLICT DO NOTHING",
            [backfill, list(kinds), list(nodes)],
        )


async def open_parts(pool: Pool, backfill: Backfill) -> list[tuple[Followed, ItemType]]:
    """The lists still to read, starting at `since`; the most starred repositories first."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT r.id, r.node_id, r.full_name, p.kind FROM backfill_part p JOIN repository r ON r.id = p.repository_id "
            "WHERE p.backfill_id = %s AND p.done_at IS NULL AND r.gone_at IS NULL ORDER BY r.rank NULLS FIRST, r.id, p.kind",
            [backfill.id],
        )
        return [(Followed(id, node, name, {kind: backfill.since}), kind) for id, node, name, kind in await cursor.fetchall()]


async def finish_parts(connection: AsyncConnection, backfill: int, parts: Sequence[tuple[int, ItemType]]) -> None:
    """These lists are read and all their items stored; in the transaction that stores the last of them."""
    if parts:
        await connection.execute(
            "UPDATE backfill_part p SET done_at = now() FROM unnest(%s::bigint[], %s::text[]) AS d (repository_id, kind) "
            "WHERE p.backfill_id = %s AND p.repository_id = d.repository_id AND p.kind = d.kind",
            [[repository for repository, _ in parts], [kind for _, kind in parts], backfill],
        )


async def finish(pool: Pool, backfill: int) -> bool:
    """End it where nothing is left to read; returns whether it ended."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "UPDATE backfill b SET finished_at = now() WHERE id = %s AND NOT EXISTS (SELECT FROM backfill_part p "
            "JOIN repository r ON r.id = p.repository_id WHERE p.backfill_id = b.id AND p.done_at IS NULL AND r.gone_at IS NULL)",
            [backfill],
        )
        return cursor.rowcount == 1
