"""Find digests: cosine similarity over HNSW, BM25 over words, or a weighted sum of both.

Two legs, each on its own: which texts hold the question's words (store/words.py), and which vectors are nearest (store/nearest.py);
then the ranking of both (search.sql). Weighted, because reciprocal rank fusion with equal weights measured worse than vectors alone.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import sql
from psycopg.rows import dict_row

from starsearch.errors import QueryUnusable
from starsearch.models import Explanation, Filters, Found, Hit, IndexVersion, Place, clean
from starsearch.store.database import Pool
from starsearch.store.nearest import DEPTH, NO_FILTERS, Nearest, Path, filter_parameters, find_nearest
from starsearch.store.statements import filled
from starsearch.store.words import SCORE, Mode, Worded, read_worded, word_parameters

TEXT_WEIGHT = 0.25  # of the best word score, added to the cosine; what was measured is in docs/decisions/0017
MAX_QUERY = 2_000  # characters; more than any engine's window needs to understand a question
MAX_LIMIT = 1_000


async def search(  # noqa: PLR0913 each is something that a search may be told
    pool: Pool,
    version: IndexVersion,
    query: str,
    vector: NDArray[Any] | None,
    *,
    mode: Mode = "hybrid",
    filters: Filters = NO_FILTERS,
    limit: int = 10,
    places: int = 0,
    worded: Worded | None = None,
    path: Path | None = None,
) -> Found:
    """The best `limit` hits, best first, and how they were found; and where those after them stand, down to `places` in all.

    vector: (dimensions,) of the query, by the version's own model; None for mode text. worded: the text leg, where `find_worded` was
    asked already. path: of the vector leg; None: the better one.
    Raises QueryUnusable for a limit out of range, NotStored for a repository that is not in the database.
    """
    check_limit(limit)
    places = max(limit, places)
    depth = depth_of(places)
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        asked = await filter_parameters(cursor, filters)
        if worded is None:
            worded = Worded() if mode == "vector" else await read_worded(cursor, version, clean_query(query), asked, mode=mode, count=depth)
        near = Nearest()
        if mode != "text" and vector is not None:
            near = await find_nearest(cursor, version, vector, asked, count=depth, path=path)
        await cursor.execute(ranking(version, places=places, limit=limit), ranked(mode, vector, near, worded))
        rows = await cursor.fetchall()
    explanation = Explanation(near.path, near.matching, worded.words)
    return Found([_hit(row) for row in rows[:limit]], explanation, [_place(row) for row in rows[limit:]])


def depth_of(places: int) -> int:
    """How many each leg brings, so that so many places can be filled well."""
    return max(places, DEPTH)


@dataclass(frozen=True)
class StoredVector:
    """An item as it is stored, and its vector: (dimensions,) float32."""

    repo: str
    number: int
    vector: NDArray[Any]


async def stored_vector(pool: Pool, version: IndexVersion, *, host: str, repo: str, number: int) -> StoredVector | None:
    """None for an item that has no digest in this version, or must not be found."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT r.full_name, i.number, d.embedding FROM item i "
            "JOIN repository r ON r.id = i.repository_id "
            "JOIN digest d ON d.version_id = %s AND d.item_id = i.id AND d.partition_at = i.partition_at "
            "WHERE r.host = %s AND lower(r.full_name) = lower(%s) AND i.number = %s AND r.gone_at IS NULL AND i.tombstoned_at IS NULL",
            [version.id, host, repo, number],
        )
        row = await cursor.fetchone()
    return StoredVector(row[0], row[1], row[2].to_numpy().astype("f4")) if row else None


def clean_query(query: str) -> str:
    """What is searched for: valid text, cut where no engine reads on. Raises QueryUnusable for an empty one."""
    text = clean(query).strip()[:MAX_QUERY]
    if not text:
        raise QueryUnusable("the question is empty")
    return text


def check_limit(limit: int) -> None:
    if not 1 <= limit <= MAX_LIMIT:
        raise QueryUnusable(f"the limit is {limit:,}, and must be between 1 and {MAX_LIMIT:,}")


def ranking(version: IndexVersion, *, places: int, limit: int) -> sql.Composed:
    """Only our own numbers are put into the text; everything of the user's is a parameter."""
    values = {
        "version": version.id,
        "dimensions": version.dimensions,
        "places": places,
        "limit": limit,
        "text_weight": TEXT_WEIGHT,
    }
    return filled("search", SCORE | {name: sql.Literal(value) for name, value in values.items()})


def ranked(mode: Mode, vector: NDArray[Any] | None, near: Nearest, worded: Worded) -> dict[str, Any]:
    """The parameters of `ranking`."""
    return word_parameters(worded.words) | {
        "mode": mode,
        "vector": None if vector is None else HalfVector(vector),
        "nearest": near.ids,
        "worded": worded.ids,
        "word_scores": worded.scores,
        "usual": worded.usual,
    }


def _hit(row: dict[str, Any]) -> Hit:
    scores = {"vector": _rounded(row.pop("cosine")), "text": _rounded(row.pop("word_score"))}
    return Hit(**row | {"score": round(float(row["score"]), 4), "scores": scores})


def _place(row: dict[str, Any]) -> Place:
    return Place(row["id"], round(float(row["score"]), 4), _rounded(row["cosine"]), _rounded(row["word_score"]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def hit_as_dict(hit: Hit) -> dict[str, Any]:
    """The JSON shape of a hit: its fields but the database's id, times in ISO 8601."""
    fields = {name: value for name, value in vars(hit).items() if name != "id"}
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in fields.items()}
