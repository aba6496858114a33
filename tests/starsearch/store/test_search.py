"""Search on a real index: three modes, exact filters, plans that use the index, and questions in strangers' hands."""

import numpy as np
import pytest
from pgvector import HalfVector

from starsearch.models import Filters, IndexVersion, parse_item
from starsearch.store.items import Chunk, store_chunk
from starsearch.store.leases import claim, find_due
from starsearch.store.runs import start_run
from starsearch.store.search import MODES, _statement, search
from starsearch.store.versions import active_version, ensure_version

DIMENSIONS = 8
VERSION = IndexVersion("axes", "", DIMENSIONS, "recipe", "stub", "v1")


def axis(n: int, *, lean: float = 0.1) -> np.ndarray:
    """A unit vector near axis n."""
    vector = np.full(DIMENSIONS, lean, np.float32)
    vector[n % DIMENSIONS] = 1
    return vector / np.linalg.norm(vector)


@pytest.fixture
async def version(store, row):
    """Eight items on eight axes in two repositories, digested by hand."""
    version = await ensure_version(store.pool, VERSION)
    topics = ["parser", "scheduler", "renderer", "allocator", "router", "compiler", "debugger", "linker"]
    items = [
        row(
            n,
            title=f"The {topic} fails",
            body=f"We saw the {topic} fail with a timeout error.",
            repo="a/one" if n < 4 else "b/two",
            type="issue" if n % 2 else "pull_request",
            state="open" if n < 6 else "closed",
            created_at=f"2026-0{n + 1}-01T00:00:00Z",
            url=f"https://github.com/x/{n}",
        )
        for n, topic in enumerate(topics)
        if n
    ]
    await fill(store, version, items)
    return version


async def fill(store, version, records):
    run_id = await start_run(store.pool, "test")
    await store_chunk(store.pool, Chunk(tuple(parse_item(record) for record in records)), run_id=run_id)
    await find_due(store.pool)
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO summary (key, text, source, model, prompt_version, prompt_tokens, completion_tokens) "
            "SELECT content_hash, 'About ' || title, 'model', 'stub', 'v1', 0, 0 FROM item ON CONFLICT DO NOTHING"
        )
        items = await (await connection.execute("SELECT id, number, partition_at, content_hash FROM item")).fetchall()
        for item_id, number, partition_at, content_hash in items:
            await connection.execute(
                "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                [version.id, item_id, partition_at, content_hash, content_hash, HalfVector(axis(number))],
            )


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_finds_the_right_one_first(store, version, mode):
    hits = await search(store.pool, version, "why does the router break", axis(4), mode=mode)
    assert hits[0].number == 4
    assert hits[0].summary == "About The router fails"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_scores_tell_each_leg(store, version):
    (hit, *_) = await search(store.pool, version, "router", axis(4))
    assert hit.scores["vector"] == pytest.approx(1, abs=0.01)
    assert hit.scores["text"] == 1
    (hit, *_) = await search(store.pool, version, "router", axis(4), mode="vector")
    assert hit.scores["text"] is None


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        (Filters(repo="A/One"), {1, 2, 3}),  # compared without case
        (Filters(repo="no/such"), set()),
        (Filters(type="pull_request"), {2, 4, 6}),
        (Filters(state="closed"), {6, 7}),
        (Filters(repo="b/two", state="open", type="issue"), {5}),
    ],
)
@pytest.mark.parametrize("mode", ["vector", "hybrid"])
async def test_filters_lose_nothing_and_let_nothing_through(store, version, filters, numbers, mode):
    hits = await search(store.pool, version, "timeout error", axis(1), mode=mode, filters=filters)
    assert {hit.number for hit in hits} == numbers


async def test_since_is_by_creation(store, version):
    since = parse_item({"repo": "a/b", "number": 1, "type": "issue", "title": "x", "created_at": "2026-07-01T00:00:00Z"}).created_at
    hits = await search(store.pool, version, "timeout", axis(1), filters=Filters(since=since))
    assert {hit.number for hit in hits} == {6, 7}


async def test_tombstoned_items_leave_search_at_once(store, version):
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE item SET tombstoned_at = now() WHERE number = 4")
    hits = await search(store.pool, version, "router", axis(4))
    assert 4 not in {hit.number for hit in hits}


@pytest.mark.parametrize(
    "query",
    [
        "'; DROP TABLE item; --",
        "a & | ! ( :*",
        "%s %(query)s {limit}",
        "the of and",
        "日本語の質問",
        "\\' \" \x01",
        "x" * 10_000,
        "<script>",
    ],
)
async def test_any_question_is_only_a_question(store, version, query):
    for mode in MODES:
        await search(store.pool, version, query, axis(1), mode=mode)
    assert len(await search(store.pool, version, "timeout", axis(1))) == 7


async def test_words_that_occur_nowhere_find_nothing_by_text(store, version):
    assert await search(store.pool, version, "zzyzx", None, mode="text") == []


async def test_the_vector_leg_walks_the_index(store, version, row):
    # 3,000 rows: with fewer, a sequential scan is rightly cheaper and the test would prove nothing
    await fill(store, version, [row(n, repo="c/three") for n in range(10, 3_010)])
    async with store.pool.connection() as connection:
        await connection.execute("ANALYZE")
        statement = _statement(version, exact=False, limit=10).as_string(connection)
        parameters = {"query": "x", "mode": "vector", "vector": HalfVector(axis(1)), "repositories": None, "type": None, "state": None}
        cursor = await connection.execute(f"EXPLAIN {statement}".encode(), parameters | {"since": None})
        plan = "\n".join(line for (line,) in await cursor.fetchall())
    assert "embedding_idx" in plan


async def test_vectors_of_another_length_cannot_be_stored(store, version):
    import psycopg

    with pytest.raises(psycopg.errors.CheckViolation):
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE digest SET embedding = %s", [HalfVector([1.0, 2.0])])


async def test_a_new_database_has_no_version(store):
    assert await active_version(store.pool) is None
    version = await ensure_version(store.pool, VERSION)
    assert await active_version(store.pool) == version
    assert await claim(store.pool, version.id, 1) is None
