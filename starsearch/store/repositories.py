"""Repositories: who is who. Node id and database id identify one on GitHub; its name is an attribute that it may lose to another.

Names change hands: two repositories swap theirs, or a new one takes the name of a renamed one. So whoever holds a name that GitHub
now gives to another is first marked gone, in the same transaction, and comes back under its own new name when that is told.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from psycopg import AsyncConnection
from psycopg.rows import dict_row

from starsearch.models import ITEM_TYPES, Followed, RepositoryFacts
from starsearch.store.database import Pool
from starsearch.store.statements import statement
from starsearch.store.sweeps import unearth

NAMES_LOCK = 7_827_112_002  # names change one transaction at a time
GONE_CHECK = timedelta(days=1)
GONE_FOR_GOOD = timedelta(days=30)
ARCHIVED_CHECK = timedelta(days=7)

Name = tuple[str, str]  # host, lower-case full name


async def ids_by_name(connection: AsyncConnection, names: Mapping[Name, str]) -> dict[Name, int]:
    """Ids of living repositories; new ones are added under the given spelling. Sorted, so that two writers cannot deadlock."""
    keys = sorted(names)
    hosts, full_names = [host for host, _ in keys], [names[key] for key in keys]
    await connection.execute(
        "INSERT INTO repository (host, full_name) SELECT * FROM unnest(%s::text[], %s::text[]) "
        "ON CONFLICT (host, lower(full_name)) WHERE gone_at IS NULL DO NOTHING",
        [hosts, full_names],
    )
    cursor = await connection.execute(
        "SELECT host, lower(full_name), id FROM repository JOIN unnest(%s::text[], %s::text[]) AS wanted (h, n) "
        "ON host = h AND lower(full_name) = lower(n) WHERE gone_at IS NULL",
        [hosts, full_names],
    )
    return {(host, name): repository for host, name, repository in await cursor.fetchall()}


async def store_facts(
    connection: AsyncConnection, host: str, facts: Sequence[RepositoryFacts], *, names: Mapping[str, RepositoryFacts] | None = None
) -> dict[str, int]:
    """Write down what GitHub says of these repositories, all alive; returns their ids by node id.

    `names`: what they were asked by, which may be an older name of theirs that we know them by.
    """
    by_node = {fact.node_id: fact for fact in facts}
    if names:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [NAMES_LOCK])
        await _adopt(connection, host, [(fact.node_id, name) for name, fact in names.items()])
    known = await _known(connection, host, list(by_node))
    changed = [fact for node, fact in by_node.items() if node not in known or _differs(known[node], fact)]
    if changed:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [NAMES_LOCK])
        changed.sort(key=lambda fact: fact.node_id)
        await _free_names(connection, host, changed)
        back = [known[fact.node_id]["id"] for fact in changed if known.get(fact.node_id, {}).get("gone_at")]
        known |= await _upsert(connection, host, changed)
        await unearth(connection, back, ITEM_TYPES)
    return {node: row["id"] for node, row in known.items()}


async def _known(connection: AsyncConnection, host: str, nodes: list[str]) -> dict[str, dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "SELECT id, node_id, database_id, full_name, archived, stars, gone_at, failure FROM repository "
            "WHERE host = %s AND node_id = ANY (%s)",
            [host, nodes],
        )
        return {row["node_id"]: row for row in await cursor.fetchall()}


def _differs(row: Mapping[str, Any], fact: RepositoryFacts) -> bool:
    return (
        row["gone_at"] is not None
        or row["failure"] is not None
        or row["full_name"] != fact.full_name
        or (fact.archived is not None and row["archived"] != fact.archived)
        or (fact.database_id is not None and row["database_id"] != fact.database_id)
        or (fact.stars is not None and row["stars"] != fact.stars)
    )


async def _free_names(connection: AsyncConnection, host: str, facts: Sequence[RepositoryFacts]) -> None:
    """Whoever holds one of these names without being that repository loses it: merged where we knew only the name, else gone."""
    await connection.execute(
        "UPDATE repository r SET gone_at = now() FROM unnest(%s::text[], %s::text[]) AS f (node_id, full_name) "
        "WHERE r.host = %s AND lower(r.full_name) = lower(f.full_name) AND r.gone_at IS NULL AND r.node_id <> f.node_id",
        [[fact.node_id for fact in facts], [fact.full_name for fact in facts], host],
    )
    await _adopt(connection, host, [(fact.node_id, fact.full_name) for fact in facts])


async def _adopt(connection: AsyncConnection, host: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Rows of which only a name was known get the node id that GitHub has for it, or merge into the row that has it already."""
    arrays = [[node for node, _ in pairs], [name for _, name in pairs]]
    await connection.execute(
        """
        UPDATE repository r SET node_id = p.node_id FROM (
          SELECT DISTINCT ON (f.node_id) o.id, f.node_id FROM unnest(%s::text[], %s::text[]) AS f (node_id, full_name)
          JOIN repository o ON lower(o.full_name) = lower(f.full_name) AND o.gone_at IS NULL AND o.node_id IS NULL AND o.host = %s
          WHERE NOT EXISTS (SELECT FROM repository k WHERE k.host = o.host AND k.node_id = f.node_id)
          ORDER BY f.node_id, o.id
        ) AS p WHERE r.id = p.id
        """,
        [*arrays, host],
    )
    cursor = await connection.execute(
        "SELECT DISTINCT r.id, o.id FROM unnest(%s::text[], %s::text[]) AS f (node_id, full_name) "
        "JOIN repository r ON lower(r.full_name) = lower(f.full_name) AND r.gone_at IS NULL AND r.node_id IS NULL "
        "JOIN repository o ON o.host = r.host AND o.node_id = f.node_id WHERE r.host = %s",
        [*arrays, host],
    )
    for name_only, repository in await cursor.fetchall():
        await _merge(connection, name_only, repository)


