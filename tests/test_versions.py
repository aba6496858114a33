"""Another model beside the one that serves: built, compared, swapped, rolled back; nothing mixed, nothing lost, nobody waits."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import numpy as np
import psycopg
import pytest
from pgvector import HalfVector

from starsearch import activation, doctor
from starsearch import finder as finder_module
from starsearch.activation import activate, objections, roll_back
from starsearch.audit import read_status
from starsearch.compare import Measured, compare
from starsearch.errors import DigestFailed, GateRefused, PreconditionMissing, StarsearchError, VersionMismatch
from starsearch.finder import open_finder
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.reprocess import price, reprocess
from starsearch.serving import open_live, open_version_embedding
from starsearch.settings import Settings
from starsearch.store.leases import BATCH
from starsearch.store.swap import held
from starsearch.store.versions import (
    active_version,
    build_index,
    describe_versions,
    drop_version,
    find_version,
    has_index,
    live_versions,
    newest_shadow,
)
from tests.model_server import running

TOPICS = ["parser", "scheduler", "renderer", "allocator", "router", "compiler", "debugger", "linker", "profiler", "loader"]


@pytest.fixture(autouse=True)
def few_questions(monkeypatch):
    monkeypatch.setattr("starsearch.compare.TITLES", 12)


@pytest.fixture(scope="module")
def model_server():
    with running() as (server, url):
        yield server, url


@pytest.fixture
def models(home, dsn, model_server):
    """Settings for an embedding model of the server's, and what it was asked."""
    server, url = model_server
    server.requests.clear()

    def choose(embedding, llm="extractive", **fields):
        fields |= {"llm_base_url": url, "llm_model": llm, "embedding_base_url": url, "embedding_model": embedding}
        return Settings(_env_file=None, home=home, database_url=dsn, **fields)

    return choose


@pytest.fixture
def items(row, jsonl):
    """A file of items, each about a topic of its own."""

    def write(first=1, last=40, **fields):
        records = [
            row(n, title=f"{TOPICS[n % 10]} case {n} fails", body=f"We saw subject{n} fail in the {TOPICS[n % 10]}.", **fields)
            for n in range(first, last + 1)
        ]
        return jsonl(*records, name=f"items-{first}.jsonl")

    return write


async def store_items(store, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)


async def digest_live(settings, store):
    async with recorded_run(store, "digest") as run, open_live(settings, store) as live:
        await digest(store, live[0], run, beside=live[1:])
    return run.counts


async def digest_file(settings, store, path):
    await store_items(store, path)
    return await digest_live(settings, store)


async def do(what, settings, store, **options):
    async with recorded_run(store, what.__name__) as run:
        return await what(settings, store, run, **options), run.counts


async def rows(store, query, *parameters):
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, parameters)).fetchall()


async def held_by(store):
    """version → how many current digests it holds."""
    found = await rows(
        store,
        "SELECT v.embedding_model, count(d.item_id) FROM index_version v LEFT JOIN digest d ON d.version_id = v.id "
        "AND d.content_hash = (SELECT content_hash FROM item WHERE id = d.item_id) GROUP BY 1",
    )
    return dict(found)


async def test_settings_of_another_model_leave_the_serving_version_its_own(store, models, items, model_server, caplog):
    await digest_file(models("words-64"), store, items(1, 10))
    caplog.clear()
    counts = await digest_file(models("words-96", llm="second-chat"), store, items(11, 20))
    assert (counts.embedded, counts.llm_requests) == (10, 10)
    assert await held_by(store) == {"words-64": 20}
    assert await rows(store, "SELECT DISTINCT model FROM summary") == [("extractive",)]
    assert "words-96" not in model_server[0].requests
    assert "reprocess" in caplog.text
    async with open_finder(models("words-96")) as finder:
        assert (await finder.find("linker case 17 fails", mode="vector", limit=1)).hits[0].number == 17


