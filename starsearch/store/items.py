"""Items into PostgreSQL: one chunk of a source, its rejections and its checkpoint in one transaction."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import class_row
from psycopg.types.json import Json

from starsearch.models import HASH_RECIPE, ITEM_TYPES, Checkpoint, Chunk, Comment, Counts, Item, Rejection
from starsearch.store.database import Pool, keep_plans
from starsearch.store.leases import LIVE
from starsearch.store.repositories import ids_by_name
from starsearch.store.statements import statement
from starsearch.store.sweeps import Reached, advance, end_failures, release_node_ids

Key = tuple[int, int]  # repository id, number
Row = tuple[int, Item]  # repository id, item


async def store_chunk(pool: Pool, chunk: Chunk, *, run_id: int, priority: int = LIVE) -> Counts:
    """Store a chunk whole or not at all; what changed is due in the same transaction. Replaying it changes nothing."""
    names = {(item.host, item.repo.lower()): item.repo for item in chunk.items}
    if chunk.checkpoint:
        names.setdefault((chunk.checkpoint.host, chunk.checkpoint.repo.lower()), chunk.checkpoint.repo)
    async with pool.connection() as connection:
        repositories = await ids_by_name(connection, names)
        rows = [(repositories[item.host, item.repo.lower()], item) for item in chunk.items]
        rows, others = (rows, []) if chunk.of_github else await _without_others_node_ids(connection, rows)
        rejections = [*chunk.rejections, *others]
        counts = await store_rows(connection, rows, rejections, name=chunk.name, run_id=run_id, priority=priority)
        if chunk.checkpoint and chunk.checkpoint.high_water:
            repository = repositories[chunk.checkpoint.host, chunk.checkpoint.repo.lower()]
            moment = chunk.checkpoint.high_water
            await advance(connection, [Reached(repository, kind, moment, moment) for kind in ITEM_TYPES])
    return counts


async def store_rows(
    connection: AsyncConnection, rows: list[Row], rejections: Sequence[Rejection], *, name: str, run_id: int, priority: int = LIVE
) -> Counts:
    """Store items whose repositories are known, in the caller's transaction."""
    await keep_plans(connection)
    rows, repeated = _without_repeated_node_ids(rows)
    rows, purged = await _without_purged(connection, rows)
    rejections = [*rejections, *repeated, *[Rejection(0, "an item that was purged")] * purged]
    await _store_rejections(connection, run_id, name, rejections)
    counts = Counts(items=len(rows), rejected=len(rejections))
    for layer in _layers(rows):
        changed = await _store_layer(connection, layer)
        counts.inserted += sum(inserted for _, inserted in changed)
        counts.updated += sum(not inserted for _, inserted in changed)
        await _make_due(connection, [item_id for item_id, _ in changed], priority)
    await end_failures(connection, [repository for repository, _ in rows], [item.number for _, item in rows])
    counts.unchanged = counts.items - counts.inserted - counts.updated
    return counts