async def _merge(connection: AsyncConnection, name_only: int, repository: int) -> None:
    """A repository known by an old name turns out to be one known by node id: its items move; where both have one, the crawled stays."""
    await connection.execute(
        "UPDATE item i SET repository_id = %(to)s WHERE repository_id = %(from)s "
        "AND NOT EXISTS (SELECT FROM item o WHERE o.repository_id = %(to)s AND o.number = i.number)",
        {"from": name_only, "to": repository},
    )
    await connection.execute(
        "UPDATE repository r SET followed = r.followed OR o.followed, rank = least(r.rank, o.rank), "
        "follow_from = least(r.follow_from, o.follow_from) FROM repository o WHERE o.id = %(from)s AND r.id = %(to)s",
        {"from": name_only, "to": repository},
    )
    await connection.execute("SELECT set_config('starsearch.removing', 'merge', true)")  # these items are not lost
    await connection.execute("DELETE FROM repository WHERE id = %s", [name_only])
    await connection.execute("SELECT set_config('starsearch.removing', '', true)")


async def _upsert(connection: AsyncConnection, host: str, facts: Sequence[RepositoryFacts]) -> dict[str, dict[str, Any]]:
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(
            "INSERT INTO repository AS r (host, node_id, full_name, database_id, archived, stars) "
            "SELECT %s, f.node_id, f.full_name, f.database_id, coalesce(f.archived, o.archived, false), f.stars "
            "FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::boolean[], %s::integer[]) "
            "AS f (node_id, full_name, database_id, archived, stars) LEFT JOIN repository o ON o.host = %s AND o.node_id = f.node_id "
            "ON CONFLICT (host, node_id) DO UPDATE SET full_name = excluded.full_name, archived = excluded.archived, "
            "database_id = coalesce(excluded.database_id, r.database_id), stars = coalesce(excluded.stars, r.stars), "
            "gone_at = NULL, checked_at = NULL, failure = NULL, not_before = CASE WHEN r.gone_at IS NULL THEN r.not_before END "
            "RETURNING id, node_id",
            [
                host,
                [fact.node_id for fact in facts],
                [fact.full_name for fact in facts],
                [fact.database_id for fact in facts],
                [fact.archived for fact in facts],
                [fact.stars for fact in facts],
                host,
            ],
        )
        return {row["node_id"]: row for row in await cursor.fetchall()}