async def test_another_embedding_needs_no_new_summaries(store, models, items, model_server):
    await digest_file(models("words-64"), store, items())
    async with store.pool.connection() as connection:  # as if one had needed a second attempt, at twice the length
        await connection.execute(
            "INSERT INTO summary SELECT 'longer', text, source, model, prompt_version, 1, 1 FROM summary s "
            "WHERE key = (SELECT summary_key FROM digest LIMIT 1)"
        )
        await connection.execute("UPDATE digest SET summary_key = 'longer' WHERE item_id = (SELECT item_id FROM digest LIMIT 1)")
        await connection.execute("DELETE FROM summary WHERE key NOT IN (SELECT summary_key FROM digest)")
    asked = model_server[0].requests["chat"]
    version, counts = await do(reprocess, models("words-96"), store)
    assert (counts.embedded, counts.llm_requests, model_server[0].requests["chat"]) == (40, 0, asked)
    assert await has_index(store.pool, version)
    assert await held_by(store) == {"words-64": 40, "words-96": 40}
    assert (await active_version(store.pool)).embedding_model == "words-64"
    assert (await read_status(store.pool)).complete


async def test_a_price_counts_what_is_left_to_do_and_does_nothing(store, models, items, model_server):
    await digest_file(models("words-64"), store, items(1, 40))
    asked = dict(model_server[0].requests)
    only_embedding = await price(models("words-96"), store)
    assert (only_embedding.items, only_embedding.done, only_embedding.requests, only_embedding.embedding_requests) == (40, 0, 0, 1)
    both = await price(models("words-64", llm="second-chat"), store)
    assert (both.items, both.requests) == (40, 40)
    assert both.tokens > only_embedding.tokens > 0
    assert both.cost_usd is None, "nobody knows the price of second-chat"
    assert model_server[0].requests["chat"] == asked["chat"]
    assert len(await live_versions(store.pool)) == 1
    await do(reprocess, models("words-96"), store)
    await store_items(store, items(41, 42))
    left = await price(models("words-96"), store)
    assert (left.items, left.done, left.requests) == (2, 40, 2)


async def test_another_chat_model_summarizes_again_and_leaves_the_old_summaries(store, models, items, model_server):
    await digest_file(models("words-64"), store, items(1, 5))
    _, counts = await do(reprocess, models("words-64", llm="second-chat"), store)
    assert (counts.embedded, counts.llm_requests) == (5, 5)
    found = await rows(
        store,
        "SELECT v.summary_model, s.model, count(*) FROM digest d JOIN index_version v ON v.id = d.version_id "
        "JOIN summary s ON s.key = d.summary_key GROUP BY 1, 2 ORDER BY 1",
    )
    assert found == [("extractive", "extractive", 5), ("second-chat", "second-chat", 5)]


async def test_what_is_stored_while_a_shadow_lives_goes_to_both(store, models, items):
    await digest_file(models("words-64"), store, items(1, 10))
    await do(reprocess, models("words-96"), store)
    counts = await digest_file(models("words-64"), store, items(11, 20))
    assert counts.embedded == 10, "the run's counts are those of the version that serves"
    assert await held_by(store) == {"words-64": 20, "words-96": 20}


async def test_bulk_work_is_left_to_reprocess_and_live_work_comes_first(store, models, items):
    await digest_file(models("words-64"), store, items(1, 10))
    await store_items(store, items(11, 12))
    from starsearch.engines import open_engines
    from starsearch.store.leases import find_due
    from starsearch.store.versions import begin_shadow

    async with open_engines(models("words-96")) as engines:
        version = await begin_shadow(store.pool, engines.version)
    await store_items(store, items(13, 14))
    await find_due(store.pool)
    assert await rows(store, "SELECT priority, count(*) FROM due WHERE version_id = %s GROUP BY 1 ORDER BY 1", version.id) == [
        (0, 2),
        (2, 12),
    ]
    await digest_live(models("words-64"), store)
    assert await held_by(store) == {"words-64": 14, "words-96": 2}


async def test_an_engine_that_turns_out_to_be_another_is_closed_again(store, models, items, monkeypatch):
    """Each question opens it anew: a page that is loaded again and again would keep a client for each."""
    settings = models("words-64")
    await digest_file(settings, store, items())
    opened, closed = [], []

    async def refuse(*_args, **_how):
        raise VersionMismatch("behind the name there is another model")

    @asynccontextmanager
    async def watched(*args):
        async with open_version_embedding(*args) as engine:
            opened.append(engine)
            try:
                yield engine
            finally:
                closed.append(engine)

    monkeypatch.setattr(finder_module, "open_version_embedding", watched)
    async with open_finder(settings) as finder:
        with monkeypatch.context() as refusing:
            refusing.setattr(finder_module, "check_models", refuse)
            for _ in range(3):
                with pytest.raises(VersionMismatch):
                    await finder.find("router case 14 fails")
        assert (len(opened), closed) == (3, opened)
        assert (await finder.find("router case 14 fails", limit=1)).hits[0].number == 14
        assert (len(opened), len(closed)) == (4, 3)
    assert closed == opened


