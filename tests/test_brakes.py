"""Pause and budgets: nothing new is begun anywhere, nothing is half done, and it goes on where it stopped."""

import asyncio
import contextlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from starsearch import brakes
from starsearch.audit import read_status
from starsearch.brakes import Bounds, Brakes, Budget
from starsearch.errors import BudgetSpent, Paused
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.storage import Store
from starsearch.store.pauses import pause, resume, used_today
from starsearch.store.runs import start_run
from tests.processes import free_port, running
from tests.stub_engine import StubEngine, failure
from tests.test_pipeline import engines_of, rows

ITEMS = 200
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch):
    monkeypatch.setattr(brakes, "LOOK_SECONDS", 0.0)


@pytest.fixture
async def stored(store, row, jsonl):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(jsonl(*(row(n) for n in range(1, ITEMS + 1)))), run)
    return store


async def digest_all(store, stub):
    async with engines_of(stub) as engines, recorded_run(store, "digest") as run:
        await digest(store, engines, run)
    return run.counts


def run_command(environment, *arguments):
    command = [sys.executable, "-m", "starsearch.cli", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


async def test_a_pause_in_mid_batch_begins_no_request_and_keeps_what_was_made(stored):
    asked = 0

    def pausing(_text, _times):
        nonlocal asked
        asked += 1
        if asked == 70:  # the sixth of the second batch
            asyncio.get_running_loop().create_task(pause(stored.pool, "disk is full"))

    stub = StubEngine(pausing)
    with pytest.raises(Paused, match=r"disk is full.*starsearch resume"):
        await digest_all(stored, stub)
    status = await read_status(stored.pool)
    assert (status.embedded, status.pending) == (64, ITEMS - 64)
    assert 70 <= len(stub.asked) < 128
    assert await rows(stored, "SELECT count(*) FROM summary") == [(len(stub.asked),)]
    assert await rows(stored, "SELECT 1 FROM due WHERE lease_token IS NOT NULL OR attempts > 0") == []
    assert await rows(stored, "SELECT 1 FROM summary_lease") == []
    assert await rows(stored, "SELECT 1 FROM engine_call WHERE settled_at IS NULL") == []
    assert any("disk is full" in warning for warning in status.warnings)
    with pytest.raises(Paused):
        await digest_all(stored, StubEngine())

    assert await resume(stored.pool)
    rest = StubEngine()
    counts = await digest_all(stored, rest)
    assert (counts.embedded, (await read_status(stored.pool)).complete) == (ITEMS - 64, True)
    assert len(rest.asked) == ITEMS - len(stub.asked)  # nothing is paid for twice


async def test_a_request_that_is_tried_again_is_stopped_too(stored):
    """An engine that is overloaded is asked again and again, but not after a pause."""
    stub = StubEngine(lambda text, times: failure(503))

    async def pausing():
        while len(stub.asked) < 32:
            await asyncio.sleep(0.01)
        await pause(stored.pool, "overloaded")

    async with engines_of(stub, patience_seconds=20.0) as engines, recorded_run(stored, "digest") as run:
        soon = asyncio.create_task(pausing())
        with pytest.raises(Paused):
            await digest(stored, engines, run)
        await soon
    assert await rows(stored, "SELECT 1 FROM due WHERE lease_token IS NOT NULL OR attempts > 0") == []


async def test_a_database_that_is_away_for_a_moment_costs_no_item_an_attempt(stored, monkeypatch):
    looks = itertools.count(1)

    async def away(_connection):
        if 5 <= next(looks) <= 20:  # requests of the first batch
            raise psycopg.OperationalError("the database system is starting up")

    monkeypatch.setattr(stored.brakes, "_pause", away)
    stub = StubEngine()
    assert (await digest_all(stored, stub)).embedded == ITEMS
    assert len(stub.asked) == stub.asked.total() == ITEMS


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        (Budget(tokens=1_000), r"budget is spent \(1,[0-9]{3} of 1,000 tokens\).*BUDGET_TOKENS"),
        (Budget(requests=70), r"budget is spent \([0-9]{2,3} of 70 requests\).*BUDGET_REQUESTS"),
        (Budget(usd=5.0), r"no price \(stub\): STARSEARCH_PRICES"),
    ],
)
@pytest.mark.parametrize("whose", ["day", "run"])
async def test_a_budget_that_is_spent_stops_before_the_next_request(stored, budget, match, whose):
    limited = Store(stored.dsn, stored.pool, Bounds(**{whose: budget}))
    with pytest.raises(BudgetSpent, match=match) as refused:
        await digest_all(limited, StubEngine())
    assert ("STARSEARCH_RUN_BUDGET" in str(refused.value)) == (whose == "run")
    status = await read_status(stored.pool)
    assert status.embedded < ITEMS
    assert status.embedded + status.pending == ITEMS
    assert f"the last digest failed: {refused.value}" in status.warnings
    assert await rows(stored, "SELECT 1 FROM due WHERE lease_token IS NOT NULL OR attempts > 0") == []
    assert (await digest_all(stored, StubEngine())).embedded == ITEMS - status.embedded
    assert (await read_status(stored.pool)).warnings == []