async def mark_gone(connection: AsyncConnection, host: str, nodes: Sequence[str], *, at: datetime) -> None:
    """GitHub does not find these any more (deleted or made private): their items leave search with this transaction."""
    if nodes:
        await connection.execute(
            "UPDATE repository SET gone_at = coalesce(gone_at, %(at)s), checked_at = %(at)s, failure = NULL, "
            "followed = followed AND coalesce(gone_at, %(at)s) > %(at)s - %(patience)s "
            "WHERE host = %(host)s AND node_id = ANY (%(nodes)s)",
            {"host": host, "nodes": list(nodes), "at": at, "patience": GONE_FOR_GOOD},
        )


async def mark_failed(connection: AsyncConnection, failures: Mapping[int, str], *, missing_at: datetime | None = None) -> None:
    """Why these repositories were not swept; they join the next crawl; a day later if GitHub did not know them, at `missing_at`."""
    if failures:
        await connection.execute(
            "UPDATE repository r SET failure = f.reason, checked_at = coalesce(%s, checked_at) "
            "FROM unnest(%s::bigint[], %s::text[]) AS f (id, reason) WHERE r.id = f.id",
            [missing_at, list(failures), list(failures.values())],
        )


async def count_followed(pool: Pool, host: str) -> int:
    async with pool.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM repository WHERE followed AND host = %s", [host])).fetchone()
    return int(row[0]) if row else 0


async def unresolved(pool: Pool, host: str, *, now: datetime) -> dict[str, int]:
    """Followed repositories of which only the name is known; those that GitHub did not find are tried again after a day."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT full_name, id FROM repository WHERE followed AND host = %s AND node_id IS NULL AND gone_at IS NULL "
            "AND (checked_at IS NULL OR checked_at < %s) ORDER BY rank",
            [host, now - GONE_CHECK],
        )
        return dict(await cursor.fetchall())


async def nodes_by_name(pool: Pool, host: str, names: Sequence[str]) -> dict[str, str]:
    """Node ids of the living repositories among these, by lower-case name."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT lower(full_name), node_id FROM repository JOIN unnest(%s::text[]) AS wanted (n) ON lower(full_name) = lower(n) "
            "WHERE host = %s AND gone_at IS NULL AND node_id IS NOT NULL",
            [list(names), host],
        )
        return dict(await cursor.fetchall())


async def listed(pool: Pool, host: str, *, top: int | None = None, nodes: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """(node id, full name) of the given living repositories, or of the followed list down to rank `top`; by rank."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT node_id, full_name FROM repository WHERE host = %(host)s AND node_id IS NOT NULL AND gone_at IS NULL "
            "AND NOT purged_repository(host, full_name, node_id) "
            "AND CASE WHEN %(nodes)s::text[] IS NULL THEN followed AND (%(top)s::integer IS NULL OR rank <= %(top)s) "
            "ELSE node_id = ANY (%(nodes)s::text[]) END ORDER BY rank, id",
            {"host": host, "top": top, "nodes": None if nodes is None else list(nodes)},
        )
        return await cursor.fetchall()


async def to_sweep(pool: Pool, host: str, nodes: Sequence[str], *, since: datetime) -> list[Followed]:
    """The named repositories, those that waited longest first; one swept for the first time starts at `since`, which is written down."""
    async with pool.connection() as connection:
        cursor = await connection.execute(statement("to_sweep"), {"host": host, "since": since, "nodes": list(nodes)})
        rows = await cursor.fetchall()
    return [Followed(id, node, name, dict(zip(ITEM_TYPES, starts, strict=True))) for id, node, name, *starts in rows]
