"""From items to digests on a real database: nothing lost, nothing twice, every failure counted."""

import asyncio
import itertools
import json
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import pytest

from starsearch import keeping, pipeline
from starsearch.audit import read_status
from starsearch.engines import Engines
from starsearch.errors import DatabaseUnsuitable, EngineFailing, EngineUnavailable, LeaseLost, VersionMismatch
from starsearch.explain import explain, parse_address
from starsearch.inference import endpoints
from starsearch.inference.client import open_client, preflight
from starsearch.jsonl import read_items
from starsearch.models import Chunk, IndexVersion, Summary, parse_item
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.store import digests, leases, migrate
from starsearch.store.database import connect, open_database
from starsearch.store.digests import Digest, finish_batch, keep_summaries
from starsearch.store.items import store_chunk
from starsearch.store.leases import BACKFILL, LIVE, claim, find_due, release_dead, worker
from starsearch.store.ledger import Call, intend
from starsearch.store.purges import Target, purge
from starsearch.store.versions import ensure_version
from tests.stub_engine import StubEngine, completion, failure, nonsense

VERSION = IndexVersion("stub", "", 384, "recipe", "stub", "v1")


pytestmark = pytest.mark.usefixtures("quick_retries")


@asynccontextmanager
async def engines_of(stub, patience_seconds=2.0):
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(stub), patience_seconds=patience_seconds) as client:
        engine = await preflight(client, "stub", purpose="LLM")
        yield Engines(engine, engine, VERSION, None)


async def ingest_file(store, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
    return run.counts


async def test_a_node_id_of_another_item_costs_only_its_line(store, row, jsonl):
    assert (await ingest_file(store, jsonl(row(1, node_id="I_1"), row(2, node_id=""), row(3, node_id="")))).rejected == 0
    counts = await ingest_file(
        store, jsonl(row(4, node_id="I_1"), row(5, node_id="I_5"), row(6, node_id="I_5"), row(7), row(1, node_id="I_1"))
    )
    assert (counts.inserted, counts.unchanged, counts.rejected) == (2, 1, 2)
    assert await rows(store, "SELECT number, node_id FROM item WHERE tombstoned_at IS NULL ORDER BY 1") == [
        (1, "I_1"), (2, None), (3, None), (5, "I_5"), (7, None)
    ]  # fmt: skip
    assert sorted(await rows(store, "SELECT reason FROM rejection")) == [
        ("quillcap/marlframe#4: node_id: 'I_1' is that of quillcap/marlframe#1: correct it, or leave it out",),
        ("quillcap/marlframe#6: node_id: 'I_5' is that of quillcap/marlframe#5: correct it, or leave it out",),
    ]


async def test_a_node_id_that_github_tells_elsewhere_was_transferred(store, row, jsonl):
    await ingest_file(store, jsonl(row(1, node_id="I_1")))
    chunk = Chunk((parse_item(row(7, repo="brindle/oat", node_id="I_1")),), of_github=True)
    assert (await store_chunk(store.pool, chunk, run_id=1)).inserted == 1
    assert await rows(store, "SELECT number FROM item WHERE tombstoned_at IS NULL") == [(7,)]


async def digest_with(store, stub, patience_seconds=2.0, **options):
    async with engines_of(stub, patience_seconds) as engines, recorded_run(store, "digest") as run:
        await digest(store, engines, run, **options)
    return run.counts


async def rows(store, query, *parameters):
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, parameters)).fetchall()


async def test_every_item_is_stored_summarized_and_embedded_once(store, row, jsonl):
    path = jsonl(*(row(n) for n in range(1, 151)))
    counts = await ingest_file(store, path)
    assert (counts.items, counts.inserted) == (150, 150)
    stub = StubEngine()
    done = await digest_with(store, stub, workers=2)
    assert (done.summarized, done.embedded, done.llm_requests) == (150, 150, 150)
    status = await read_status(store.pool)
    assert status.complete
    assert status.known == status.stored == status.summarized == status.embedded == 150
    [(batches,)] = await rows(store, "SELECT count(*) FROM engine_call WHERE purpose = 'embedding'")
    assert batches in {3, 4}  # two workers may share the last one
    assert status.usage["prompt_tokens"] == 150 * 10 + batches
    assert set(stub.asked.values()) == {1}


