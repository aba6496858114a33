"""What a database holds, beside the stand-in's own record: item by item, and no mark ahead of its items.

The record is `World.record()`, or `Control.record()` of a stand-in in another process.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

COMPARED = ("node_id", "type", "title", "body", "state", "author", "labels", "created_at", "updated_at", "closed_at", "merged_at")
TIMES = ("created_at", "updated_at", "closed_at", "merged_at")

Row = Mapping[str, Any]
Key = tuple[str, int]  # full name, number


@dataclass
class Comparison:
    """missed: not stored, or stored as it was before. false_tombstones: buried and alive. left: stored and not there any more."""

    missed: list[Key] = field(default_factory=list)
    false_tombstones: list[Key] = field(default_factory=list)
    left: list[Key] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.missed or self.false_tombstones or self.left)


async def compare(connection: AsyncConnection, record: Iterable[Row], *, whole: bool = True) -> Comparison:
    """`whole`: the record holds every item there is, so that nothing else may be stored."""
    stored = {(row["repo"], row["number"]): row for row in await stored_items(connection)}
    found = Comparison()
    for row in record:
        key = (row["repo"], row["number"])
        held = stored.pop(key, None)
        if held and held["buried"]:
            found.false_tombstones.append(key)
        elif held is None or any(held[name] != row[name] for name in COMPARED):
            found.missed.append(key)
    if whole:
        found.left = [key for key, row in stored.items() if not row["buried"]]
    return found


async def stored_items(connection: AsyncConnection) -> list[dict[str, Any]]:
    """Items whose text is stored, with times as GitHub writes them; buried: a tombstone, or its repository is gone."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT r.full_name AS repo, number, i.node_id, i.database_id, type, title, body, state, author, labels, comments_count, "
            "created_at, updated_at, closed_at, merged_at, content_hash, tombstoned_at IS NOT NULL OR r.gone_at IS NOT NULL AS buried "
            "FROM item i JOIN repository r ON r.id = i.repository_id WHERE stored_at IS NOT NULL ORDER BY lower(r.full_name), number"
        )
        rows = await cursor.fetchall()
    return [row | {name: as_github(row[name]) for name in TIMES} for row in rows]


async def marks_ahead(connection: AsyncConnection, record: Iterable[Row], *, since: datetime) -> list[Key]:
    """Items that a checkpoint claims to be stored as they are, and that are not. `since`: where the first crawl began."""
    stored = {(row["repo"], row["number"]): row["updated_at"] for row in await stored_items(connection)}
    cursor = await connection.execute("SELECT full_name, kind, swept_at FROM checkpoint JOIN repository ON repository.id = repository_id")
    marks = {(repo, kind): as_github(swept_at) for repo, kind, swept_at in await cursor.fetchall()}
    first = as_github(since)
    return [
        (row["repo"], row["number"])
        for row in record
        if first <= row["updated_at"] < marks.get((row["repo"], row["type"]), "")
        and stored.get((row["repo"], row["number"])) != row["updated_at"]
    ]


def as_github(moment: datetime | None) -> str | None:
    return moment and f"{moment:%Y-%m-%dT%H:%M:%SZ}"
