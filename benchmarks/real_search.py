"""Search over the real items beside this checkout: what the index finds of the nearest, and what questions of common words cost.

Queries are the 66 questions and titles of stored items. Real embeddings lie otherwise than invented ones (benchmarks/clustered.py), and
real words too. At this size search compares every row behind most filters; what the graph would find there is told beside it.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection

from benchmarks.hybrid import DATA, filled
from benchmarks.measure import Figure, cpu_seconds
from starsearch.evaluate import read_questions
from starsearch.finder import Finder, open_finder
from starsearch.inference.embed import embed
from starsearch.models import Filters, IndexVersion
from starsearch.serving import sent_dimensions
from starsearch.settings import Settings
from starsearch.storage import database_address
from starsearch.store.database import Pool, open_database
from starsearch.store.nearest import NO_FILTERS, Path, nearest
from starsearch.store.recall import sample_titles
from starsearch.store.search import search
from starsearch.store.versions import active_version
from starsearch.store.words import MODES, Mode

TITLES, TOP = 134, 10
COMMON, RARE, WORDS, QUESTIONS = 40, (5, 50), 4, 36  # of the commonest 40; rare ones are in 5 to 50 items; 4 in each of 36 questions
TARGETS = {"no filter": 0.97, "repository": 0.99, "30 days": 0.97, "open issues": 0.97}


def recall() -> list[Figure]:
    """Recall@10 against comparing every row, by the path that search chooses and, in the unit, by the graph alone."""
    if (settings := filled()) is None:
        return []
    measured = asyncio.run(_recall(settings))
    return [
        Figure(
            f"store.real.recall_{name.replace(' ', '_')}",
            round(chosen, 4),
            f"recall@10; by the graph alone {graph:.4f}",
            ">=",
            TARGETS[name],
        )
        for name, (chosen, graph) in measured.items()
    ]


async def _recall(settings: Settings) -> dict[str, tuple[float, float]]:
    async with open_finder(settings) as finder:
        queries = await _queries(finder)
        classes = await _classes(finder.pool)
        return {
            name: (
                await _found(finder.pool, finder.version, queries, filters, None),
                await _found(finder.pool, finder.version, queries, filters, "index"),
            )
            for name, filters in classes.items()
        }


async def _queries(finder: Finder) -> list[NDArray[np.float32]]:
    texts = [question.text for question in read_questions(DATA / "sample_questions.jsonl")]
    texts += [title for title, _ in await sample_titles(finder.pool, TITLES)]
    vectors: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), 32):
        sent = sent_dimensions(finder.version)
        vectors += list((await embed(await finder.engine(), texts[start : start + 32], dimensions=sent))[0])
    return vectors


async def _classes(pool: Pool) -> dict[str, list[Filters]]:
    async with pool.connection() as connection:
        largest = await _rows(
            connection, "SELECT r.full_name FROM item JOIN repository r ON r.id = repository_id GROUP BY 1 ORDER BY count(*) DESC"
        )
        ((newest,),) = await _rows(connection, "SELECT max(partition_at) FROM item WHERE partition_at < now() - interval '1 day'")
    repositories = [largest[rank][0] for rank in (0, 1, 4, len(largest) // 2)]
    assert isinstance(newest, datetime)
    return {
        "no filter": [NO_FILTERS],
        "repository": [Filters(repos=(repository,)) for repository in repositories],
        "30 days": [Filters(since=newest - timedelta(days=30))],
        "open issues": [Filters(type="issue", state="open")],
    }


async def _rows(connection: AsyncConnection, statement: str) -> list[tuple[object, ...]]:
    return await (await connection.execute(statement.encode())).fetchall()


async def _found(
    pool: Pool, version: IndexVersion, queries: Sequence[NDArray[np.float32]], classes: Sequence[Filters], path: Path | None
) -> float:
    found = expected = 0
    for filters in classes:
        for query in queries:
            exact = (await nearest(pool, version, query, filters=filters, count=TOP, path="exact")).ids
            ids = (await nearest(pool, version, query, filters=filters, path=path)).ids
            found += len(set(exact) & set(ids))
            expected += len(exact)
    return found / expected


def hidden() -> list[Figure]:
    """How many of all items a walk of the graph does not find that starts from their own vector: nobody finds those but by their words."""
    if (settings := filled()) is None:
        return []
    missed, every = asyncio.run(_hidden(settings))
    return [Figure("store.real.hidden", missed, f"of {every:,} items their own vector does not find by the graph", "<=", every // 1_000)]


async def _hidden(settings: Settings) -> tuple[int, int]:
    missed = 0
    async with database_address(settings) as dsn, open_database(dsn, size=2) as pool:
        version = await active_version(pool)
        assert version is not None
        async with pool.connection() as connection:
            rows = await _rows(connection, f"SELECT item_id, embedding FROM digest WHERE version_id = {version.id}")
        for item_id, vector in rows:
            missed += item_id not in (await nearest(pool, version, vector.to_numpy().astype("f4"), path="index")).ids
    return missed, len(rows)


def common_words() -> list[Figure]:
    """The database's CPU for questions of common words, as times that for questions of rare ones, in each mode that reads words."""
    if (settings := filled()) is None:
        return []
    return asyncio.run(_common_words(settings))


async def _common_words(settings: Settings) -> list[Figure]:
    figures = []
    async with database_address(settings) as dsn, open_database(dsn, size=1) as pool:
        version = await active_version(pool)
        assert version is not None
        common, rare = await _asked(pool)
        for mode in MODES:
            if mode != "vector":
                rare_ms, common_ms = [await _cpu_ms(pool, version, questions, mode) for questions in (rare, common)]
                detail = f"times the CPU of rare words ({common_ms:.1f} and {rare_ms:.1f} ms)"
                figures.append(Figure(f"store.real.common_words_{mode}", round(common_ms / rare_ms, 2), detail, "<=", 3))
    return figures


async def _asked(pool: Pool) -> tuple[list[str], list[str]]:
    """Questions of common words and of rare ones."""
    async with pool.connection() as connection:
        words = await _rows(
            connection, "SELECT word, ndoc FROM ts_stat('SELECT words FROM item') WHERE word ~ '^[a-z]+$' ORDER BY ndoc DESC, word"
        )
    common = [str(word) for word, _ in words[:COMMON]]
    rare = [str(word) for word, items in words if RARE[0] <= int(str(items)) <= RARE[1]]
    random = np.random.default_rng(1)
    return tuple([" ".join(random.choice(each, WORDS, replace=False)) for _ in range(QUESTIONS)] for each in (common, rare))


async def _cpu_ms(pool: Pool, version: IndexVersion, questions: Sequence[str], mode: Mode) -> float:
    """Of one question, the second time round. Its vector is that of a stored item: how it was embedded is not measured here."""
    async with pool.connection() as connection:
        backend = connection.info.backend_pid
        vectors = await _rows(
            connection, f"SELECT embedding FROM digest WHERE version_id = {version.id} ORDER BY item_id LIMIT {len(questions)}"
        )
    before = 0.0
    for _ in range(2):
        before = cpu_seconds(backend)
        for question, (vector,) in zip(questions, vectors, strict=True):
            await search(pool, version, question, vector.to_numpy().astype("f4"), mode=mode)
    return (cpu_seconds(backend) - before) / len(questions) * 1_000