async def test_running_again_changes_nothing_and_asks_nothing(store, row, jsonl):
    path = jsonl(*(row(n) for n in range(1, 20)))
    await ingest_file(store, path)
    await digest_with(store, StubEngine())
    again = await ingest_file(store, path)
    assert (again.inserted, again.updated, again.unchanged) == (0, 0, 19)
    stub = StubEngine()
    done = await digest_with(store, stub)
    assert (done.embedded, done.llm_requests, stub.embedded) == (0, 0, 0)


async def test_changed_text_is_digested_again_and_changed_labels_are_not(store, row, jsonl):
    await ingest_file(store, jsonl(row(1), row(2)))
    await digest_with(store, StubEngine())
    later = {"updated_at": "2026-04-01T00:00:00Z"}
    counts = await ingest_file(store, jsonl(row(1, body="Now it is fixed.", **later), row(2, labels=["bug"], **later)))
    assert counts.updated == 2
    done = await digest_with(store, StubEngine())
    assert done.embedded == 1


async def test_equal_texts_are_summarized_once(store, row, jsonl):
    same = {"title": "Bump lodash", "body": "Bumps lodash to the newest release."}
    await ingest_file(store, jsonl(*(row(n, **same) for n in range(1, 100))))
    done = await digest_with(store, StubEngine())
    assert (done.embedded, done.llm_requests) == (99, 1)


async def test_duplicates_in_one_file_keep_the_newer(store, row, jsonl):
    newer = row(1, title="Newer", updated_at="2026-05-01T00:00:00Z")
    counts = await ingest_file(store, jsonl(newer, row(1, title="Older"), row(1, title="Undated", updated_at=None)))
    assert (counts.items, counts.inserted, counts.unchanged) == (3, 1, 2)
    assert await rows(store, "SELECT title FROM item") == [("Newer",)]