async def test_a_budget_that_is_spent_within_a_batch_stops_there(stored):
    """An engine that takes its time: what was made is kept, the rest of the batch is not asked for."""

    class Slow(StubEngine):
        async def __call__(self, request):
            await asyncio.sleep(0.3)
            return await super().__call__(request)

    stub, limited = Slow(), Store(stored.dsn, stored.pool, Bounds(run=Budget(requests=10)))
    async with engines_of(stub) as engines, recorded_run(limited, "digest") as run:
        with pytest.raises(BudgetSpent, match=r"[0-9]{2} of 10 requests"):
            await digest(limited, engines, run, concurrency=8)
    assert 10 <= len(stub.asked) < 64
    assert await rows(stored, "SELECT count(*) FROM summary") == [(len(stub.asked),)]
    assert await rows(stored, "SELECT count(*) FROM due WHERE lease_token IS NULL AND attempts = 0") == [(ITEMS,)]


async def test_each_run_has_its_own_budget_and_all_together_finish(stored):
    limited, runs, requests = Store(stored.dsn, stored.pool, Bounds(run=Budget(requests=70))), 0, 0
    while not (await read_status(stored.pool)).complete:
        runs += 1
        assert runs < 10
        stub = StubEngine()
        with contextlib.suppress(BudgetSpent):
            await digest_all(limited, stub)
        requests += len(stub.asked)
    assert runs > 1
    assert requests == ITEMS


async def test_shards_of_one_parent_share_its_budget(stored):
    """What one has spent stops the other, and the parent that watches them."""
    parent, one, other = uuid4(), await start_run(stored.pool, "digest"), await start_run(stored.pool, "digest")
    async with stored.pool.connection() as connection:
        for number, run in enumerate((one, other), 1):
            await connection.execute(
                "INSERT INTO shard (parent, number, attempt, size, run_id, began_at) VALUES (%s, %s, 1, 500, %s, now())",
                [parent, number, run],
            )
        await connection.execute(
            "INSERT INTO engine_usage VALUES (%s, 'summary', 'stub', 10, 0, 10, 12, 0, 900, 0, 100, 1, now(), now())", [one]
        )
    limited = Brakes(stored.pool, Bounds(run=Budget(requests=12)))
    for spender in (one, other, parent):
        with pytest.raises(BudgetSpent, match=r"this run's budget is spent \(12 of 12 requests\)"):
            await limited.check(spender)
    await limited.check(await start_run(stored.pool, "digest"))
    await limited.check(uuid4())


