"""Shards on a real database: all of it is done whatever becomes of a shard, and never more of them than allowed."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from starsearch import dispatching
from starsearch.dispatching import Cut, Prospect, Starter, digest_by_shards
from starsearch.errors import EngineFailing, ShardsFailed
from starsearch.jsonl import read_items
from starsearch.models import IndexVersion
from starsearch.pipeline import Allowance, digest, ingest, make_due, recorded_run
from starsearch.progress import no_progress
from starsearch.store import leases, shards
from starsearch.store.leases import BACKFILL, LIVE, worker
from starsearch.store.presence import absent, present
from starsearch.store.shards import at_work, plan, shard_counts
from starsearch.store.versions import ensure_version
from tests.stub_engine import StubEngine
from tests.test_pipeline import engines_of

ITEMS = 150


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(dispatching, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(shards, "PAUSE", timedelta(milliseconds=1))


@pytest.fixture
async def version(store, row, jsonl):
    """Of a database with 150 items, all of them due."""
    path = jsonl(*(row(n, body=f"Report number {n} is about subject {n * 7919}.") for n in range(1, ITEMS + 1)))
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
    made = await ensure_version(store.pool, IndexVersion("stub", "", 384, "recipe", "stub", "v1"))
    await make_due(store)
    return made


class Pool:
    """Stands for Prefect, a pool and its worker: each started shard is an asyncio task. `fate` says what becomes of the n-th start."""

    def __init__(self, store, fate=lambda start: "runs"):
        self.store, self.fate = store, fate
        self.keys, self.at_once, self.most_at_once, self.starts, self.crashed, self.tasks = {}, 0, 0, 0, {}, []
        self.stub = StubEngine()

    @property
    def starter(self):
        return Starter(self.start, self.prospects)

    async def start(self, shard):
        if shard.key in self.keys:
            return self.keys[shard.key]
        self.starts += 1
        fate = self.fate(self.starts)
        if fate == "no answer":
            return None
        flow_run = self.keys[shard.key] = uuid4()
        if fate == "crashes":
            self.crashed[flow_run] = "Crashed: no image"
        elif fate != "waits":
            self.tasks.append(asyncio.create_task(self.run(shard, flow_run, fate)))
        return flow_run

    async def prospects(self, flow_runs):
        waits = Prospect("Late", lost=False)
        return {flow_run: Prospect(self.crashed[flow_run], lost=True) if flow_run in self.crashed else waits for flow_run in flow_runs}

    async def run(self, shard, flow_run, fate):
        try:
            async with (
                present(self.store.dsn, flow_run),
                engines_of(self.stub) as engines,
                recorded_run(self.store, "digest") as run,
                at_work(self.store.pool, shard.id, flow_run, run.id),
                self.counted(),
            ):
                if fate == "fails":
                    raise EngineFailing("the engine is on fire")
                if fate == "dies":
                    raise asyncio.CancelledError
                await digest(self.store, engines, run, allowance=Allowance(shard.size))
        except EngineFailing:
            pass

    @asynccontextmanager
    async def counted(self):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield
        finally:
            self.at_once -= 1


@asynccontextmanager
async def pool_of(store, fate=lambda start: "runs"):
    pool = Pool(store, fate)
    yield pool
    await asyncio.gather(*pool.tasks, return_exceptions=True)


async def dispatch(store, pool, version, *, parent=None, size=40, most=24, priority=LIVE, seconds=60.0):
    parent = parent or uuid4()
    cut = Cut(size, most, priority)
    await asyncio.wait_for(digest_by_shards(store, pool.starter, parent, version.id, cut, seconds=seconds, progress=no_progress), 90)
    return await shard_counts(store.pool, parent)


async def number(store, query, *parameters):
    async with store.pool.connection() as connection:
        return (await (await connection.execute(query, parameters)).fetchone())[0]


async def test_what_is_due_is_cut_into_shards_and_all_of_it_is_done_once(store, version):
    async with pool_of(store) as pool:
        counts = await dispatch(store, pool, version)
    assert (counts.embedded, counts.llm_requests, pool.starts) == (ITEMS, ITEMS, 4)
    assert await number(store, "SELECT count(*) FROM shard WHERE ended_at IS NULL OR failure IS NOT NULL") == 0


async def test_nothing_due_starts_nothing(store, version):
    async with pool_of(store) as pool:
        await dispatch(store, pool, version)
        again = await dispatch(store, pool, version)
    assert (again.embedded, pool.starts) == (0, 4)


async def test_never_more_at_once_than_allowed_by_whomever(store, version):
    async with pool_of(store) as pool:
        parents = [dispatch(store, pool, version, size=10, most=3) for _ in range(2)]
        counts = await asyncio.gather(*parents)
    assert sum(each.embedded for each in counts) == ITEMS
    assert 2 <= pool.most_at_once <= 3


@pytest.mark.parametrize("fate", ["dies", "fails", "crashes"])
async def test_a_shard_that_does_not_finish_is_followed_by_its_next_attempt(store, version, fate):
    async with pool_of(store, lambda start: fate if start == 2 else "runs") as pool:
        counts = await dispatch(store, pool, version)
    assert (counts.embedded, pool.starts) == (ITEMS, 5)
    assert await number(store, "SELECT max(attempt) FROM shard") == 2
    assert {key.split(":", 1)[1] for key in pool.keys} == {"1:1", "2:1", "3:1", "4:1", "2:2"}


async def test_a_shard_killed_while_it_leases_loses_its_batch_to_the_others(store, version, told):
    """As kill -9 does: its sessions end, and it says nothing."""
    parent, flow_run = uuid4(), uuid4()
    [shard, *_] = await plan(store.pool, parent, version.id, priority=LIVE, size=150, most=1)
    async with worker(store.dsn) as dying, store.pool.connection() as other:
        await other.execute("INSERT INTO flow_run (id, worker) VALUES (%s, %s)", [flow_run, dying])
        await other.execute("INSERT INTO run (kind) VALUES ('digest')")
        await other.execute(
            "UPDATE shard SET began_at = now(), flow_run = %s, run_id = (SELECT max(id) FROM run) WHERE id = %s", [flow_run, shard.id]
        )
        await other.execute("UPDATE due SET lease_token = 999, lease_worker = %s, due_at = now() + interval '1 h'", [dying])
        await other.commit()
        assert await plan(store.pool, parent, version.id, priority=LIVE, size=150, most=1) == []  # it works, as far as anyone knows
    await make_due(store)  # what a parent and every shard do first
    async with pool_of(store) as pool:
        counts = await dispatch(store, pool, version, parent=parent)
    assert counts.embedded == ITEMS
    assert await number(store, "SELECT failure FROM shard WHERE id = %s", shard.id) == shards.GONE
    assert [line["message"] for line in told if line["shard"] == shard.id] == [f"shard lost: {shards.GONE}"]


async def test_shards_that_always_fail_end_the_parent_with_what_they_said(store, version):
    async with pool_of(store, lambda _start: "fails") as pool:
        with pytest.raises(ShardsFailed, match=r"the engine is on fire.*150 items stay due"):
            await dispatch(store, pool, version)
    assert await number(store, "SELECT max(attempt) FROM shard") == shards.ATTEMPTS
    async with pool_of(store) as pool:  # the next hour
        assert (await dispatch(store, pool, version)).embedded == ITEMS


async def test_a_parent_that_is_run_again_finds_its_shards(store, version):
    """It died after it wrote a shard down: before Prefect was told, or after."""
    parent = uuid4()
    planned = await plan(store.pool, parent, version.id, priority=LIVE, size=40, most=24)
    async with pool_of(store) as pool:
        told = await pool.start(planned[0])
        counts = await dispatch(store, pool, version, parent=parent)
    assert counts.embedded == ITEMS
    assert pool.starts == len(planned) == 4
    assert pool.keys[planned[0].key] == told


async def test_shards_that_a_dead_parent_wrote_down_and_did_not_start_hold_no_places(store, version):
    """Else its successor would wait for them until they are taken for lost, which is minutes."""
    parent = uuid4()
    async with present(store.dsn, parent):
        left = await plan(store.pool, parent, version.id, priority=LIVE, size=40, most=4)
        assert await plan(store.pool, uuid4(), version.id, priority=LIVE, size=40, most=4) == []  # it lives
    assert len(left) == 4
    async with pool_of(store) as pool:
        assert (await dispatch(store, pool, version, most=4, seconds=30.0)).embedded == ITEMS
    assert await number(store, "SELECT count(*) FROM shard WHERE failure = %s", shards.NOT_STARTED) == 4


async def test_prefect_that_does_not_answer_is_asked_again(store, version):
    async with pool_of(store, lambda start: "no answer" if start < 4 else "runs") as pool:
        assert (await dispatch(store, pool, version)).embedded == ITEMS
    assert pool.starts == 4 + 3


async def test_a_shard_that_never_begins_is_given_up_and_its_successor_does_the_work(store, version, monkeypatch):
    monkeypatch.setattr(shards, "STARTS_WITHIN", timedelta(milliseconds=300))
    async with pool_of(store, lambda start: "crashes" if start == 1 else "runs") as pool:
        pool.crashed.clear()
        monkeypatch.setattr(pool, "prospects", _nobody)
        assert (await dispatch(store, pool, version, size=150)).embedded == ITEMS
    assert await number(store, "SELECT failure FROM shard WHERE attempt = 1") == shards.NOT_STARTED


async def _nobody(_flow_runs):
    return {}


async def test_shards_that_nobody_takes_end_the_parent_with_what_prefect_says_of_them(store, version, monkeypatch):
    monkeypatch.setattr(shards, "STARTS_WITHIN", timedelta(milliseconds=200))
    async with pool_of(store, lambda _start: "waits") as pool:
        with pytest.raises(ShardsFailed, match=r"\(it did not start; Prefect said: Late\): 150 items stay due"):
            await dispatch(store, pool, version, size=150)
    assert pool.starts == shards.ATTEMPTS


async def test_a_shard_that_begins_after_it_was_given_up_does_no_harm(store, version, monkeypatch):
    monkeypatch.setattr(shards, "STARTS_WITHIN", timedelta(0))
    parent = uuid4()
    [late] = await plan(store.pool, parent, version.id, priority=LIVE, size=150, most=1)
    async with pool_of(store) as pool:
        assert await plan(store.pool, parent, version.id, priority=LIVE, size=150, most=1) == []  # a pause after it was given up
        [successor] = await plan(store.pool, parent, version.id, priority=LIVE, size=150, most=1)
        assert (successor.number, successor.attempt) == (1, 2)
        await asyncio.gather(pool.run(late, uuid4(), "runs"), pool.run(successor, uuid4(), "runs"))
    assert (await shard_counts(store.pool, parent)).embedded == ITEMS
    assert sum(pool.stub.asked.values()) == ITEMS


async def test_when_time_is_up_the_rest_stays_due(store, version):
    async with pool_of(store, lambda _start: "no answer") as pool:
        with pytest.raises(ShardsFailed, match="150 items are still due, 4 shards go on"):
            await dispatch(store, pool, version, seconds=0.1)


async def test_live_work_does_not_wait_for_a_backfill(store, version):
    async with store.pool.connection() as connection:
        await connection.execute("UPDATE due SET priority = %s WHERE item_id %% 2 = 0", [BACKFILL])
        await connection.execute("UPDATE due SET due_at = now() + interval '1 hour' WHERE priority = %s", [BACKFILL])
    async with pool_of(store) as pool:
        assert (await dispatch(store, pool, version)).embedded == ITEMS / 2


async def test_presence_survives_a_session_that_the_database_ended(store, monkeypatch):
    monkeypatch.setattr(leases, "PING_SECONDS", 0.05)
    here, gone, never = uuid4(), uuid4(), UUID(int=0)
    async with present(store.dsn, gone):
        pass
    async with present(store.dsn, here):
        assert await absent(store.pool, [here, gone, never]) == {gone, never}
        async with await psycopg.AsyncConnection.connect(store.dsn, autocommit=True) as superuser:
            await superuser.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = (SELECT worker FROM flow_run WHERE id = %s)",
                [here],
            )
        for _ in range(100):
            await asyncio.sleep(0.05)
            if not await absent(store.pool, [here]):
                break
        assert await absent(store.pool, [here]) == set()
    assert await absent(store.pool, [here]) == {here}