@pytest.mark.parametrize(
    ("first", "second", "winner"),
    [
        ({"updated_at": "2026-01-01T00:00:00Z"}, {"updated_at": "2026-01-02T00:00:00Z"}, 2),  # later wins
        ({"updated_at": "2026-01-02T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}, 1),  # never older over newer
        ({"updated_at": "2026-01-01T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}, 2),  # equal: the later one read
        ({"updated_at": None}, {"updated_at": None}, 2),  # unknown: the later one read
        ({"updated_at": "2026-01-01T00:00:00Z"}, {"updated_at": None}, 1),  # unknown loses to known
        ({"excerpt": True, "updated_at": "2026-01-02T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}, 2),  # whole beats excerpt
        ({"updated_at": None}, {"excerpt": True, "updated_at": "2026-01-02T00:00:00Z"}, 1),  # and keeps
    ],
)
async def test_which_of_two_wins(store, row, jsonl, first, second, winner):
    await ingest_file(store, jsonl(row(1, title="1", **first)))
    await ingest_file(store, jsonl(row(1, title="2", **second)))
    assert await rows(store, "SELECT title FROM item") == [(str(winner),)]


async def test_a_source_that_does_not_tell_comments_takes_none_away(store, row, jsonl):
    await ingest_file(store, jsonl(row(1, comments=[{"body": "It is the driver.", "author": "ada"}])))
    await digest_with(store, StubEngine())
    counts = await ingest_file(store, jsonl(row(1, updated_at="2026-03-02T10:00:00Z")))
    assert counts.unchanged == 1
    assert (await rows(store, "SELECT comments->0->>'body' FROM item")) == [("It is the driver.",)]


async def test_partition_never_changes(store, row, jsonl):
    await ingest_file(store, jsonl(row(1, created_at=None, updated_at="2026-02-01T00:00:00Z")))
    await ingest_file(store, jsonl(row(1, created_at="2025-01-01T00:00:00Z", updated_at="2026-02-02T00:00:00Z")))
    assert (await rows(store, "SELECT partition_at::date::text, created_at::date::text FROM item")) == [("2026-02-01", "2025-01-01")]


async def test_bad_lines_are_counted_with_their_reasons(store, row, jsonl):
    counts = await ingest_file(store, jsonl(row(1), "{", row(2, type="poll")))
    assert (counts.items, counts.rejected) == (1, 2)
    assert [line for (line,) in await rows(store, "SELECT line FROM rejection ORDER BY line")] == [2, 3]
    assert (await read_status(store.pool)).rejected == 2


async def test_purged_items_do_not_come_back(store, row, jsonl):
    async with store.pool.connection() as connection:
        await connection.execute("INSERT INTO purge (repository, number) VALUES ('QuillCap/Marlframe', 1)")
        await connection.execute("INSERT INTO purge (author) VALUES ('spammer')")
    counts = await ingest_file(store, jsonl(row(1), row(2, author="spammer"), row(3)))
    assert (counts.items, counts.rejected) == (1, 2)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: completion(""), "empty"),
        (lambda: completion("The sum is", "length"), "cut off"),
        (lambda: completion("The Poison column sum is doubled in every report since version 7.3.1."), "unfounded version"),
    ],
)
async def test_an_item_whose_summary_does_not_pass_the_gate_is_searchable_and_counted(store, row, jsonl, answer, reason):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 11)), row(11, title="Poison")))
    done = await digest_with(store, StubEngine(lambda text, times: answer() if "Poison" in text else None))
    assert (done.embedded, done.dead_letters, done.llm_requests) == (11, 0, 12)
    assert (done.prompt_tokens, done.completion_tokens) == (12 * 10 + 1, 12 * 5)  # both of its answers are paid for
    status = await read_status(store.pool)
    assert status.complete
    assert status.gated == {reason: 1}
    found = await explain(store.pool, parse_address("quillcap/marlframe#11", host="github.com"))
    assert (found["summary_source"], found["gate_reason"], found["summary_model"]) == ("extractive", reason, "stub")
    assert found["summary"] in row(11)["body"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: failure(500), "HTTP 500"),
        (lambda: httpx2.Response(200, json={"choices": []}), "unreadable answer"),
        (lambda: httpx2.ReadTimeout("slow"), "timeout"),
    ],
)
async def test_an_item_that_fails_for_ever_becomes_a_dead_letter(store, row, jsonl, answer, reason, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 11)), row(11, title="Poison")))
    done = await digest_with(store, StubEngine(lambda text, times: answer() if "Poison" in text else None))
    assert (done.embedded, done.dead_letters) == (10, 1)
    status = await read_status(store.pool)
    assert status.complete
    assert status.stored == status.embedded + status.dead_letters
    assert [(gap.reason, gap.count) for gap in status.gaps] == [(f"dead letter: {reason}", 1)]
    assert (await explain(store.pool, parse_address("quillcap/marlframe#11", host="github.com")))["failure"] == reason


async def test_an_item_that_recovers_is_tried_again(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 4))))
    done = await digest_with(store, StubEngine(lambda text, times: nonsense() if "report 2" in text and times < 2 else None))
    assert (done.embedded, done.dead_letters, done.llm_requests) == (3, 0, 5)


async def test_a_dead_letter_comes_alive_when_its_text_changes(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    assert (await digest_with(store, StubEngine(lambda text, times: nonsense()))).dead_letters == 1
    await ingest_file(store, jsonl(row(1, body="Edited.", updated_at="2026-05-01T00:00:00Z")))
    assert (await digest_with(store, StubEngine())).embedded == 1
    assert (await read_status(store.pool)).dead_letters == 0


async def test_an_engine_that_goes_away_stops_the_run_and_costs_no_attempt(store, row, jsonl, monkeypatch):
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 101))))
    with pytest.raises(EngineUnavailable):
        await digest_with(store, StubEngine(lambda text, times: httpx2.ConnectError("refused")))
    assert await rows(store, "SELECT max(attempts), count(lease_token), count(*) FROM due") == [(0, 0, 100)]
    assert (await digest_with(store, StubEngine())).embedded == 100