async def test_a_budget_in_dollars_goes_by_the_price_table(stored, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[models.stub]\nprompt = 1000.0\ncompletion = 1000.0\nsource = "a test"\ndate = "2026-11-25"\n')
    limited = Store(stored.dsn, stored.pool, Bounds(Budget(usd=0.5), prices=prices))
    with pytest.raises(BudgetSpent, match=r"of \$0\.50"):
        await digest_all(limited, StubEngine())


async def test_the_hours_of_an_engine_are_those_in_which_it_was_used(stored):
    """Two runs of six minutes with hours between them, and a call of a killed one that was only found at the end of the day."""
    async with stored.pool.connection() as connection:
        for hour in (0, 5):
            await connection.execute("INSERT INTO run (kind) VALUES ('digest')")
            await connection.execute(
                "INSERT INTO engine_call (lease_token, run_id, purpose, model, items, requests, intended_at, settled_at, outcome) "
                "SELECT 1, max(id), 'summary', 'rack', 1, 1, date_trunc('day', now(), 'UTC') + %(hour)s * interval '1 hour' + part.begins, "
                "date_trunc('day', now(), 'UTC') + %(hour)s * interval '1 hour' + part.ends, part.outcome FROM run, (VALUES "
                "(interval '0', interval '3 min', 'ok'), (interval '2 min', interval '6 min', 'ok'), "
                "(interval '4 min', interval '9 hours', 'abandoned')) AS part (begins, ends, outcome) "
                "GROUP BY part.begins, part.ends, part.outcome",
                {"hour": hour},
            )
        [used] = await used_today(connection)
    assert (used.calls, used.failed, used.hours) == (6, 2, pytest.approx(0.2))


async def test_a_database_whose_clock_was_set_back_knows_what_is_used(stored):
    async with stored.pool.connection() as connection:
        await connection.execute("INSERT INTO run (kind) VALUES ('digest')")
        await connection.execute(
            "INSERT INTO engine_call (lease_token, run_id, purpose, model, items, requests, intended_at, settled_at, outcome) "
            "SELECT 1, max(id), 'summary', 'rack', 1, 1, now(), now() - interval '3 s', 'ok' FROM run"
        )
        [used] = await used_today(connection)
    assert (used.calls, used.hours) == (1, 0.0)


async def test_yesterdays_calls_are_not_todays(stored):
    await digest_all(stored, StubEngine())
    limited = Brakes(stored.pool, Bounds(Budget(tokens=1)))
    with pytest.raises(BudgetSpent):
        await limited.check()
    async with stored.pool.connection() as connection:
        await connection.execute("UPDATE engine_call SET intended_at = intended_at - interval '1 day'")
        assert await used_today(connection) == []
    await limited.check()


async def test_the_answer_is_not_asked_of_the_database_each_time(stored, monkeypatch):
    monkeypatch.setattr(brakes, "LOOK_SECONDS", 60.0)
    held = Brakes(stored.pool)
    await held.check()
    await pause(stored.pool, "later")
    await held.check()


async def test_processes_stop_for_a_pause_and_others_finish_their_work(environment, store, row, jsonl):
    """Real ones, that look as seldom as they do by default; `make bench BENCH=pause` has the times."""
    path = jsonl(*(row(n, body=f"Report number {n} is about subject {n * 7919}.") for n in range(1, ITEMS + 1)))
    port = free_port()
    engine = subprocess.Popen([sys.executable, "-m", "benchmarks.instant_engine", str(port), "0.5", "titles"], cwd=ROOT)
    with running(engine, f"http://127.0.0.1:{port}/requests"):
        address = f"http://127.0.0.1:{port}/v1"
        environment |= {"STARSEARCH_LLM_BASE_URL": address, "STARSEARCH_EMBEDDING_BASE_URL": address, "STARSEARCH_CONCURRENCY": "2"}
        assert run_command(environment, "ingest", str(path), "--no-digest").returncode == 0
        command = [sys.executable, "-m", "starsearch.cli", "digest"]
        digesting = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
        while await rows(store, "SELECT count(*) >= 20 FROM summary") == [(False,)]:
            assert [process.poll() for process in digesting] == [None, None]
            await asyncio.sleep(0.1)
        assert run_command(environment, "pause", "a fire").returncode == 0
        told = [process.communicate(timeout=120)[1].decode() for process in digesting]
        assert [process.returncode for process in digesting] == [3, 3]
        assert all("(a fire): `starsearch resume`" in each for each in told)
        left = await read_status(store.pool)
        assert left.embedded + left.pending == ITEMS
        assert left.pending > 0
        assert left.usage["unsettled_calls"] == 0
        assert await rows(store, "SELECT 1 FROM due WHERE lease_token IS NOT NULL OR attempts > 0") == []
        [(made,)] = await rows(store, "SELECT count(*) FROM summary")
        assert made < ITEMS
        assert run_command(environment, "resume").returncode == 0
        counts = json.loads(run_command(environment | {"STARSEARCH_CONCURRENCY": "32"}, "digest", "--json").stdout)
        assert counts["llm_requests"] == ITEMS - made
    assert (await read_status(store.pool)).complete


def test_a_paused_crawl_asks_github_nothing(environment, standin, world):
    repository = world.add_repository("quillcap/marlframe")
    world.add_item(repository, "issue")
    github = {"GRAPHQL_URL": standin.graphql_url, "REST_URL": standin.url, "TOKENS": "token-a"}
    environment |= {f"STARSEARCH_GITHUB_{name}": value for name, value in github.items()}
    assert "begins anything new" in run_command(environment, "pause", "an audit").stdout
    assert "already" in run_command(environment, "pause", "again").stdout
    refused = run_command(environment, "crawl", "--repo", "quillcap/marlframe")
    assert refused.returncode == 3
    assert "(an audit): `starsearch resume`" in refused.stderr
    assert standin.counters.all_requests == 0
    assert "an audit" in " ".join(json.loads(run_command(environment, "status", "--json").stdout)["warnings"])
    assert "goes on" in run_command(environment, "resume").stdout
    assert "was not paused" in run_command(environment, "resume").stdout
    assert run_command(environment, "crawl", "--repo", "quillcap/marlframe").returncode == 0
