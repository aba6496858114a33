"""Search on a real index: three modes, filters that lose nothing, plans that use the index, and questions in strangers' hands."""

from datetime import UTC, datetime

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector
from psycopg import sql

from starsearch.errors import NotStored, QueryUnusable
from starsearch.models import Filters, IndexVersion, Word, parse_item
from starsearch.store import nearest as nearest_module
from starsearch.store import words as words_module
from starsearch.store.items import Chunk, store_chunk
from starsearch.store.leases import claim, find_due
from starsearch.store.nearest import Nearest, nearest
from starsearch.store.runs import start_run
from starsearch.store.search import ranked, ranking, search
from starsearch.store.versions import active_version, ensure_version
from starsearch.store.words import MODES, Worded, word_parameters

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
            author="Ada" if n == 3 else "bob",
            labels=["Bug", "area: core"] if n in {2, 3} else ["bug"] if n == 5 else [],
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
        await connection.cursor().executemany(
            "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
            "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [[version.id, id_, partition, key, key, HalfVector(axis(number))] for id_, number, partition, key in items],
        )


@pytest.mark.parametrize("mode", MODES)
async def test_every_mode_finds_the_right_one_first(store, version, mode):
    hits = (await search(store.pool, version, "why does the router break", axis(4), mode=mode)).hits
    assert hits[0].number == 4
    assert hits[0].summary == "About The router fails"
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


async def test_scores_tell_each_leg(store, version):
    hit = (await search(store.pool, version, "router", axis(4))).hits[0]
    assert hit.scores["vector"] == pytest.approx(1, abs=0.01)
    assert hit.scores["text"] == 1
    hit = (await search(store.pool, version, "router", axis(4), mode="vector")).hits[0]
    assert hit.scores["text"] is None


@pytest.mark.parametrize(
    ("title", "query"),
    [
        ("TaskRunner hangs", "task runner"),
        ("Hang in src/task-runner.py", "runner of a task"),
        ("engine.task.Runner hangs", "task runner"),
        ("`TaskRunner.flushAll()` hangs", "flush all tasks"),
        ("TaskRunner hangs", "TaskRunner"),  # and still by the whole name
    ],
)
async def test_parts_of_identifiers_are_words_too(store, version, row, title, query):
    await fill(store, version, [row(20, title=title, body="")])
    hits = (await search(store.pool, version, query, None, mode="text")).hits
    assert [hit.number for hit in hits] == [20]