@pytest.mark.parametrize("said", [lambda: failure(500), lambda: httpx2.Response(200, html="<h1>Sign in</h1>")])
async def test_an_engine_that_fails_everything_stops_the_run(store, row, jsonl, said):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 301))))
    stub = StubEngine(lambda text, times: said())
    with pytest.raises(EngineFailing):
        await digest_with(store, stub)
    assert len(stub.asked) == pipeline.FAILED_BATCHES * leases.BATCH
    status = await read_status(store.pool)
    assert (status.pending, status.complete) == (300, False)


async def test_a_model_that_answers_nonsense_is_no_reason_to_stop(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 301))))
    done = await digest_with(store, StubEngine(lambda text, times: completion("So it", "length")))
    assert (done.embedded, done.dead_letters) == (300, 0)
    status = await read_status(store.pool)
    assert status.complete
    assert status.gated == {"cut off": 300}
    assert status.usage["completion_tokens"] == 2 * 300 * 5  # what did not pass was paid for too


async def test_embeddings_that_fail_are_counted_too(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    stub = StubEngine()
    stub.embedding_answer = lambda texts: failure(500)
    assert (await digest_with(store, stub)).dead_letters == 1
    assert (await rows(store, "SELECT stage, reason FROM dead_letter")) == [("embed", "HTTP 500")]


async def test_vectors_of_another_length_are_asked_for_again_and_end_no_run(store, row, jsonl):
    """One engine of several serves another model under the same name, or cuts its vectors."""
    await ingest_file(store, jsonl(row(1), row(2)))
    stub = StubEngine()
    data = [{"object": "embedding", "index": n, "embedding": [0.1, 0.2]} for n in range(2)]
    wrong = [httpx2.Response(200, json={"object": "list", "model": "stub", "data": data})]
    stub.embedding_answer = lambda texts: wrong.pop() if wrong else None
    assert (await digest_with(store, stub)).embedded == 2
    assert await rows(store, "SELECT outcome FROM engine_call WHERE purpose = 'embedding' ORDER BY id") == [("ok",)]


POISONED = [
    (lambda: failure(500), "HTTP 500"),  # Ollama: unsupported value: NaN
    (lambda: httpx2.ReadError("closed"), "no answer"),  # llama.cpp crashed
]


@pytest.mark.parametrize(("answer", "reason"), POISONED)
async def test_one_text_that_upsets_the_embedding_engine_costs_only_its_item(store, row, jsonl, answer, reason, monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.001)
    await ingest_file(store, jsonl(*(row(n, title="Poison" if n == 40 else f"Report {n}") for n in range(1, 101))))
    asked = []

    def embed(texts):
        asked.append(texts)
        return answer() if any("Poison" in text for text in texts) else None

    stub = StubEngine()
    stub.embedding_answer = embed
    done = await digest_with(store, stub)
    assert (done.embedded, done.dead_letters) == (99, 1)
    assert await rows(store, "SELECT number, stage, reason, attempts FROM dead_letter JOIN item ON id = item_id") == [
        (40, "embed", reason, digests.ATTEMPTS)
    ]
    assert await rows(store, "SELECT count(*) FROM engine_call WHERE settled_at IS NULL") == [(0,)]
    assert await rows(store, "SELECT sum(requests)::integer FROM engine_call WHERE purpose = 'embedding'") == [(len(asked),)]


@pytest.mark.parametrize("crashes", [1, endpoints.TRIES])
async def test_an_embedding_engine_that_stays_away_after_one_text_costs_that_one_an_attempt(store, row, jsonl, monkeypatch, crashes):
    """And none of its neighbours, so that the next run reaches those behind it."""
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.001)
    await ingest_file(store, jsonl(row(1, title="Poison"), *(row(n) for n in range(2, 5))))
    lone = 0

    def embed(texts):
        nonlocal lone
        if lone == crashes:
            return httpx2.ConnectError("refused")
        poisoned = any("Poison" in text for text in texts)
        lone += poisoned and len(texts) == 1
        return httpx2.ReadError("closed") if poisoned else None

    stub = StubEngine()
    stub.embedding_answer = embed
    with pytest.raises(EngineUnavailable):
        await digest_with(store, stub, patience_seconds=0.5)
    assert await rows(store, "SELECT number, attempts FROM due JOIN item ON id = item_id ORDER BY 1") == [(1, 1), (2, 0), (3, 0), (4, 0)]
    stub.embedding_answer = lambda texts: None
    assert (await digest_with(store, stub)).embedded == 4