async def read_checkpoint(pool: Pool, host: str, repo: str) -> Checkpoint:
    """How far both kinds of a repository are stored."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT min(swept_at) FROM checkpoint JOIN repository ON repository.id = repository_id "
            "WHERE host = %s AND lower(full_name) = lower(%s) AND gone_at IS NULL HAVING count(*) = %s",
            [host, repo, len(ITEM_TYPES)],
        )
        row = await cursor.fetchone()
    return Checkpoint(repo, row[0] if row else None, host)


def _layers(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows without a repeated key, in the order read: the same statement then decides every time which of two wins."""
    layers: list[dict[Key, Row]] = []
    for repository, item in rows:
        key = (repository, item.number)
        layer = next((layer for layer in layers if key not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[key] = (repository, item)
    return [list(layer.values()) for layer in layers]


async def _without_others_node_ids(connection: AsyncConnection, rows: list[Row]) -> tuple[list[Row], list[Rejection]]:
    """A slip in a file must not take the place of the living item whose node id it tells: only what comes of GitHub was transferred."""
    named = [(place, *row) for place, row in enumerate(rows) if row[1].node_id]
    if not named:
        return rows, []
    cursor = await connection.execute(
        "SELECT s.place, r.full_name, i.number FROM unnest(%s::integer[], %s::bigint[], %s::integer[], %s::text[], %s::text[]) "
        "AS s (place, repository_id, number, node_id, host) JOIN item i ON i.node_id = s.node_id "
        "JOIN repository r ON r.id = i.repository_id AND r.host = s.host "
        "WHERE (i.repository_id, i.number) <> (s.repository_id, s.number) AND i.tombstoned_at IS NULL AND r.gone_at IS NULL",
        [
            [place for place, _, _ in named],
            [repository for _, repository, _ in named],
            [item.number for _, _, item in named],
            [item.node_id for _, _, item in named],
            [item.host for _, _, item in named],
        ],
    )
    holders = {place: f"{full_name}#{number}" for place, full_name, number in await cursor.fetchall()}
    kept = [row for place, row in enumerate(rows) if place not in holders]
    return kept, [_node_id_of_another(rows[place][1], holder) for place, holder in sorted(holders.items())]


def _without_repeated_node_ids(rows: list[Row]) -> tuple[list[Row], list[Rejection]]:
    """Two items cannot be the same one: of a node id told twice the first keeps it."""
    holders: dict[tuple[str, str], Row] = {}
    kept, rejections = [], []
    for repository, item in rows:
        holding, holder = holders.setdefault((item.host, item.node_id), (repository, item)) if item.node_id else (repository, item)
        if (holding, holder.number) == (repository, item.number):
            kept.append((repository, item))
        else:
            rejections.append(_node_id_of_another(item, f"{holder.repo}#{holder.number}"))
    return kept, rejections


def _node_id_of_another(item: Item, holder: str) -> Rejection:
    """Without its line: a chunk does not tell of which line each item is."""
    reason = f"{item.repo}#{item.number}: node_id: {str(item.node_id)[:60]!r} is that of {holder}: correct it, or leave it out"
    return Rejection(0, reason)


async def _without_purged(connection: AsyncConnection, rows: list[Row]) -> tuple[list[Row], int]:
    """The rows that no purge names, without purged authors' comments; and how many others there were, which are forgotten."""
    await connection.execute("LOCK TABLE purge IN ROW SHARE MODE")  # until we end: see purges.py
    cursor = await connection.execute(
        "SELECT s.place - 1 FROM unnest(%s::bigint[], %s::integer[], %s::text[], %s::text[]) "
        "WITH ORDINALITY AS s (repository_id, number, node_id, author, place) JOIN repository r ON r.id = s.repository_id "
        "WHERE purged_item(r.host, r.full_name, r.node_id, s.number, s.node_id, s.author)",
        [
            [repository for repository, _ in rows],
            [item.number for _, item in rows],
            [item.node_id for _, item in rows],
            [item.author for _, item in rows],
        ],
    )
    purged = {place for (place,) in await cursor.fetchall()}
    await _forget(connection, [rows[place] for place in purged])
    kept = [row for place, row in enumerate(rows) if place not in purged]
    return await _without_purged_comments(connection, kept), len(purged)


async def _forget(connection: AsyncConnection, rows: Sequence[Row]) -> None:
    """A sweep wrote down that these exist before it could know whose they are."""
    if rows:
        await connection.execute("SELECT set_config('starsearch.removing', 'purge', true)")
        arrays = [[repository for repository, _ in rows], [item.number for _, item in rows]]
        await connection.execute(
            "DELETE FROM item i USING unnest(%s::bigint[], %s::text[]) AS s (repository_id, node_id) WHERE i.node_id = s.node_id "
            "AND (SELECT host FROM repository WHERE id = i.repository_id) = (SELECT host FROM repository WHERE id = s.repository_id)",
            [arrays[0], [item.node_id for _, item in rows]],
        )
        await connection.execute(
            "DELETE FROM item i USING unnest(%s::bigint[], %s::integer[]) AS s (repository_id, number) "
            "WHERE i.repository_id = s.repository_id AND i.number = s.number",
            arrays,
        )
        await connection.execute("SELECT set_config('starsearch.removing', '', true)")


async def _without_purged_comments(connection: AsyncConnection, rows: list[Row]) -> list[Row]:
    authors = {comment.author.lower() for _, item in rows for comment in item.comments or () if comment.author}
    cursor = await connection.execute(
        "SELECT lower(author) FROM purge WHERE author IS NOT NULL AND repository IS NULL AND lower(author) = ANY (%s)", [list(authors)]
    )
    purged = {author for (author,) in await cursor.fetchall()}
    if not purged:
        return rows

    def kept(item: Item) -> Item:
        comments = tuple(comment for comment in item.comments or () if (comment.author or "").lower() not in purged)
        return item.model_copy(update={"comments": comments}) if item.comments else item

    return [(repository, kept(item)) for repository, item in rows]


async def _store_layer(connection: AsyncConnection, rows: list[Row]) -> list[tuple[int, bool]]:
    rows = await _with_known_comments(connection, rows)
    named = [(repository, item.number, item.node_id) for repository, item in rows if item.node_id]
    if named:
        repositories, numbers, nodes = zip(*named, strict=True)
        await release_node_ids(connection, repositories, numbers, nodes)
    cursor = await connection.execute(
        statement("store_items"), {"rows": Json([_record(*row) for row in rows], dumps=_dumps), "recipe": HASH_RECIPE}
    )
    return [(item_id, inserted) for item_id, inserted in await cursor.fetchall()]


async def _with_known_comments(connection: AsyncConnection, rows: list[Row]) -> list[Row]:
    """A source that does not tell comments (None) must not take away those another one told: unknown loses to known."""
    silent = {(repository, item.number) for repository, item in rows if item.comments is None}
    async with connection.cursor(row_factory=class_row(_KnownComments)) as cursor:
        await cursor.execute(
            "SELECT repository_id, number, comments FROM item "
            "JOIN unnest(%s::bigint[], %s::integer[]) AS k (r, n) ON repository_id = r AND number = n WHERE comments <> '[]'",
            [[repository for repository, _ in silent], [number for _, number in silent]],
        )
        known = {(row.repository_id, row.number): row.comments for row in await cursor.fetchall()}
    return [
        (repository, item.model_copy(update={"comments": known[repository, item.number]}))
        if (repository, item.number) in known and item.comments is None
        else (repository, item)
        for repository, item in rows
    ]


class _KnownComments:
    def __init__(self, repository_id: int, number: int, comments: list[dict[str, Any]]) -> None:
        self.repository_id = repository_id
        self.number = number
        self.comments = tuple(Comment.model_validate(comment) for comment in comments)


def _record(repository: int, item: Item) -> dict[str, Any]:
    fields = {
        "type",
        "number",
        "node_id",
        "database_id",
        "state",
        "title",
        "body",
        "url",
        "author",
        "labels",
        "comments_count",
    }
    times = {"created_at", "updated_at", "closed_at", "merged_at"}
    return item.model_dump(mode="json", include=fields | times | {"excerpt"}) | {
        "repository_id": repository,
        "partition_at": item.partition_at and item.partition_at.isoformat(),
        "comments": [comment.model_dump(mode="json") for comment in item.comments or ()],
        "content_hash": item.content_hash.hex(),
    }


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


async def _make_due(connection: AsyncConnection, ids: Sequence[int], priority: int) -> None:
    if ids:
        await connection.execute(
            "DELETE FROM dead_letter x USING item i WHERE x.item_id = i.id AND i.id = ANY (%s) AND x.content_hash <> i.content_hash",
            [list(ids)],
        )
        await connection.execute(statement("due"), {"ids": list(ids), "priority": priority})


async def _store_rejections(connection: AsyncConnection, run_id: int, name: str, rejections: Sequence[Rejection]) -> None:
    if rejections:
        await connection.execute(
            "INSERT INTO rejection (run_id, source, line, reason) SELECT %s, %s, * FROM unnest(%s::integer[], %s::text[])",
            [run_id, name, [line for line, _ in rejections], [reason for _, reason in rejections]],
        )