def day(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


FILTERED = [
    (Filters(repos=("A/One",)), {1, 2, 3}),  # compared without case
    (Filters(repos=("a/one", "b/two")), {1, 2, 3, 4, 5, 6, 7}),  # any of them
    (Filters(type="pull_request"), {2, 4, 6}),
    (Filters(state="closed"), {6, 7}),
    (Filters(author="ADA"), {3}),  # logins are compared without case
    (Filters(labels=("bug",)), {2, 3, 5}),  # and so are labels
    (Filters(labels=("BUG", "Area: core")), {2, 3}),  # all of them
    (Filters(labels=("wontfix",)), set()),
    (Filters(since=day("2026-07-01")), {6, 7}),  # by creation
    (Filters(until=day("2026-03-01")), {1}),  # before, not on
    (Filters(since=day("2026-03-01"), until=day("2026-05-01")), {2, 3}),
    (Filters(repos=("b/two",), state="open", type="issue"), {5}),
]


async def test_filters_lose_nothing_and_let_nothing_through(store, version):
    for filters, numbers in FILTERED:
        for mode in MODES:
            hits = (await search(store.pool, version, "timeout error", axis(1), mode=mode, filters=filters)).hits
            assert {hit.number for hit in hits} == numbers, (filters, mode)


@pytest.mark.parametrize(("filters", "numbers"), [(Filters(repos=("a/one",)), {1, 2, 3}), (Filters(), {20, 1, 2, 3, 4, 5, 6, 7})])
async def test_a_rare_word_does_not_hide_what_holds_the_common_ones(store, version, row, monkeypatch, filters, numbers):
    """Such as a typo, or one that stands in other repositories only: by words alone there would be no other way to find the rest."""
    monkeypatch.setattr(words_module, "CANDIDATES", 7)
    await fill(store, version, [row(20, title="A kubelet timeout", body="")])
    hits = (await search(store.pool, version, "kubelet timeout", None, mode="text", filters=filters)).hits
    assert {hit.number for hit in hits} == numbers
    assert 20 not in [hit.number for hit in hits[1:]]


async def test_both_paths_find_the_same(store, version):
    for filters, numbers in FILTERED:
        ids = {path: (await nearest(store.pool, version, axis(1), filters=filters, path=path)).ids for path in ("index", "exact")}
        assert sorted(ids["index"]) == sorted(ids["exact"]), filters
        assert len(ids["exact"]) == len(numbers), filters


async def test_an_unknown_repository_is_named(store, version):
    with pytest.raises(NotStored, match=r"no/such: .*crawl --repo no/such"):
        await search(store.pool, version, "timeout", axis(1), filters=Filters(repos=("a/one", "no/such")))


async def test_an_impossible_limit_and_an_empty_question_are_refused(store, version):
    for limit in (0, -1, 1_000_000):
        with pytest.raises(QueryUnusable, match="between 1 and"):
            await search(store.pool, version, "timeout", axis(1), limit=limit)
    for query in ("", "   ", "\n\t"):
        with pytest.raises(QueryUnusable, match="empty"):
            await search(store.pool, version, query, axis(1))


async def test_tombstones_and_gone_repositories_leave_search_at_once(store, version):
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE item SET tombstoned_at = now() WHERE number = 4")
        await connection.execute("UPDATE repository SET gone_at = now() WHERE full_name = 'a/one'")
    for mode in MODES:
        hits = (await search(store.pool, version, "the router timeout error", axis(4), mode=mode)).hits
        assert {hit.number for hit in hits} == {5, 6, 7}
    async with store.pool.connection() as connection:
        found = await (await connection.execute("SELECT number FROM searchable")).fetchall()
    assert {number for (number,) in found} == {5, 6, 7}


LANGUAGES = """Почему парсер падает|为什么解析器失败|パーサーが失敗するのはなぜ|왜 파서가 실패합니까|لماذا يفشل المحلل|מדוע המנתח נכשל|पार्सर क्यों विफल|
পার্সার কেন ব্যর্থ|பகுப்பாய்வி ஏன்|పార్సర్ ఎందుకు|ทำไมตัวแยกวิเคราะห์|Tại sao trình phân tích|Warum scheitert der Parser|Pourquoi l'analyseur échoue|
¿Por qué falla?|Por que falha o analisador|Perché il parser fallisce|Waarom faalt de parser|Varför misslyckas|Hvorfor fejler|Hvorfor feiler|
Miksi jäsennin epäonnistuu|Dlaczego parser zawodzi|Proč parser selže|Miért hibázik|De ce eșuează|Защо парсерът|Γιατί αποτυγχάνει|Ayristirici başarisiz|
რატომ ვერ მუშაობს|Ինչու է ձախողվում|ለምን አልተሳካም|چرا تجزیه""".replace("\n", "").split("|")


QUESTIONS = [
    "'; DROP TABLE item; --",
    "a & | ! ( :* <-> 'x",
    "%s %(query)s {limit} {{}}",
    "the of and",
    "\\' \" \x01 C:\\temp\\a\\b http://x/a\\'b?c='d",
    "nul \0 and a lone surrogate \ud800",
    "🔥🚒 👩‍👩‍👧‍👦",
    "x" * 100_000,
    "word " * 20_000,
    "<script>",
    *LANGUAGES,
]


async def test_any_question_is_only_a_question(store, version):
    for query in QUESTIONS:
        for mode in MODES:
            found = await search(store.pool, version, query, axis(1), mode=mode)
            assert mode == "text" or len(found.hits) == 7, ascii(query[:50])


async def test_words_that_occur_nowhere_find_nothing_by_text(store, version):
    for query in ("zzyzx", "the of and"):
        found = await search(store.pool, version, query, None, mode="text")
        assert (found.hits, found.explanation.words) == ([], ())


async def test_the_explanation_tells_what_was_done(store, version):
    told = (await search(store.pool, version, "router error", axis(1), filters=Filters(repos=("a/one",)))).explanation
    assert told.path == "exact"
    assert told.matching is not None
    assert [(word.text, word.items) for word in told.words] == [("router", 1), ("error", 7)]
    assert (await search(store.pool, version, "router", axis(1), mode="text")).explanation.path is None


@pytest.fixture
async def many(store, version, row):
    """3,000 more in one repository: with fewer, a sequential scan is rightly cheaper and a plan would prove nothing."""
    await fill(store, version, [row(n, repo="c/three", author=f"author-{n}", labels=[f"l{n}"]) for n in range(10, 3_010)])
    async with store.pool.connection() as connection:
        await connection.execute("ANALYZE")
    return version


async def test_a_walk_that_finds_too_few_is_done_again_exactly(store, many, monkeypatch):
    # the estimate says that the walk will do; it gives up long before it meets the four rows of b/two
    monkeypatch.setattr(nearest_module, "EXACT_ROWS", 0)
    monkeypatch.setattr(nearest_module, "MAX_SCAN_ROWS", 10**9)
    found = await search(store.pool, many, "timeout", axis(1), mode="vector", filters=Filters(repos=("b/two",)))
    assert found.explanation.path == "index, then exact"
    assert {hit.number for hit in found.hits} == {4, 5, 6, 7}


async def test_a_filter_that_lets_much_through_walks_the_index(store, many, monkeypatch):
    monkeypatch.setattr(nearest_module, "EXACT_ROWS", 1_000)
    found = await search(store.pool, many, "timeout", axis(1), filters=Filters(repos=("c/three",)), limit=20)
    assert found.explanation.path == "index"
    assert len(found.hits) == 20
    assert (await search(store.pool, many, "timeout", axis(1), filters=Filters(labels=("l77",)))).explanation.path == "exact"


INDEX_OF = {
    "embedding_idx": Filters(),
    "item_author": Filters(author="author-50"),
    "item_labels": Filters(labels=("l50",)),
    "item_partition_at": Filters(since=day("2026-08-01")),
    "item_repository_id_number_key": Filters(repos=("b/two",)),
}


async def test_each_hot_statement_reads_its_index(store, many):
    for index, filters in INDEX_OF.items():
        async with store.pool.connection() as connection, connection.cursor() as cursor:
            asked = await nearest_module.filter_parameters(cursor, filters)
            path = "index" if filters == Filters() else "exact"
            statement = nearest_module.composed(path, many, count=10)
            await cursor.execute(sql.SQL("EXPLAIN {}").format(statement), asked | {"vector": HalfVector(axis(1))})
            plan = "\n".join(line for (line,) in await cursor.fetchall())
        assert index in plan, plan
        assert "Seq Scan on item" not in plan


async def test_words_are_looked_up_in_their_index_and_no_leg_reads_a_table_whole(store, many):
    async with store.pool.connection() as connection, connection.cursor() as cursor:
        word = Word("router", 10, 1.0, True)
        asked = await nearest_module.filter_parameters(cursor, Filters()) | word_parameters([word])
        await cursor.execute(sql.SQL("EXPLAIN {}").format(words_module.composed(many, count=100)), asked)
        by_words = "\n".join(line for (line,) in await cursor.fetchall())
        both = ranked("hybrid", axis(1), Nearest([1, 2, 3]), Worded((word,), [4, 5], [0.2, 0.1], 30.0))
        await cursor.execute(sql.SQL("EXPLAIN {}").format(ranking(many, places=10, limit=10)), both)
        ranks = "\n".join(line for (line,) in await cursor.fetchall())
    assert "item_words" in by_words
    for plan in (by_words, ranks):
        assert "Seq Scan on item" not in plan
        assert "Seq Scan on digest" not in plan


async def test_common_words_are_known_without_counting(store, many):
    """All 3,000 hold "report": its number comes from the planner's statistics, beyond what is ever counted."""
    (word,) = (await search(store.pool, many, "report", None, mode="text")).explanation.words
    assert word.items > 2_900


async def test_vectors_of_another_length_cannot_be_stored(store, version):
    with pytest.raises(psycopg.errors.CheckViolation):
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE digest SET embedding = %s", [HalfVector([1.0, 2.0])])


async def test_a_new_database_has_no_version(store):
    assert await active_version(store.pool) is None
    version = await ensure_version(store.pool, VERSION)
    assert await active_version(store.pool) == version
    assert await claim(store.pool, version.id, 1) is None