async def test_an_embedding_engine_that_is_gone_costs_no_attempt(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    stub = StubEngine()
    stub.embedding_answer = lambda texts: httpx2.ConnectError("refused")
    with pytest.raises(EngineUnavailable):
        await digest_with(store, stub, patience_seconds=0.5)
    assert await rows(store, "SELECT max(attempts), count(lease_token), count(*) FROM due") == [(0, 0, 1)]


async def test_an_embedding_engine_that_always_breaks_off_costs_no_attempt(store, row, jsonl, monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.001)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 5))))
    stub = StubEngine()
    stub.embedding_answer = lambda texts: httpx2.ReadError("closed")
    with pytest.raises(EngineUnavailable):
        await digest_with(store, stub)
    assert stub.embedded == 2 * endpoints.TRIES  # theirs, and a harmless text's
    assert await rows(store, "SELECT max(attempts), count(lease_token), count(*) FROM due") == [(0, 0, 4)]


async def test_a_zombie_can_write_nothing(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    version = await ensure_version(store.pool, VERSION)
    await find_due(store.pool)
    zombies = await claim(store.pool, version.id, 1)
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE due SET due_at = now()")  # the lease runs out
    taken = await claim(store.pool, version.id, 2)
    assert taken.token != zombies.token
    with pytest.raises(LeaseLost):
        await finish_batch(store.pool, version, zombies, [], [], [], run_id=1)
    assert await rows(store, "SELECT lease_token FROM due") == [(taken.token,)]


@pytest.mark.parametrize("ends", ["in a moment", "late"])
async def test_what_was_summarized_when_a_batch_broke_off_is_not_asked_for_again(store, row, jsonl, monkeypatch, ends):
    """Late: after the summaries were kept on the way, so that even a killed process leaves them."""
    monkeypatch.setattr(keeping, "SECONDS", 0.05 if ends == "late" else 60)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 21))))

    class Stuck(StubEngine):
        async def __call__(self, request):
            answer = await super().__call__(request)
            if request.url.path.endswith("/chat/completions") and "in report 7" in request.content.decode():
                await asyncio.Event().wait()
            return answer

    stuck, working = Stuck(), StubEngine()
    digesting = asyncio.create_task(digest_with(store, stuck))
    async with asyncio.timeout(20):
        while len(stuck.asked) < 20 or (ends == "late" and await rows(store, "SELECT count(*) FROM summary") != [(19,)]):
            await asyncio.sleep(0.02)
    digesting.cancel()
    await asyncio.gather(digesting, return_exceptions=True)
    assert await rows(store, "SELECT count(*) FROM summary") == [(19,)]
    assert await rows(store, "SELECT outcome, count(*) FROM engine_call WHERE purpose = 'summary' GROUP BY 1 ORDER BY 1") == [
        ("not asked", 1),
        ("ok", 19),
    ]
    await digest_with(store, working)
    assert len(working.asked) == 1
    status = await read_status(store.pool)
    assert status.complete
    assert status.usage["prompt_tokens"] == 20 * 10 + 1


