"""The followed list: replaced as a whole, in one transaction, with who came and who went written down.

A repository comes at rank `top` or better and stays down to `top` x 1.05, so that the ones at the edge do not come and go every day.
Two refreshes, and whoever else changes names, wait for each other (NAMES_LOCK).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from psycopg import AsyncConnection

from starsearch.errors import StarsearchError
from starsearch.models import RepositoryFacts
from starsearch.store.database import Pool
from starsearch.store.repositories import NAMES_LOCK, ids_by_name, store_facts

CHUNK = 5_000  # repositories of one statement
SHORTEST = 0.5  # of what is followed; a search that gives less is not believed

T = TypeVar("T")


@dataclass(frozen=True)
class NamedRepository:
    """A repository of a file: GitHub has not been asked who it is."""

    full_name: str
    stars: int


Entry = RepositoryFacts | NamedRepository
Ranked = tuple[int, Entry]


@dataclass(frozen=True)
class Place:
    """A followed repository as it is, or was, in the list."""

    rank: int | None
    stars: int | None


@dataclass(frozen=True)
class Refreshed:
    """repositories: how many are followed now."""

    repositories: int
    came: int
    went: int


def last_rank(top: int) -> int:
    """Of a repository that is followed already."""
    return top + top // 20


async def refresh_ranking(
    pool: Pool, host: str, entries: Sequence[Entry], *, top: int, source: str, shortest: float = SHORTEST
) -> Refreshed:
    """Follow these, the best first. `shortest`: what share of the list it replaces it must at least reach.

    Raises StarsearchError for a list that is too short; then the old one stays in force.
    """
    async with pool.connection() as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [NAMES_LOCK])
        known = await _known(connection, host)
        _refuse_short(len(entries), min(top, len(known)), shortest)
        ranked = list(enumerate(entries[: last_rank(top)], 1))
        ranked = ranked[:top] + _followed_already(ranked[top:], known)
        ids = await _store(connection, host, [entry for _, entry in ranked])
        after: dict[int, Place] = {}
        for (rank, entry), repository in zip(ranked, ids, strict=True):
            after.setdefault(repository, Place(rank, entry.stars))
        before = await _followed(connection, host)
        await _follow(connection, {repository: place for repository, place in after.items() if before.get(repository) != place})
        await _leave(connection, before.keys() - after.keys())
        return await _record(connection, before, after, source=source)


async def missing_names(pool: Pool, host: str, entries: Sequence[RepositoryFacts], *, limit: int) -> list[str]:
    """The followed repositories that are not among these, the best first: the list has lost them, or whoever read it has."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT full_name FROM repository r WHERE followed AND host = %s AND gone_at IS NULL AND node_id IS NOT NULL "
            "AND NOT EXISTS (SELECT FROM unnest(%s::text[]) AS listed (node_id) WHERE listed.node_id = r.node_id) ORDER BY rank LIMIT %s",
            [host, [entry.node_id for entry in entries], limit],
        )
        return [name for (name,) in await cursor.fetchall()]


async def _known(connection: AsyncConnection, host: str) -> dict[str, str | None]:
    """Node ids of what is followed, by lower-case name; None where only the name is known."""
    cursor = await connection.execute("SELECT lower(full_name), node_id FROM repository WHERE followed AND host = %s", [host])
    return dict(await cursor.fetchall())


def _refuse_short(number: int, followed: int, shortest: float) -> None:
    if number < shortest * followed:
        raise StarsearchError(
            f"the new list has only {number:,} repositories, {followed:,} were to be expected: it is not believed, and the old one stays "
            "in force. If it is right, take it from a file: `starsearch rank --from FILE.csv`"
        )


def _followed_already(entries: Sequence[Ranked], known: Mapping[str, str | None]) -> list[Ranked]:
    nodes = set(known.values())

    def is_followed(entry: Entry) -> bool:
        name = entry.full_name.lower()
        if isinstance(entry, NamedRepository):
            return name in known
        return entry.node_id in nodes or (name in known and known[name] is None)

    return [(rank, entry) for rank, entry in entries if is_followed(entry)]


async def _store(connection: AsyncConnection, host: str, entries: Sequence[Entry]) -> list[int]:
    """The entries' ids in their order; new repositories are added."""
    by_node: dict[str, int] = {}
    for facts in _chunks([entry for entry in entries if isinstance(entry, RepositoryFacts)]):
        by_node |= await store_facts(connection, host, facts)
    by_name: dict[str, int] = {}
    for named in _chunks([entry for entry in entries if isinstance(entry, NamedRepository)]):
        found = await ids_by_name(connection, {(host, entry.full_name.lower()): entry.full_name for entry in named})
        by_name |= {name: repository for (_, name), repository in found.items()}
    return [by_node[entry.node_id] if isinstance(entry, RepositoryFacts) else by_name[entry.full_name.lower()] for entry in entries]


async def _followed(connection: AsyncConnection, host: str) -> dict[int, Place]:
    cursor = await connection.execute("SELECT id, rank, stars FROM repository WHERE followed AND host = %s", [host])
    return {repository: Place(rank, stars) for repository, rank, stars in await cursor.fetchall()}


async def _follow(connection: AsyncConnection, places: Mapping[int, Place]) -> None:
    for chunk in _chunks(sorted(places)):
        await connection.execute(
            "UPDATE repository r SET followed = true, rank = p.rank, stars = p.stars "
            "FROM unnest(%s::bigint[], %s::integer[], %s::integer[]) AS p (id, rank, stars) WHERE r.id = p.id",
            [chunk, [places[repository].rank for repository in chunk], [places[repository].stars for repository in chunk]],
        )


async def _leave(connection: AsyncConnection, repositories: set[int]) -> None:
    await connection.execute("UPDATE repository SET followed = false, rank = NULL WHERE id = ANY (%s)", [sorted(repositories)])


async def _record(connection: AsyncConnection, before: Mapping[int, Place], after: Mapping[int, Place], *, source: str) -> Refreshed:
    """Who came with the new rank, who went with the last one."""
    came = [(repository, "came", place) for repository, place in after.items() if repository not in before]
    went = [(repository, "went", place) for repository, place in before.items() if repository not in after]
    counts = Refreshed(len(after), len(came), len(went))
    cursor = await connection.execute(
        "INSERT INTO ranking (source, repositories, came, went) VALUES (%s, %s, %s, %s) RETURNING id",
        [source, counts.repositories, counts.came, counts.went],
    )
    (ranking,) = await cursor.fetchone() or (None,)
    changes = came + went
    await connection.execute(
        "INSERT INTO ranking_change (ranking_id, repository_id, change, rank, stars) "
        "SELECT %s, * FROM unnest(%s::bigint[], %s::text[], %s::integer[], %s::integer[])",
        [
            ranking,
            [repository for repository, _, _ in changes],
            [change for _, change, _ in changes],
            [place.rank for _, _, place in changes],
            [place.stars for _, _, place in changes],
        ],
    )
    return counts


def _chunks(entries: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(entries), CHUNK):
        yield entries[start : start + CHUNK]
