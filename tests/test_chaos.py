"""What makes a seed replay, what is injected, and how much is too much; the rest of chaos/ is proved by its plants."""

import asyncio
import errno
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import numpy as np
import psycopg
import pytest

from chaos import finding, liar
from chaos.__main__ import catalogue
from chaos.disk import small_disk
from chaos.engine import REFUSED_EACH, refused
from chaos.engine import Engine as RefusingEngine
from chaos.faults import AHEAD_SECONDS, FAULTS, GITHUB, NO_SHARD, name_of, schedule, start_a_shard_twice, step_the_databases_clock, told
from chaos.finding import SAME, among, asked, findable, itself, unaccounted
from chaos.ledger import Seen, Total, disagreements, unlike
from chaos.liar import BrokenOff, application, lie, reordered
from chaos.orchestration import SHARD
from chaos.plants import PLANTS
from chaos.proof import TWICE, excess
from starsearch.engines import open_engines
from starsearch.errors import DigestFailed, LeaseLost
from starsearch.inference.client import Engine, open_client
from starsearch.inference.embed import embed
from starsearch.jsonl import read_items
from starsearch.models import Found, Hit, Summary
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store import nearest, search
from starsearch.store.digests import Digest, finish_batch
from starsearch.store.leases import claim, worker
from starsearch.store.versions import active_version
from tests.standin import faults as standin_faults
from tests.standin.world import World


def drawn(seed: int, seconds: float) -> list[tuple[float, str, float]]:
    return [(at, fault.__name__, chance.random()) for at, fault, chance in schedule(seed, seconds)]


def test_a_seed_replays_and_a_longer_run_goes_on_with_the_same_faults():
    assert drawn(7, 60) == drawn(7, 300)[: len(drawn(7, 60))]
    assert drawn(7, 300) != drawn(8, 300)
    assert {name for _, name, _ in drawn(7, 3_600)} == {fault.__name__ for fault in FAULTS}


def test_a_full_disk_takes_nothing_more_until_it_is_given_back(tmp_path):
    disk = small_disk(tmp_path / "disk")
    if disk.reason:
        pytest.skip(disk.reason)
    try:
        (disk.folder / "before").write_bytes(b"x" * 10_000)
        with disk.full():
            with pytest.raises(OSError) as refused:
                (disk.folder / "more").write_bytes(b"x" * 100_000)
            assert refused.value.errno == errno.ENOSPC
        (disk.folder / "after").write_bytes(b"x" * 100_000)
        assert (disk.folder / "before").stat().st_size == 10_000
    finally:
        disk.forget()


SUMMARIES = Total("summary", requests=420, unanswered=4, prompt_tokens=80_000, completion_tokens=20_000, answers=400)
VECTORS = Total("embedding", requests=12, prompt_tokens=30_000, answers=11)
SEEN = Seen(
    Counter(chat=406, prompt_tokens=81_100, completion_tokens=20_300, embedding_tokens=30_500),
    own=8, open_calls=6, summaries=398, missed=0, unstored=0, largest=(250, 80), largest_embedded=3_000,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"answers": 380}, ["406 summaries"]),  # a twentieth of the calls forgotten
        ({"answers": 407}, ["406 summaries"]),  # more than engines wrote
        ({"prompt_tokens": 76_000}, ["tokens of prompts"]),
        ({"prompt_tokens": 81_101}, ["tokens of prompts"]),
        ({"completion_tokens": 19_000}, ["tokens of summaries"]),
        ({"requests": 390}, ["414 requests were answered"]),
    ],
)
def test_a_ledger_that_is_a_twentieth_off_is_not_right(changed: dict[str, int], said: list[str]):
    found = list(disagreements(SEEN, replace(SUMMARIES, **changed), VECTORS))
    assert [words in finding for finding, words in zip(found, said, strict=True)] == [True for _ in said]


def test_vectors_that_no_engine_made_and_texts_asked_for_again_and_again_are_found():
    assert "tokens embedded" in next(disagreements(SEEN, SUMMARIES, replace(VECTORS, prompt_tokens=31_000)))
    assert "for 200 texts" in next(disagreements(replace(SEEN, summaries=200), SUMMARIES, VECTORS))
    assert not list(disagreements(replace(SEEN, summaries=200, unstored=256), SUMMARIES, VECTORS))


def test_totals_are_what_calls_add_up_to():
    assert not list(unlike({"summary": SUMMARIES}, {"summary": SUMMARIES}))
    assert list(unlike({"summary": replace(SUMMARIES, requests=419)}, {"summary": SUMMARIES}))
    assert list(unlike({}, {"embedding": VECTORS}))