async def test_summaries_of_what_is_purged_meanwhile_are_not_kept(store, row, jsonl):
    version = await ensure_version(store.pool, VERSION)
    await ingest_file(store, jsonl(row(1), row(2)))
    await find_due(store.pool)
    async with recorded_run(store, "digest") as run:
        batch = await claim(store.pool, version.id, 1)
        calls = [Call("summary", "stub", [item.id], outcome="ok") for item in batch.items]
        await intend(store.pool, run.id, batch.token, calls)
        await purge(store.pool, Target("github.com", "quillcap/marlframe", 1))
        made = [(Summary(bytes([n]), f"Summary {n}.", "model"), call) for n, call in enumerate(calls, 1)]
        await keep_summaries(store.pool, version, batch, made, run_id=run.id)
    assert await rows(store, "SELECT text FROM summary") == [("Summary 2.",)]
    assert await rows(store, "SELECT count(*) FROM engine_call WHERE settled_at IS NULL") == [(0,)]


async def test_live_items_are_leased_before_backfilled_ones_and_never_with_them(store, row, jsonl):
    version = await ensure_version(store.pool, VERSION)
    async with recorded_run(store, "backfill") as run:
        for numbers, priority in ((range(1, 6), BACKFILL), (range(6, 11), LIVE)):
            chunk = Chunk(tuple(parse_item(row(n)) for n in numbers))
            await store_chunk(store.pool, chunk, run_id=run.id, priority=priority)
    batches = [await claim(store.pool, version.id, 1, size=8) for _ in range(2)]
    assert [{item.title.split()[-1] for item in batch.items} for batch in batches] == [set("6789") | {"10"}, set("12345")]


async def test_two_workers_never_hold_the_same_item(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 200))))
    version = await ensure_version(store.pool, VERSION)
    await find_due(store.pool)
    batches = await asyncio.gather(*(claim(store.pool, version.id, n, size=20) for n in range(12)))
    ids = [item.id for batch in batches if batch for item in batch.items]
    assert len(ids) == len(set(ids)) == 199


async def test_leases_of_a_dead_worker_are_due_at_once_and_those_of_a_living_one_are_not(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 5))))
    version = await ensure_version(store.pool, VERSION)
    await find_due(store.pool)
    async with worker(store.dsn) as living:
        async with worker(store.dsn) as dying:
            await claim(store.pool, version.id, dying, size=2)
        await claim(store.pool, version.id, living, size=2)
        assert await release_dead(store.pool) == 2
        assert await rows(store, "SELECT DISTINCT lease_worker FROM due WHERE lease_worker IS NOT NULL") == [(living,)]


async def lives(store, number, *, until):
    for _ in range(200):
        if bool(await rows(store, "SELECT FROM living_worker WHERE worker = %s", number)) is until:
            return True
        await asyncio.sleep(0.02)
    return False


