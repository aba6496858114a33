"""Purge: a repository, an author or an item removed for good, and remembered, so that nothing brings it back.

What is remembered is written down first, under a lock that waits for every transaction that is storing items and that the next one
waits for: so no item can slip in behind. Then rows are deleted in small transactions; a killed purge goes on when it is asked for
again, and `maintain` goes on with it too.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.errors import ForeignKeyViolation
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Json

from starsearch.models import Comment, Item
from starsearch.store.database import Pool
from starsearch.store.ledger import forget_items
from starsearch.store.statements import statement
from starsearch.store.tallies import fold

CHUNK = 500  # items of one transaction
TRIES = 5

MATCHING = """
FROM item i JOIN repository r ON r.id = i.repository_id
WHERE r.host = %(host)s AND CASE
  WHEN %(repository)s::text IS NULL THEN lower(i.author) = lower(%(author)s)
  ELSE i.repository_id = ANY (%(repositories)s) AND (%(number)s::integer IS NULL OR i.number = %(number)s)
END
"""
WITH_COMMENTS = """
FROM item i JOIN repository r ON r.id = i.repository_id
WHERE r.host = %(host)s AND i.comments <> '[]'
  AND EXISTS (SELECT FROM jsonb_array_elements(i.comments) AS c WHERE lower(c ->> 'author') = lower(%(author)s))
"""


@dataclass(frozen=True)
class Target:
    """One of: a repository, an item of it, an author (whose comments on other items go too)."""

    host: str
    repository: str | None = None
    number: int | None = None
    author: str | None = None


@dataclass
class Purged:
    """Rows removed, or with a dry run rows that would be. `comments`: items that lost comments and are digested again."""

    items: int = 0
    digests: int = 0
    summaries: int = 0
    dead_letters: int = 0
    comments: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


async def plan(pool: Pool, target: Target) -> Purged:
    """What a purge would remove; changes nothing. `summaries`: those that no other item uses."""
    async with pool.connection() as connection:
        parameters = await _parameters(connection, target)
        cursor = await connection.execute(
            f"WITH gone AS MATERIALIZED (SELECT i.id {MATCHING}), "  # noqa: S608  our own text
            "digests AS MATERIALIZED (SELECT d.summary_key FROM digest d JOIN gone ON gone.id = d.item_id) "
            "SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM digests), "
            "(SELECT count(DISTINCT summary_key) FROM digests WHERE NOT EXISTS (SELECT FROM digest d "
            "  WHERE d.summary_key = digests.summary_key AND d.item_id NOT IN (SELECT id FROM gone))), "
            "(SELECT count(*) FROM dead_letter x JOIN gone ON gone.id = x.item_id), "
            f"(SELECT count(*) {WITH_COMMENTS} AND i.id NOT IN (SELECT id FROM gone))".encode(),
            parameters,
        )
        row = await cursor.fetchone()
    assert row is not None
    return Purged(*row)


async def purge(pool: Pool, target: Target, progress: Callable[[int], None] = lambda _: None) -> Purged:
    """Remember the target and remove everything of it; returns what this call removed."""
    done = Purged()
    remembered = await _remember(pool, target)
    while await _remove_items(pool, target, done):
        progress(done.items)
    if target.author:
        await _remove_comments(pool, target, done)
    done.summaries = await _remove_summaries(pool)
    async with pool.connection() as connection:
        if target.repository and target.number is None:
            await _removing(connection)
            await connection.execute("DELETE FROM repository WHERE id = ANY (%(repositories)s)", await _parameters(connection, target))
        await connection.execute("UPDATE purge SET finished_at = now() WHERE id = ANY (%s)", [remembered])
    await fold(pool)
    return done


async def purged_names(pool: Pool, host: str, names: Sequence[str]) -> list[str]:
    """Those of these repositories that were purged."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT n FROM unnest(%(names)s::text[]) AS n LEFT JOIN repository r "
            "ON r.host = %(host)s AND lower(r.full_name) = lower(n) AND r.gone_at IS NULL WHERE purged_repository(%(host)s, n, r.node_id)",
            {"names": list(names), "host": host},
        )
        return [name for (name,) in await cursor.fetchall()]


async def unfinished(pool: Pool) -> list[Target]:
    async with pool.connection() as connection, connection.cursor(row_factory=class_row(Target)) as cursor:
        await cursor.execute("SELECT DISTINCT host, repository, number, author FROM purge WHERE finished_at IS NULL ORDER BY 1, 2, 3, 4")
        return await cursor.fetchall()