async def test_a_question_is_embedded_at_the_length_of_the_index(store, models, items, monkeypatch):
    settings = models("words-64")
    await digest_file(settings, store, items())
    async with open_finder(settings) as finder:
        await finder.find("router case 14 fails")

        asked = []

        async def watched(*arguments, **how):
            asked.append(how["width"])
            raise DigestFailed("unusable vector")

        monkeypatch.setattr(finder_module, "embed", watched)
        with pytest.raises(DigestFailed):
            await finder.find("router case 14 fails")
    assert asked == [64]  # so that another length is refused before the database meets it: test_embed.py


async def test_a_swap_under_search_fails_no_question_and_a_long_lived_finder_notices(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items())
    await do(reprocess, models("words-96"), store)
    swapped = asyncio.Event()
    async with open_finder(settings) as finder:

        async def ask():
            served = set()
            while not swapped.is_set():
                hits = (await finder.find("router case 14 fails", mode="vector", limit=10)).hits
                assert hits[0].number == 14
                served.add(finder.version.embedding_model)
            await finder.find("router case 14 fails", limit=1)
            return served | {finder.version.embedding_model}

        asking = [asyncio.create_task(ask()) for _ in range(2)]
        done, _ = await do(activate, settings, store)
        swapped.set()
        served = set().union(*await asyncio.gather(*asking))
    assert served == {"words-64", "words-96"}
    assert done.objections == []
    assert done.after["missing"] == {}
    assert (done.before["recall_at_10"]["vector"], done.after["recall_at_10"]["vector"]) == (1.0, 1.0)


async def test_what_becomes_searchable_during_the_gate_is_in_the_new_version_too(store, models, items, monkeypatch):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 20))
    await do(reprocess, models("words-96"), store)
    chosen = activation.choose_questions

    async def choose_late(store, path):
        """Items that the old version has and the new one lacks, as a digest run leaves them between its two lanes."""
        questions = await chosen(store, path)
        await store_items(store, items(21, 25))
        async with recorded_run(store, "digest") as run, open_live(settings, store) as live:
            await digest(store, live[0], run)
        assert await held_by(store) == {"words-64": 25, "words-96": 20}
        return questions

    monkeypatch.setattr(activation, "choose_questions", choose_late)
    await do(activate, settings, store)
    assert await held_by(store) == {"words-64": 25, "words-96": 25}
    assert (await active_version(store.pool)).embedding_model == "words-96"


async def test_batches_of_the_serving_version_wait_for_a_swap_and_nothing_else_does(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 5))
    serving = await active_version(store.pool)
    async with held(store.pool, serving):
        await store_items(store, items(6, 8))
        digesting = asyncio.create_task(digest_live(settings, store))
        async with open_finder(settings) as finder:
            assert (await finder.find("loader case 1 fails", limit=1)).hits[0].number == 1
        while await rows(store, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(0,)]:
            assert not digesting.done(), "a batch was finished while it should have waited"
            await asyncio.sleep(0.02)
        assert await held_by(store) == {"words-64": 5}
    await digesting
    assert await held_by(store) == {"words-64": 8}


async def test_doctor_looks_at_the_engines_that_serve_where_the_settings_name_others(store, models, items):
    await digest_file(models("words-64"), store, items(1, 2))
    assert await doctor._serving(models("words-64")) is None
    found = await doctor._serving(models("words-96"))
    assert (found.level, "words-64" in found.message) == ("warning", True)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE index_version SET embedding_base_url = 'http://127.0.0.1:1/v1'")
    assert (await doctor._serving(models("words-96"))).level == "error"


async def test_a_model_that_means_nothing_is_refused_and_only_force_lets_it_serve(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items())
    await do(reprocess, models("random-64"), store)
    with pytest.raises(GateRefused, match=r"recall@10 by vector search falls from 1\.00 to 0\."):
        await do(activate, settings, store)
    assert (await active_version(store.pool)).embedding_model == "words-64"
    done, _ = await do(activate, settings, store, force=True)
    assert done.objections
    assert (await active_version(store.pool)).embedding_model == "random-64"