async def test_a_worker_whose_session_was_cut_lives_on_and_keeps_what_it_claims(store, row, jsonl, monkeypatch):
    monkeypatch.setattr(leases, "PING_SECONDS", 1.0)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 5))))
    version = await ensure_version(store.pool, VERSION)
    await find_due(store.pool)
    async with worker(store.dsn) as number:
        await claim(store.pool, version.id, number, size=2)
        await rows(store, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s", number)
        assert await lives(store, number, until=False)
        assert await release_dead(store.pool) == 2
        assert await lives(store, number, until=True)
        await claim(store.pool, version.id, number, size=2)
        assert await release_dead(store.pool) == 0
    assert await release_dead(store.pool) == 2


async def test_a_new_text_waits_until_what_became_of_the_old_one_is_written_down(store, row, jsonl):
    """Else a result of the old text could be counted while the new one is stored, and neither would see the other."""
    await ingest_file(store, jsonl(row(1)))
    async with store.pool.connection() as digesting:
        await digesting.execute("SELECT FROM item FOR KEY SHARE")
        storing = asyncio.create_task(ingest_file(store, jsonl(row(1, body="Changed.", updated_at="2026-05-01T00:00:00Z"), name="2.jsonl")))
        await asyncio.wait([storing], timeout=0.5)
        assert not storing.done()
    await storing
    assert await rows(store, "SELECT body FROM item") == [("Changed.",)]


async def test_text_that_changes_while_it_is_digested_is_due_again(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    changed = jsonl(row(1, body="Changed meanwhile.", updated_at="2026-05-01T00:00:00Z"), name="changed.jsonl")
    loop = asyncio.get_running_loop()

    class Meddler(StubEngine):
        async def __call__(self, request):
            if request.url.path.endswith("/chat/completions") and not self.asked:
                await loop.create_task(ingest_file(store, changed))
            return await super().__call__(request)

    stub = Meddler()
    done = await digest_with(store, stub)
    assert done.embedded == 2
    assert any("Changed meanwhile" in text for text in stub.asked)
    assert (await read_status(store.pool)).complete


@pytest.mark.parametrize("attempt", range(digests.ATTEMPTS))  # at which the old text fails while the new one is stored
async def test_failures_of_a_text_that_changed_meanwhile_are_not_charged_to_the_new_one(store, row, jsonl, attempt):
    await ingest_file(store, jsonl(row(1)))
    changed = jsonl(row(1, body="Changed meanwhile.", updated_at="2026-05-01T00:00:00Z"), name="changed.jsonl")
    loop = asyncio.get_running_loop()

    class Meddler(StubEngine):
        async def __call__(self, request):
            if request.url.path.endswith("/chat/completions") and self.asked.total() == attempt:
                await loop.create_task(ingest_file(store, changed))
            return await super().__call__(request)

    # the new text needs every attempt that it has
    stub = Meddler(lambda text, times: None if "Changed meanwhile" in text and times == digests.ATTEMPTS - 1 else nonsense())
    done = await digest_with(store, stub)
    assert (done.embedded, done.dead_letters) == (1, 0)
    assert list(stub.asked.values()) == [attempt + 1, digests.ATTEMPTS]
    assert await rows(store, "SELECT FROM dead_letter") == []
    assert (await read_status(store.pool)).complete


async def test_a_job_at_work_outlives_a_migration_and_a_later_one_of_the_old_version_refuses(store, row, jsonl, monkeypatch):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 200))))
    loop, ours = asyncio.get_running_loop(), migrate.migrations()
    columns = "; ".join(f"ALTER TABLE {table} ADD COLUMN newer integer DEFAULT 1" for table in ("item", "due", "digest", "summary", "run"))
    newer = [*ours, migrate.Migration(ours[-1].number + 1, "newer.sql", columns)]

    async def upgrade():
        with monkeypatch.context() as patched:
            patched.setattr(migrate, "migrations", lambda: newer)
            async with await connect(store.dsn) as connection:
                assert await migrate.migrate(connection) == ["newer.sql"]

    class Meddler(StubEngine):
        calls = itertools.count()

        async def __call__(self, request):
            if request.url.path.endswith("/chat/completions") and next(self.calls) == 100:
                await loop.create_task(upgrade())
            return await super().__call__(request)

    done = await digest_with(store, Meddler(), workers=2)
    assert (done.embedded, done.dead_letters) == (199, 0)
    assert await rows(store, "SELECT count(newer) FROM digest") == [(199,)]
    with pytest.raises(DatabaseUnsuitable, match=r"newer.sql.*update starsearch"):
        async with open_database(store.dsn):
            pass


async def test_a_migration_lets_go_of_a_job_that_waits_for_it_and_comes_back(store, monkeypatch):
    ours = migrate.migrations()
    columns = "ALTER TABLE item ADD COLUMN newer integer; ALTER TABLE due ADD COLUMN newer integer"
    monkeypatch.setattr(migrate, "migrations", lambda: [*ours, migrate.Migration(ours[-1].number + 1, "newer.sql", columns)])
    async with await connect(store.dsn) as connection, await connect(store.dsn) as job:
        async with job.transaction():
            await job.execute("SELECT FROM due FOR UPDATE")  # it holds what the migration changes last
            migrating = asyncio.create_task(migrate.migrate(connection))
            await waiting(store, 1)
            await job.execute("SELECT FROM item")  # and asks for what it changes first
            await asyncio.sleep(1.5)  # longer than PostgreSQL looks at a deadlock
            await job.execute("SELECT FROM item")
        assert await migrating == ["newer.sql"]


