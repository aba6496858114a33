"""Which digests are nearest to a vector, by one of two paths.

*index*: a walk of the HNSW graph that goes on until enough rows have passed the filters. *exact*: every row that passes the filters
is compared; where they let few through, a walk would give up before it found those. The planner's estimate decides, and a walk
that comes back with too few is done again exactly, so that a wrong estimate costs time and never a row.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import AsyncCursor, sql

from starsearch.errors import NotStored
from starsearch.models import Filters, IndexVersion
from starsearch.store.database import Pool

Path = Literal["index", "exact"]
DEPTH = 100  # as many are looked at to find the best ten
EXACT_ROWS = 20_000  # compared one by one in some 30 ms
MAX_SCAN_ROWS = 20_000  # where a walk gives up: pgvector's hnsw.max_scan_tuples
NO_FILTERS = Filters()

FILTERS = """(
    i.tombstoned_at IS NULL
    AND i.repository_id NOT IN (SELECT id FROM repository WHERE gone_at IS NOT NULL)
    AND (%(repositories)s::bigint[] IS NULL OR i.repository_id = ANY (%(repositories)s::bigint[]))
    AND (%(type)s::text IS NULL OR i.type = %(type)s)
    AND (%(state)s::text IS NULL OR i.state = %(state)s)
    AND (%(author)s::text IS NULL OR lower(i.author) = lower(%(author)s))
    AND (%(labels)s::text[] IS NULL OR lowered(i.labels) @> lowered(%(labels)s))
    AND (%(since)s::timestamptz IS NULL OR i.partition_at >= %(since)s)
    AND (%(until)s::timestamptz IS NULL OR i.partition_at < %(until)s)
  )"""
INDEX = """
SELECT d.item_id
FROM digest d JOIN item i ON i.id = d.item_id
WHERE d.version_id = {version} AND {filters}
ORDER BY d.embedding::halfvec({dimensions}) <=> %(vector)s
LIMIT {count}
"""
# OFFSET 0 keeps the planner from turning this into a walk of the index after all
EXACT = """
SELECT id FROM (
  SELECT d.item_id AS id, d.embedding::halfvec({dimensions}) <=> %(vector)s AS distance
  FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
  WHERE {filters}
  OFFSET 0
) AS every_one
ORDER BY distance LIMIT {count}
"""
STATEMENTS = {"index": INDEX, "exact": EXACT}


@dataclass(frozen=True)
class Nearest:
    """ids: of items, about nearest first. matching: how many rows pass the filters by the planner's estimate; None: not asked."""

    ids: list[int] = field(default_factory=list)
    path: str | None = None
    matching: int | None = None


async def nearest(
    pool: Pool,
    version: IndexVersion,
    vector: NDArray[Any],
    *,
    filters: Filters = NO_FILTERS,
    count: int = DEPTH,
    path: Path | None = None,
) -> Nearest:
    """The items whose digests are nearest to the vector. path: None chooses; "exact" is what an index is measured against."""
    async with pool.connection() as connection, connection.cursor() as cursor:
        return await find_nearest(cursor, version, vector, await filter_parameters(cursor, filters), count=count, path=path)


async def find_nearest(
    cursor: AsyncCursor[Any], version: IndexVersion, vector: NDArray[Any], asked: dict[str, Any], *, count: int, path: Path | None
) -> Nearest:
    """The same inside a search. asked: the filters, from filter_parameters."""
    matching = None
    if path is None:
        path, matching = await _choose(cursor, asked, count)
        if path == "index":
            ids = await _ids(cursor, "index", version, vector, asked, count)
            if len(ids) == count:
                return Nearest(ids, "index", matching)
            return Nearest(await _ids(cursor, "exact", version, vector, asked, count), "index, then exact", matching)
    return Nearest(await _ids(cursor, path, version, vector, asked, count), path, matching)


async def filter_parameters(cursor: AsyncCursor[Any], filters: Filters) -> dict[str, Any]:
    """The parameters of FILTERS. Raises NotStored for repositories that are not in the database."""
    return {
        "repositories": await _repository_ids(cursor, filters.repos) if filters.repos else None,
        "type": filters.type,
        "state": filters.state,
        "author": filters.author,
        "labels": list(filters.labels) or None,
        "since": filters.since,
        "until": filters.until,
    }


async def _repository_ids(cursor: AsyncCursor[Any], names: tuple[str, ...]) -> list[int]:
    async with cursor.connection.cursor() as reading:
        await reading.execute(
            "SELECT lower(full_name), id FROM repository WHERE lower(full_name) = ANY (%s) AND gone_at IS NULL",
            [[name.lower() for name in names]],
        )
        found = await reading.fetchall()
    stored = {name for name, _ in found}
    unknown = [name for name in names if name.lower() not in stored]
    if unknown:
        raise NotStored(f"{', '.join(unknown)}: nothing of it is stored here; `starsearch crawl --repo {unknown[0]}` fetches it")
    return [repository for _, repository in found]


async def _choose(cursor: AsyncCursor[Any], asked: dict[str, Any], count: int) -> tuple[Path, int | None]:
    """Exact where few rows pass the filters, or so small a share of all that a walk would give up before it met enough of them."""
    if not any(asked.values()):
        return "index", None
    async with cursor.connection.cursor() as planning:
        await planning.execute(sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM item i WHERE {}").format(sql.SQL(FILTERS)), asked)
        ((plan,),) = await planning.fetchall()
        await planning.execute("SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = 'item'::regclass")
        ((rows,),) = await planning.fetchall()
    matching = int(plan[0]["Plan"]["Plan Rows"])
    return "exact" if matching <= EXACT_ROWS or count * rows > MAX_SCAN_ROWS * matching else "index", matching


async def _ids(
    cursor: AsyncCursor[Any], path: Path, version: IndexVersion, vector: NDArray[Any], asked: dict[str, Any], count: int
) -> list[int]:
    async with cursor.connection.cursor() as reading:
        await reading.execute(composed(path, version, count=count), asked | {"vector": HalfVector(vector)})
        return [item_id for (item_id,) in await reading.fetchall()]


def composed(path: Path, version: IndexVersion, *, count: int) -> sql.Composed:
    """Only our own numbers and filters are put into the text; everything of the user's is a parameter."""
    numbers = {"version": version.id, "dimensions": version.dimensions, "count": count}
    return sql.SQL(STATEMENTS[path]).format(filters=sql.SQL(FILTERS), **{name: sql.Literal(n) for name, n in numbers.items()})
