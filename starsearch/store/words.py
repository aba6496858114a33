"""Which digests hold the question's words: the text leg of a search.

Two statements: how rare the words are (weigh.sql), and the best of the texts that hold the rarest of them (words.sql). Neither needs
the question's vector, so they can be asked while that is made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from psycopg import AsyncCursor, sql
from psycopg.rows import class_row

from starsearch.models import Filters, IndexVersion, Word
from starsearch.store.database import Pool
from starsearch.store.nearest import DEPTH, FILTERS, NO_FILTERS, filter_parameters
from starsearch.store.statements import filled

Mode = Literal["hybrid", "vector", "text"]
MODES: tuple[Mode, ...] = get_args(Mode)
FLAT = 0.6  # of a text's length that is not held against it
CANDIDATES = 1_000  # texts ranked by words; ranking one costs about 3 microseconds
COUNTED = 1_000  # items with a word that are counted; how rare it is hardly depends on more
# BM25, but for the count of a word in a text: ts_rank of one word is a sum of 1/i^2 over its places, which rises and levels off as
# BM25's n / (n + k) does. It finds as much, at a tenth of the cost of unpacking every candidate's words into rows.
SCORE = {
    "relevance": sql.SQL("(SELECT sum(rarity * ts_rank('{1,1,1,1}', words, query)) FROM word)"),
    "discounted": sql.SQL("relevance / ({flat} + (1 - {flat}) * length / nullif(usual, 0))").format(flat=sql.Literal(FLAT)),
}


@dataclass(frozen=True)
class Worded:
    """ids: of items, best first, with their scores; usual: the length of a candidate, in distinct words; None: there was none."""

    words: tuple[Word, ...] = ()
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    usual: float | None = None


async def find_worded(
    pool: Pool, version: IndexVersion, query: str, *, mode: Mode = "hybrid", filters: Filters = NO_FILTERS, count: int = DEPTH
) -> Worded:
    """The text leg of a search, to be asked beside the embedding, which takes as long. Nothing by vector alone.

    query: as search.clean_query returns it. Raises NotStored for repositories that are not in the database.
    """
    if mode == "vector":
        return Worded()
    async with pool.connection() as connection, connection.cursor() as cursor:
        return await read_worded(cursor, version, query, await filter_parameters(cursor, filters), mode=mode, count=count)


async def read_worded(
    cursor: AsyncCursor[Any], version: IndexVersion, query: str, asked: dict[str, Any], *, mode: Mode, count: int
) -> Worded:
    """The same inside a search. asked: the filters, from filter_parameters.

    Where the rarest words alone are to fill a search (mode text) and do not, the others pick candidates too, one after the other: the
    rarest may stand in no item that passes the filters. Beside vectors, texts of common words would only be noise.
    """
    words = await _weigh(cursor, query)
    if not words:
        return Worded()
    statement = composed(version, count=count)
    async with cursor.connection.cursor() as reading:
        await reading.execute(statement, asked | word_parameters(words))
        rows = await reading.fetchall()
        for place, word in enumerate(words):
            if mode == "text" and len(rows) < count and not word.picks:
                words[place] = replace(word, picks=True)
                alone = {"picks": word_parameters([words[place]])["picks"], "kept": [row[0] for row in rows]}
                await reading.execute(statement, asked | word_parameters(words) | alone)
                rows = await reading.fetchall()
    return Worded(tuple(words), [row[0] for row in rows], [row[1] for row in rows], float(rows[0][2]) if rows else None)


async def _weigh(cursor: AsyncCursor[Any], query: str) -> list[Word]:
    """The question's words that occur anywhere, the rarest first; those that pick candidates are marked."""
    async with cursor.connection.cursor(row_factory=class_row(_Weighed)) as weighing:
        await weighing.execute(filled("weigh", {"most": sql.Literal(COUNTED)}), {"query": query})
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


def word_parameters(words: Sequence[Word]) -> dict[str, Any]:
    """Of words.sql and search.sql: the words as queries, how much each is worth, the query that picks candidates, and what is one."""
    quoted = {word: "'" + word.text.replace("\\", "\\\\").replace("'", "''") + "'" for word in words}
    return {
        "words": list(quoted.values()),
        "rarities": [word.rarity for word in words],
        "kept": [],
        "picks": " | ".join(text for word, text in quoted.items() if word.picks) or None,
    }


def composed(version: IndexVersion, *, count: int) -> sql.Composed:
    """Only our own numbers and filters are put into the text; everything of the user's is a parameter."""
    numbers = {"version": version.id, "candidates": CANDIDATES, "depth": count}
    return filled("words", SCORE | {"filters": sql.SQL(FILTERS)} | {name: sql.Literal(number) for name, number in numbers.items()})
