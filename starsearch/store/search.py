"""Find digests: cosine similarity over HNSW, BM25 over words, or a weighted sum of both.

Three statements: how rare the question's words are (weigh.sql), which vectors are nearest (store/nearest.py), and the ranking of both
(search.sql). Weighted, because reciprocal rank fusion with equal weights measured worse than vectors alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast, get_args

from numpy.typing import NDArray
from pgvector import HalfVector
from psycopg import AsyncCursor, sql
from psycopg.rows import class_row, dict_row

from starsearch.errors import QueryUnusable
from starsearch.models import Explanation, Filters, Found, Hit, IndexVersion, Place, Word, clean
from starsearch.store.database import Pool
from starsearch.store.nearest import DEPTH, FILTERS, NO_FILTERS, Nearest, Path, filter_parameters, find_nearest
from starsearch.store.statements import statement

Mode = Literal["hybrid", "vector", "text"]
MODES: tuple[Mode, ...] = get_args(Mode)
TEXT_WEIGHT = 0.25  # of the best word score, added to the cosine; what was measured is in docs/decisions/0017
FLAT = 0.6  # of a text's length that is not held against it
CANDIDATES = 2_000  # texts ranked by words; ranking one costs about 3 microseconds
COUNTED = 1_000  # items with a word that are counted; how rare it is hardly depends on more
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
    words: Sequence[Word] | None = None,
    path: Path | None = None,
) -> Found:
    """The best `limit` hits, best first, and how they were found; and where those after them stand, down to `places` in all.

    vector: (dimensions,) of the query, by the version's own model; None for mode text. words: of the query, where `weigh` was asked
    already. path: of the vector leg; None: the better one.
    Raises QueryUnusable for a limit out of range, NotStored for a repository that is not in the database.
    """
    check_limit(limit)
    places = max(limit, places)
    depth = max(places, DEPTH)
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        asked = await filter_parameters(cursor, filters)
        if words is None:
            words = await _weigh(cursor, mode, clean_query(query))
        near = Nearest()
        if mode != "text" and vector is not None:
            near = await find_nearest(cursor, version, vector, asked, count=depth, path=path)
        parameters = {"mode": mode, "nearest": near.ids, "vector": None if vector is None else HalfVector(vector)}
        statement = ranking(version, depth=depth, places=places, limit=limit)
        await cursor.execute(statement, asked | parameters | _word_parameters(words))
        rows = await cursor.fetchall()
    explanation = Explanation(near.path, near.matching, tuple(words))
    return Found([_hit(row) for row in rows[:limit]], explanation, [_place(row) for row in rows[limit:]])


async def weigh(pool: Pool, query: str, *, mode: Mode = "hybrid") -> list[Word]:
    """The words of a question as `search` weighs them, for asking beside the embedding, which takes as long."""
    async with pool.connection() as connection, connection.cursor() as cursor:
        return await _weigh(cursor, mode, clean_query(query))


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


async def _weigh(cursor: AsyncCursor[Any], mode: Mode, query: str) -> list[Word]:
    """The question's words that occur anywhere, the rarest first; those that pick candidates are marked. None by vector alone."""
    if mode == "vector":
        return []
    async with cursor.connection.cursor(row_factory=class_row(_Weighed)) as weighing:
        await weighing.execute(_composed("weigh", {"most": sql.Literal(COUNTED)}), {"query": query})
        weighed = [word for word in await weighing.fetchall() if word.items]
    words: list[Word] = []
    total = 0
    for word in weighed:
        total += word.items
        rarity = math.log(1 + (word.of - word.items + 0.5) / (word.items + 0.5))
        words.append(Word(word.word, word.items, rarity, picks=not words or total <= CANDIDATES))
    return words


class _Weighed:
    def __init__(self, word: str, items: int, of: float) -> None:
        self.word = word
        self.of = of
        self.items = min(items, int(of))


def _word_parameters(words: Sequence[Word]) -> dict[str, Any]:
    quoted = {word: "'" + word.text.replace("\\", "\\\\").replace("'", "''") + "'" for word in words}
    return {
        "words": list(quoted.values()),
        "rarities": [word.rarity for word in words],
        "picks": " | ".join(text for word, text in quoted.items() if word.picks) or None,
    }


def ranking(version: IndexVersion, *, depth: int, places: int, limit: int) -> sql.Composed:
    values = {
        "version": version.id,
        "dimensions": version.dimensions,
        "depth": depth,
        "places": places,
        "limit": limit,
        "candidates": CANDIDATES,
        "flat": FLAT,
        "text_weight": TEXT_WEIGHT,
    }
    return _composed("search", {"filters": sql.SQL(FILTERS)} | {name: sql.Literal(value) for name, value in values.items()})


def _composed(name: str, values: dict[str, Any]) -> sql.Composed:
    """Only our own numbers and filters are put into the text; everything of the user's is a parameter."""
    return sql.SQL(cast("Any", statement(name).decode())).format(**values)


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
