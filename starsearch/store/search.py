"""Find digests: cosine similarity over HNSW, BM25 over words, or a weighted sum of both.

Weighted, because reciprocal rank fusion with equal weights measured worse than vectors alone. With a repository given, the vector
leg is exact: a filtered graph walk loses rows of small repositories, and a scan of one repository costs a few milliseconds.
"""

from datetime import datetime
from typing import Any, Literal, cast, get_args

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row

from starsearch.models import Filters, Hit, IndexVersion
from starsearch.store.database import Pool
from starsearch.store.statements import statement

Mode = Literal["hybrid", "vector", "text"]
MODES: tuple[Mode, ...] = get_args(Mode)
TEXT_WEIGHT = 0.25  # of the best word score, added to the cosine; 0.2 to 0.3 measured alike (docs/decisions/0004)
DEPTH = 100  # nearest vectors looked at; HNSW's ef_search is the same
CANDIDATES = 2_000  # texts ranked by words; ranking one costs about 10 microseconds
COMMON = 5_000  # occurrences after which a word is simply common
NO_FILTERS = Filters()
MAX_QUERY = 2_000  # characters; more than any engine's window needs to understand a question

FILTERS = """(
    i.tombstoned_at IS NULL
    AND i.repository_id NOT IN (SELECT id FROM repository WHERE gone_at IS NOT NULL)
    AND (%(repositories)s::bigint[] IS NULL OR i.repository_id = ANY (%(repositories)s::bigint[]))
    AND (%(type)s::text IS NULL OR i.type = %(type)s)
    AND (%(state)s::text IS NULL OR i.state = %(state)s)
    AND (%(since)s::timestamptz IS NULL OR i.partition_at >= %(since)s)
  )"""
NEAREST = """SELECT d.item_id AS id
  FROM digest d JOIN item i ON i.id = d.item_id
  WHERE d.version_id = {version} AND %(mode)s <> 'text' AND {filters}
  ORDER BY d.embedding::halfvec({dimensions}) <=> %(vector)s
  LIMIT {depth}"""
NEAREST_EXACT = """SELECT id FROM (
    SELECT d.item_id AS id, d.embedding::halfvec({dimensions}) <=> %(vector)s AS distance
    FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
    WHERE %(mode)s <> 'text' AND {filters}
    OFFSET 0
  ) AS every_one
  ORDER BY distance LIMIT {depth}"""


async def search(
    pool: Pool,
    version: IndexVersion,
    query: str,
    vector: NDArray[Any] | None,
    *,
    mode: Mode = "hybrid",
    filters: Filters = NO_FILTERS,
    limit: int = 10,
) -> list[Hit]:
    """The best `limit` hits, best first. vector: (dimensions,) of the query, by the version's own model; None for mode text."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        repositories = None
        if filters.repo:
            await cursor.execute("SELECT id FROM repository WHERE lower(full_name) = lower(%s)", [filters.repo])
            repositories = [row["id"] for row in await cursor.fetchall()]
        await cursor.execute(
            _statement(version, exact=repositories is not None, limit=limit),
            {
                "query": query[:MAX_QUERY],
                "mode": mode,
                "vector": None if vector is None else HalfVector(vector),
                "repositories": repositories,
                "type": filters.type,
                "state": filters.state,
                "since": filters.since,
            },
        )
        return [_hit(row) for row in await cursor.fetchall()]


def _statement(version: IndexVersion, *, exact: bool, limit: int) -> sql.Composed:
    """Only our own numbers and the legs above are put into the text; everything of the user's is a parameter."""
    values: dict[str, Any] = {
        "version": sql.Literal(version.id),
        "dimensions": sql.Literal(version.dimensions),
        "filters": sql.SQL(FILTERS),
        "depth": sql.Literal(max(limit, DEPTH)),
        "common": sql.Literal(COMMON),
        "candidates": sql.Literal(CANDIDATES),
        "text_weight": sql.Literal(TEXT_WEIGHT),
        "limit": sql.Literal(limit),
    }
    values["nearest"] = sql.SQL(NEAREST_EXACT if exact else NEAREST).format(**values)
    return sql.SQL(cast("Any", statement("search").decode())).format(**values)


def _hit(row: dict[str, Any]) -> Hit:
    scores = {"vector": _rounded(row.pop("cosine")), "text": _rounded(row.pop("word_score"))}
    return Hit(**row | {"score": round(float(row["score"]), 4), "scores": scores})


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def hit_as_dict(hit: Hit) -> dict[str, Any]:
    """The JSON shape of a hit: its fields but the database's id, times in ISO 8601."""
    fields = {name: value for name, value in vars(hit).items() if name != "id"}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