async def test_an_incomplete_version_is_refused_and_says_what_would_be_lost(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 30))
    version, _ = await do(reprocess, models("words-96"), store)
    async with store.pool.connection() as connection:
        await connection.execute("DELETE FROM digest WHERE version_id = %s AND item_id <= 3", [version.id])
        await connection.execute(
            "INSERT INTO dead_letter (version_id, item_id, stage, reason, detail, attempts, content_hash) "
            "SELECT %s, id, 'embed', 'HTTP 500', '', 3, content_hash FROM item WHERE id <= 2",
            [version.id],
        )
    with pytest.raises(GateRefused, match=r"2 items would leave search \(dead letter: HTTP 500\)"):  # the third was digested again
        await do(activate, settings, store)
    assert (await active_version(store.pool)).embedding_model == "words-64"


async def test_a_question_file_decides_where_there_is_one(store, models, items, jsonl, row):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 30))
    await do(reprocess, models("words-96"), store)
    questions = jsonl(*({"question": f"subject{n} fail", "url": row(n)["url"]} for n in range(1, 11)), name="questions.jsonl")
    found = await compare(settings, store, questions)
    assert (found["questions"], found["asked"], [each["serves"] for each in found["versions"]]) == ("questions.jsonl", 10, [True, False])
    done, _ = await do(activate, settings, store, questions=questions)
    assert (done.questions, done.asked) == ("questions.jsonl", 10)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        ({}, None),
        ({"recall_at_10": {"hybrid": 0.86, "vector": 0.8}}, None),  # a fall within the margin
        ({"recall_at_10": {"hybrid": 0.84, "vector": 0.85}}, "hybrid"),
        ({"recall_at_10": {"hybrid": 0.9, "vector": 0.7}}, "vector"),  # words make up for bad vectors in the hybrid
        ({"ann_recall": 0.9}, "index"),
        ({"missing": {"dead letter: HTTP 500": 3}}, "3 items"),
        ({"missing": {"waiting": 3}}, None),  # it came a moment ago, and the swap waits for it
    ],
)
def test_the_gate_objects_to_what_finds_less(after, reason):
    good = {"missing": {}, "indexed": True, "recall_at_10": {"hybrid": 0.9, "vector": 0.85}, "recall_at_1": {}, "ann_recall": 1.0}
    found = objections(Measured(version=None, **good), Measured(version=None, **good | after), margin=0.05)
    assert bool(found) == bool(reason)
    assert all(reason in each for each in found)


async def test_a_rollback_loses_nothing_that_was_stored_since(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 20))
    await do(reprocess, models("words-96"), store)
    await do(activate, settings, store)
    await digest_file(settings, store, items(21, 30))  # to both
    await store_items(store, items(31, 35))  # due in both
    done, _ = await do(roll_back, settings, store)
    assert (await active_version(store.pool)).embedding_model == "words-64"
    assert done.objections == []
    assert (await held_by(store))["words-64"] == 35
    async with open_finder(settings) as finder:
        assert (await finder.find("allocator case 33 fails", mode="vector", limit=1)).hits[0].number == 33
    await do(roll_back, settings, store)  # and forth again
    assert (await active_version(store.pool)).embedding_model == "words-96"


async def test_there_is_nothing_to_roll_back_to_or_to_reprocess_says_what_to_do(store, models, items):
    with pytest.raises(PreconditionMissing, match="starsearch digest"):
        await do(reprocess, models("words-96"), store)
    await digest_file(models("words-64"), store, items(1, 2))
    with pytest.raises(PreconditionMissing, match="serves already"):
        await do(reprocess, models("words-64"), store)
    with pytest.raises(PreconditionMissing, match="versions list"):
        await do(roll_back, models("words-64"), store)
    with pytest.raises(PreconditionMissing, match="starsearch reprocess"):
        await do(activate, models("words-64"), store)


async def test_a_shadow_whose_engine_is_gone_costs_the_serving_one_nothing(store, models, items, caplog):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 5))
    version, _ = await do(reprocess, models("words-96"), store)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE index_version SET embedding_base_url = 'http://127.0.0.1:1/v1' WHERE id = %s", [version.id])
    counts = await digest_file(settings, store, items(6, 8))
    assert counts.embedded == 3
    assert "not kept up to date" in caplog.text
    assert (await read_status(store.pool)).complete