async def test_an_item_stored_anew_while_its_batch_is_being_finished_waits_instead_of_deadlocking(store, row):
    version = await ensure_version(store.pool, VERSION)
    async with recorded_run(store, "ingest") as run:
        await store_chunk(store.pool, Chunk((parse_item(row(1)),)), run_id=run.id)
        batch = await claim(store.pool, version.id, 1)
        found = [Digest(item, Summary(b"key", "A summary.", "model"), np.eye(1, 384, dtype=np.float32)[0]) for item in batch.items]
        changed = Chunk((parse_item(row(1, body="Changed meanwhile.", updated_at="2026-05-01T00:00:00Z")),))
        async with await connect(store.dsn) as holder, holder.transaction():
            await holder.execute("SELECT FROM due FOR UPDATE")
            finishing = asyncio.create_task(finish_batch(store.pool, version, batch, found, [], [], run_id=run.id))
            await waiting(store, 1)
            storing = asyncio.create_task(store_chunk(store.pool, changed, run_id=run.id))
            await waiting(store, 2)
        assert (await finishing).embedded == 1
        assert (await storing).updated == 1
    assert await rows(
        store, "SELECT d.content_hash = i.content_hash FROM due JOIN item i ON i.id = item_id JOIN digest d USING (item_id)"
    ) == [(False,)]


async def waiting(store, sessions):
    """Until so many sessions wait for another one."""
    async with asyncio.timeout(60):
        while await rows(store, "SELECT count(*) FROM pg_stat_activity WHERE pg_blocking_pids(pid) <> '{}'") != [(sessions,)]:
            await asyncio.sleep(0.02)


async def test_what_an_overloaded_engine_refuses_costs_no_attempt(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 11))))
    full = True
    stub = StubEngine(lambda text, _: failure(503) if full and "report 3\n" in text else None)
    with pytest.raises(EngineUnavailable, match="overloaded"):  # refused beside nine that were answered, then alone
        await digest_with(store, stub)
    assert await rows(store, "SELECT attempts, reason FROM due") == [(0, "no answer")]
    full = False
    done = await digest_with(store, stub)
    assert (done.embedded, done.dead_letters) == (1, 0)


async def test_the_ledger_knows_of_every_request_before_it_is_sent(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 11))))

    class Accountant(StubEngine):
        async def __call__(self, request):
            if request.url.path.endswith("/chat/completions"):
                assert (await rows(store, "SELECT count(*) FROM engine_call WHERE settled_at IS NULL")) == [(11,)]
            return await super().__call__(request)

    stub = Accountant(lambda text, times: failure(500) if "report 3\n" in text and times == 0 else None)
    done = await digest_with(store, stub)
    requests = sum(stub.asked.values())
    assert done.llm_requests == requests == 11
    assert await rows(store, "SELECT sum(requests) FROM engine_call WHERE purpose = 'summary'") == [(requests,)]


async def test_another_model_is_refused_and_says_what_to_do(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    await digest_with(store, StubEngine())
    other = IndexVersion(**{**vars(VERSION), "embedding_model": "other"})
    with pytest.raises(VersionMismatch, match="starsearch reprocess") as caught:
        await ensure_version(store.pool, other)
    assert caught.value.exit_code == 3


async def test_the_longest_real_body_goes_through(store, row, jsonl):
    await ingest_file(store, jsonl(row(1, body="Traceback (most recent call last) " * 6_625)))
    assert (await digest_with(store, StubEngine())).embedded == 1


async def test_real_items_end_to_end(store, shared_data, engines, tmp_path):
    lines = (shared_data / "sample.jsonl").read_text("utf-8").splitlines()[:130]
    path = tmp_path / "real.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    counts = await ingest_file(store, path)
    assert (counts.items, counts.rejected) == (130, 0)
    async with recorded_run(store, "digest") as run:
        await digest(store, engines, run)
    assert (await read_status(store.pool)).complete
    assert run.counts.embedded == 130
    stored = {number for (number,) in await rows(store, "SELECT number FROM item")}
    assert stored == {json.loads(line)["number"] for line in lines}