@pytest.mark.parametrize(
    ("counts", "texts", "sound"),
    [
        ({}, 200, True),
        ({"unreadable answer": 1, "unusable vector": 1}, 200, True),
        ({"unreadable answer": 3}, 200, False),
        ({"unreadable answer": 12}, 10_000, True),
        ({"unreadable answer": 13}, 10_000, False),
        ({"no answer": 1}, 10_000, False),  # somebody died
        ({"timeout": 1}, 10_000, False),
    ],
)
def test_dead_letters_are_as_many_as_lies_explain(counts: dict[str, int], texts: int, sound: bool):
    assert (list(excess(counts, texts)) == []) is sound


def test_texts_that_every_engine_refuses_are_no_lies():
    assert not list(excess({"HTTP 400": 50, "unreadable answer": 2}, 200))
    assert list(excess({"HTTP 400": 50, "unreadable answer": 3}, 200))


LIVING = {("a/b", 1): "one", ("a/b", 2): "two", ("a/b", 3): "three"}
TEXTS = {("a/b", 1): "one\nThe first.", ("a/b", 2): "two\nThe second."}


@pytest.mark.parametrize(
    ("texts", "dead", "refusals", "said"),
    [
        (TEXTS, {("a/b", 3): "HTTP 400"}, {("a/b", 3)}, []),
        (TEXTS, {("a/b", 3): "unreadable answer"}, set(), []),
        (TEXTS, {}, set(), ["neither digested as they are nor dead letters, such as ('a/b', 3)"]),
        (TEXTS, {}, {("a/b", 3)}, ["neither digested", "that every engine refuses, and no dead letters"]),
        (TEXTS, {("a/b", 3): "HTTP 400"}, set(), ["for a refusal that nobody spoke"]),
        (TEXTS, {("a/b", 3): "HTTP 400", ("a/b", 2): "HTTP 400"}, {("a/b", 2), ("a/b", 3)}, ["at once, such as ('a/b', 2)"]),
    ],
)
def test_a_living_item_is_digested_or_a_dead_letter_with_a_true_reason(texts, dead, refusals, said):
    found = unaccounted(LIVING, texts, dead, refusals)
    assert [words in finding for finding, words in zip(found, said, strict=True)] == [True for _ in said]


def hit(number: int, cosine: float, title: str = "one") -> Hit:
    return Hit(number, "", "a/b", number, "issue", "open", None, [], title, "", "model", cosine, {"vector": cosine, "text": None})


def test_an_item_is_found_where_it_is_as_near_as_its_own_text():
    def found(*hits: Hit) -> Found:
        return Found(list(hits))

    assert itself(found(hit(2, 0.7), hit(1, SAME)), ("a/b", 1))
    assert not itself(found(hit(1, 0.97)), ("a/b", 1))  # among the first, by another item's vector
    assert not itself(found(hit(2, 1.0)), ("a/b", 1))


def test_a_title_is_crowded_out_by_ten_that_differ_in_numbers_alone():
    alike = [hit(n, 0.9, f"Counted twice since revision {n}") for n in range(2, 12)]
    assert among(alike, ("a/b", 1), "Counted twice since revision 1")
    assert not among(alike[1:], ("a/b", 1), "Counted twice since revision 1")
    assert not among(alike, ("a/b", 1), "Something else")


def test_each_title_is_refused_or_not_however_its_text_is_cut():
    world = World()
    world.populate(40, items_each=25, seed=3)
    rows = [row | {"id": 1, "comments": [], "content_hash": b"", "partition_at": row["created_at"]} for row in world.record()]
    kept = ("id", "type", "state", "title", "body", "comments", "content_hash", "partition_at")
    prompts = [asked({name: row[name] for name in kept}) for row in rows]
    refusals = {prompt for prompt in prompts if refused(prompt)}
    assert 0.5 < len(refusals) / (len(rows) / REFUSED_EACH) < 2
    assert all(refused("\n".join(prompt.splitlines()[:3])) for prompt in refusals)


async def answered(content: bytes, texts: int):
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=content, headers={"content-type": "application/json"}))
    async with open_client("http://liar/v1", transport=transport) as client:
        return await embed(Engine(client, "http://liar/v1", "m"), [f"text {n}" for n in range(texts)], dimensions=None, width=384)


@pytest.mark.parametrize("texts", [1, 2, 5])
@pytest.mark.parametrize("kind", liar.VECTORS)
async def test_every_lie_about_vectors_is_told_from_the_truth(kind, texts):
    """Else the proof would count as lost what no system can know to be wrong."""
    with pytest.raises(DigestFailed):
        await answered(liar.VECTORS[kind](texts), texts)