async def test_an_engine_that_moved_is_found_where_the_settings_say(store, models, items, model_server):
    await digest_file(models("words-64"), store, items(1, 3))
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE index_version SET embedding_base_url = 'http://127.0.0.1:1/v1'")
    assert (await digest_file(models("words-64"), store, items(4, 5))).embedded == 2
    assert (await active_version(store.pool)).embedding_base_url == model_server[1]


async def test_a_dropped_version_is_gone_and_can_be_built_again(store, models, items):
    settings = models("words-64")
    await digest_file(settings, store, items(1, 10))
    version, _ = await do(reprocess, models("words-96"), store)
    with pytest.raises(StarsearchError, match="activate another one first"):
        await drop_version(store.pool, await active_version(store.pool))
    await drop_version(store.pool, version)
    assert await held_by(store) == {"words-64": 10, "words-96": 0}
    assert [each["status"] for each in await describe_versions(store.pool)] == ["active", "retired"]
    await digest_file(settings, store, items(11, 12))
    assert await rows(store, "SELECT count(*) FROM due") == [(0,)]
    again, counts = await do(reprocess, models("words-96"), store)
    assert (again.id, counts.embedded, counts.llm_requests) == (version.id, 12, 0)


async def test_a_version_is_named_by_its_first_characters(store, models, items):
    await digest_file(models("words-64"), store, items(1, 2))
    version = await active_version(store.pool)
    assert (await find_version(store.pool, version.short[:4])).id == version.id
    with pytest.raises(StarsearchError, match="versions list"):
        await find_version(store.pool, "no")


async def test_digests_cannot_be_mixed_and_recipes_cannot_change(store, models, items):
    await digest_file(models("words-64"), store, items(1, 3))
    await do(reprocess, models("words-96", llm="second-chat"), store)
    first, second = await live_versions(store.pool)
    insert = (
        "INSERT INTO digest (version_id, item_id, partition_at, content_hash, summary_key, embedding) "
        "SELECT %s, item_id, partition_at, content_hash, summary_key, %s FROM digest WHERE version_id = %s "
        "ON CONFLICT (version_id, item_id, partition_at) DO UPDATE SET summary_key = excluded.summary_key, embedding = excluded.embedding"
    )
    vector = {96: HalfVector(np.ones(96)), 64: HalfVector(np.ones(64))}
    wrong = [
        (insert, [second.id, vector[96], first.id]),  # the summaries of another model
        (insert, [second.id, vector[64], second.id]),  # vectors of another length
        ("UPDATE index_version SET prompt_version = 'v9' WHERE id = %s", [first.id]),
        ("UPDATE index_version SET status = 'active', activated_at = now()", []),  # two at once
    ]
    for statement, parameters in wrong:
        async with store.pool.connection() as connection:
            with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.UniqueViolation)):
                await connection.execute(statement, parameters)
            await connection.rollback()


async def test_the_index_of_a_killed_build_is_built_again(store, models, items):
    await digest_file(models("words-64"), store, items(1, 10))
    version, _ = await do(reprocess, models("words-96"), store)
    async with store.pool.connection() as connection:
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", [f"digest_v{version.id}_embedding_idx"]
        )
    assert not await has_index(store.pool, version)
    await build_index(store.dsn, version)
    assert await has_index(store.pool, version)


async def test_killed_at_random_points_reprocess_ends_the_same_without_asking_for_a_summary(
    environment, store, models, items, model_server
):
    server, url = model_server
    await digest_file(models("words-64"), store, items(1, 600))
    server.requests.clear()
    settings = {"LLM_BASE_URL": url, "LLM_MODEL": "extractive", "EMBEDDING_BASE_URL": url, "EMBEDDING_MODEL": "words-96", "WORKERS": "1"}
    env = environment | {f"STARSEARCH_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "starsearch.cli", "reprocess", "--json"]
    kills = 2
    for kill in range(1, kills + 1):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        while (await held_by(store)).get("words-96", 0) < kill * 2 * BATCH and process.poll() is None:
            await asyncio.sleep(0.01)
        assert process.poll() is None, "killed too late to prove anything"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    last = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(last.stdout)["llm_requests"] == 0
    assert await held_by(store) == {"words-64": 600, "words-96": 600}
    assert await has_index(store.pool, await newest_shadow(store.pool))
    assert server.requests["chat"] == 0
    assert 600 <= server.requests["words-96"] <= 600 + kills * BATCH + 10  # the batch in flight, and one text to learn the length