async def _remember(pool: Pool, target: Target) -> list[int]:
    """One row for each repository of that name; one without a node id where none is known yet."""
    async with pool.connection() as connection:
        # storing transactions hold ROW SHARE from before they look here until they end; a backup's lock is not in the way
        await connection.execute("LOCK TABLE purge IN EXCLUSIVE MODE")
        cursor = await connection.execute(
            """
            INSERT INTO purge AS p (host, repository, number, author, repository_node_id, item_node_id)
            SELECT %(host)s, %(repository)s, %(number)s, %(author)s, r.node_id, i.node_id
            FROM (SELECT) AS once
            LEFT JOIN repository r ON r.host = %(host)s AND lower(r.full_name) = lower(%(repository)s)
            LEFT JOIN item i ON i.repository_id = r.id AND i.number = %(number)s
            ON CONFLICT (host, lower(coalesce(repository, '')), coalesce(repository_node_id, ''), coalesce(number, 0),
              lower(coalesce(author, ''))) DO UPDATE SET item_node_id = coalesce(excluded.item_node_id, p.item_node_id), finished_at = NULL
            RETURNING id
            """,
            asdict(target),
        )
        return [row[0] for row in await cursor.fetchall()]


async def _parameters(connection: AsyncConnection, target: Target) -> dict[str, Any]:
    cursor = await connection.execute(
        "SELECT id FROM repository WHERE host = %s AND lower(full_name) = lower(%s)", [target.host, target.repository]
    )
    return asdict(target) | {"repositories": [row[0] for row in await cursor.fetchall()], "chunk": CHUNK}


async def _remove_items(pool: Pool, target: Target, done: Purged) -> int:
    """The next items with all that hangs on them; returns how many."""
    async with pool.connection() as connection:
        await _removing(connection)
        parameters = await _parameters(connection, target)
        cursor = await connection.execute(f"SELECT i.id {MATCHING} ORDER BY i.id LIMIT %(chunk)s FOR UPDATE OF i".encode(), parameters)
        ids = [row[0] for row in await cursor.fetchall()]
        done.dead_letters += (await connection.execute("DELETE FROM dead_letter WHERE item_id = ANY (%s)", [ids])).rowcount
        done.digests += (await connection.execute("DELETE FROM digest WHERE item_id = ANY (%s)", [ids])).rowcount
        await forget_items(connection, ids)
        await connection.execute("DELETE FROM item WHERE id = ANY (%s)", [ids])  # due and fetch_failure go with it
        await connection.execute(
            "DELETE FROM lost_item l USING repository r WHERE r.id = l.repository_id AND r.id = ANY (%(repositories)s) "
            "AND (%(number)s::integer IS NULL OR l.number = %(number)s)",
            parameters,
        )
    done.items += len(ids)
    return len(ids)


async def _remove_comments(pool: Pool, target: Target, done: Purged) -> None:
    """The author's comments under other people's items, which are digested again without them."""
    last, found = 0, True
    while found:
        async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(
                f"SELECT i.id, r.full_name AS repo, i.number, i.type, i.title, i.body, i.state, i.comments {WITH_COMMENTS} "
                "AND i.id > %(last)s ORDER BY i.id LIMIT %(chunk)s FOR UPDATE OF i".encode(),
                asdict(target) | {"last": last, "chunk": CHUNK},
            )
            rows = await cursor.fetchall()
            await _store_comments(connection, [_without(row, target.author or "") for row in rows])
        found = bool(rows)
        last = rows[-1]["id"] if rows else last
        done.comments += len(rows)


async def _store_comments(connection: AsyncConnection, items: Sequence[tuple[int, Item]]) -> None:
    ids = [item_id for item_id, _ in items]
    comments = [Json([comment.model_dump(mode="json") for comment in item.comments or ()]) for _, item in items]
    await connection.execute(
        "UPDATE item i SET comments = s.comments, content_hash = s.content_hash "
        "FROM unnest(%s::bigint[], %s::jsonb[], %s::bytea[]) AS s (id, comments, content_hash) WHERE i.id = s.id",
        [ids, comments, [item.content_hash for _, item in items]],
    )
    await connection.execute(statement("due"), {"ids": ids, "priority": 0})


def _without(row: dict[str, Any], author: str) -> tuple[int, Item]:
    comments = tuple(Comment.model_validate(comment) for comment in row["comments"])
    kept = tuple(comment for comment in comments if (comment.author or "").lower() != author.lower())
    return row["id"], Item.model_construct(
        repo=row["repo"], number=row["number"], type=row["type"], title=row["title"], body=row["body"], state=row["state"], comments=kept
    )


async def _remove_summaries(pool: Pool) -> int:
    """Summaries that no digest uses: the purged items' own, and those of earlier texts, which nobody can tell apart."""
    removed = 0
    for _ in range(TRIES):
        try:
            async with pool.connection() as connection:
                cursor = await connection.execute(
                    "DELETE FROM summary s WHERE NOT EXISTS (SELECT FROM digest d WHERE d.summary_key = s.key)"
                )
                removed += cursor.rowcount
                break
        except ForeignKeyViolation:  # a worker has just found a use for one
            continue
    return removed


async def _removing(connection: AsyncConnection) -> None:
    """Tell the triggers that this transaction removes items on purpose."""
    await connection.execute("SELECT set_config('starsearch.removing', 'purge', true)")