async def test_vectors_in_another_order_are_the_same_vectors():
    data = [{"object": "embedding", "index": n, "embedding": [float(n == place) for place in range(384)]} for n in range(5)]
    truth = json.dumps({"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}}).encode()
    shuffled = reordered(truth, random.Random(1))
    assert [row["index"] for row in json.loads(shuffled)["data"]] != [0, 1, 2, 3, 4]
    vectors, _ = await answered(shuffled, 5)
    np.testing.assert_array_equal(vectors, np.eye(384, dtype=np.float32)[:5])


async def test_the_liar_counts_its_own_answers_and_no_other():
    """As the ledger of chaos needs it: what was passed on, late or broken off too, is in the good engine's count."""
    asked, told = Counter[str](), Counter[str]()

    async def good(_method: str, path: str, _body: bytes) -> httpx2.Response:
        asked[path] += 1
        return httpx2.Response(200, content=b'{"good": "answer"}')

    app = application(good, 5, seconds=(0.0, 0.0))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://liar") as http:
        for _ in range(400):
            try:
                told["good" if (await http.post("/v1/chat/completions", json={})).content == b'{"good": "answer"}' else "own"] += 1
            except BrokenOff:
                told["broken"] += 1
        own = (await http.get("/requests")).json()
    assert own == {"chat": told["own"]}
    assert asked["/v1/chat/completions"] == told["good"] + told["broken"]
    assert told["own"] > 15
    assert told["broken"] > 4


def test_every_kind_of_lie_and_of_slowness_is_drawn():
    chance, batch = random.Random(0), json.dumps({"input": ["a", "b"]}).encode()
    assert {lie("embeddings", batch, chance) for _ in range(200)} == {make(2) for make in liar.VECTORS.values()}
    assert {lie("chat", b"", chance) for _ in range(200)} == set(liar.SUMMARIES.values())


def test_what_is_injected_is_listed():
    listed = catalogue()
    assert all(told(fault) and name_of(fault) in listed for fault in FAULTS)
    assert GITHUB.keys() <= standin_faults.KINDS
    assert all(name in listed for name in (*GITHUB, *liar.SUMMARIES, *liar.VECTORS, *liar.SLOWNESS, *PLANTS))


@dataclass
class Place:
    """As much of a system as a fault needs that asks the database."""

    dsn: str
    begun: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    answers: bool = True

    def connect(self) -> "psycopg.Connection[tuple[object, ...]]":
        return psycopg.connect(self.dsn, autocommit=True)

    @property
    def prefect(self) -> "Place":
        return self

    def begin(self, deployment: str, parameters: dict[str, int]) -> str | None:
        self.begun.append((deployment, parameters))
        return "flow run" if self.answers else None


class Chosen(random.Random):
    """Chooses what it was told to."""

    def __init__(self, seconds: int) -> None:
        super().__init__(0)
        self.seconds = seconds

    def choice(self, seq):
        return next(each for each in seq if each == self.seconds)


def test_a_shard_is_started_twice_under_one_number(dsn):
    place = Place(dsn)
    assert start_a_shard_twice(place, random.Random(0)) == NO_SHARD
    with place.connect() as connection:
        connection.execute(
            "INSERT INTO shard (parent, number, attempt, size) VALUES (gen_random_uuid(), 1, 1, 20), (gen_random_uuid(), 1, 1, 30)"
        )
    start_a_shard_twice(place, random.Random(0))
    assert place.begun == [(SHARD, {"shard": 2, "items": 30})] * 2
    assert start_a_shard_twice(replace(place, answers=False), random.Random(0)) == NO_SHARD  # and is tried again


async def stored(store, engines, *records):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(*records), run)
        await digest(store, engines, run)
    return run.id


@pytest.mark.parametrize(("seconds", "free"), [(AHEAD_SECONDS[1], True), (-10, False)])
async def test_leases_run_out_when_the_databases_clock_steps_ahead(seconds, free, store, engines, row, jsonl):
    await stored(store, engines, jsonl(row()))
    async with store.pool.connection() as connection:
        await connection.execute("INSERT INTO due (version_id, item_id) SELECT version_id, item_id FROM digest")
    async with worker(store.dsn) as first, worker(store.dsn) as second:
        assert await claim(store.pool, 1, first)
        assert await claim(store.pool, 1, second) is None
        step_the_databases_clock(Place(store.dsn), Chosen(seconds))
        assert bool(await claim(store.pool, 1, second)) is free


@pytest.mark.parametrize("name", PLANTS)
def test_every_plant_can_be_planted(name, dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(PLANTS[name].statement)


async def test_without_a_fence_a_stale_result_is_accepted(store, engines, row, jsonl):
    """So that the plant is what it says: with the fence, the first worker's result is refused."""
    run = await stored(store, engines, jsonl(row()))
    version = await active_version(store.pool)
    for planted in (False, True):
        async with store.pool.connection() as connection:
            await connection.execute("INSERT INTO due (version_id, item_id) SELECT version_id, item_id FROM digest")
            if planted:
                await connection.execute(PLANTS["no-fence"].statement)
        async with worker(store.dsn) as first, worker(store.dsn) as second:
            stale = await claim(store.pool, 1, first)
            step_the_databases_clock(Place(store.dsn), Chosen(AHEAD_SECONDS[1]))
            assert await claim(store.pool, 1, second)
            async with store.pool.connection() as connection:
                cursor = await connection.execute("SELECT key, text, source FROM summary")
                summary = Summary(*await cursor.fetchone())
            results = [Digest(stale.items[0], summary, np.eye(384, dtype=np.float32)[0])]
            if not planted:
                with pytest.raises(LeaseLost):
                    await finish_batch(store.pool, version, stale, results, (), (), run_id=run)
                async with store.pool.connection() as connection:
                    await connection.execute("DELETE FROM due")
            else:
                assert (await finish_batch(store.pool, version, stale, results, (), (), run_id=run)).embedded == 1


async def test_a_retry_that_is_planted_digests_items_twice(store, engines, row, jsonl):
    with psycopg.connect(store.dsn, autocommit=True) as connection:
        connection.execute(PLANTS["retried-twice"].statement)
    await stored(store, engines, jsonl(*(row(n) for n in range(1, 21))))
    async with store.pool.connection() as connection:
        assert (await (await connection.execute(TWICE)).fetchone())[0] == 2  # of twenty


@dataclass
class Proved(Place):
    """As much of a system as the search for every item needs."""

    settings: Settings | None = None
    record: Callable[[], list[dict[str, Any]]] = list
    seed: int = 1

    @property
    def control(self) -> "Proved":
        return self


REFUSED_TITLE = next(title for n in range(1_000) if refused(f"<item>\n{(title := f'Totals are wrong in report {n}')}\n"))
PLANTED = {
    "nothing": ("SELECT 1", []),
    "dead letters dropped": ("DELETE FROM dead_letter", ["neither digested", "that every engine refuses, and no dead letters"]),
    "another's vector": (
        "UPDATE digest SET embedding = (SELECT embedding FROM digest WHERE item_id = 1) WHERE item_id = 2",
        ["1 items that their own text does not find, such as ('quillcap/marlframe', 2)"],
    ),
    "a digest of an older text": ("UPDATE digest SET content_hash = 'older' WHERE item_id = 3", ["1 items neither digested"]),
}


@pytest.fixture
async def proved(monkeypatch, settings, row, jsonl, dsn) -> Proved:
    """Twenty items, digested by an engine that refuses some."""
    monkeypatch.setattr("starsearch.embedded.engine.EmbeddedEngine", RefusingEngine)
    records = [row(n, title=REFUSED_TITLE if n == 7 else f"Report {n} of {n * 7919} fails") for n in range(1, 21)]
    async with open_store(settings) as store, open_engines(settings) as engines:
        await stored(store, engines, jsonl(*records))
    return Proved(dsn, settings=settings, record=lambda: records)


@pytest.mark.parametrize("planted", PLANTED)
async def test_every_item_is_searched_for(planted, proved):
    statement, said = PLANTED[planted]
    with psycopg.connect(proved.dsn, autocommit=True) as connection:
        connection.execute(statement)
    found = await asyncio.to_thread(findable, proved)
    assert [words in finding for finding, words in zip(found, said, strict=True)] == [True for _ in said]


@pytest.mark.parametrize(("each", "said"), [(10, []), (100, ["1 items that the index hides, such as ('quillcap/marlframe', 3)"])])
async def test_an_index_may_hide_a_few(each, said, proved, monkeypatch, capsys):
    monkeypatch.setattr(finding, "HIDDEN_EACH", each)
    monkeypatch.setattr(finding, "FOUND_WITHIN", 5)
    monkeypatch.setattr(search, "DEPTH", 5)  # less than there are: a walk that finds too few ends in a comparison with all
    monkeypatch.setitem(nearest.STATEMENTS, "index", nearest.INDEX.replace("WHERE", "WHERE d.item_id <> 3 AND"))
    assert await asyncio.to_thread(findable, proved) == said
    assert "(1 of them not through the index)" in capsys.readouterr().out
