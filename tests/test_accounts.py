"""Work not done twice, and a ledger that adds up: what the database says was spent is what the engine says it served."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import httpx2
import pytest

from starsearch.audit import read_status
from starsearch.engines import Engines
from starsearch.explain import explain, parse_address
from starsearch.inference.client import open_client, preflight
from starsearch.jsonl import read_items
from starsearch.models import IndexVersion
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.store import turns
from starsearch.store.leases import claim, find_due, release_dead, worker
from starsearch.store.purges import Target, purge
from starsearch.store.turns import take_turns
from starsearch.store.versions import ensure_version
from tests.processes import embedded_engine
from tests.stub_engine import StubEngine, completion, failure, nonsense

VERSION = IndexVersion("stub", "", 384, "recipe", "stub", "v1")
SAME = {"title": "Bump lodash", "body": "Bumps lodash to the newest release."}


pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture(autouse=True)
def quick_turns(monkeypatch):
    monkeypatch.setattr(turns, "POSTPONED", turns.POSTPONED / 20)


@asynccontextmanager
async def engines_of(transport, *, base_url="http://stub/v1", models=("stub", "stub"), version=VERSION):
    async with open_client(base_url, transport=transport) as client:
        llm, embedding = [await preflight(client, model, purpose="LLM") for model in models]
        yield Engines(llm, embedding, version, None)


async def ingest_file(store, path):
    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)


async def digest_with(store, stub, **options):
    async with engines_of(httpx2.MockTransport(stub)) as engines, recorded_run(store, "digest") as run:
        await digest(store, engines, run, **options)
    return run.counts


async def rows(store, query, *parameters):
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, parameters)).fetchall()


async def one(store, query):
    return (await rows(store, query))[0]


class SlowStub(StubEngine):
    """Answers after a while, so that everybody else has time to ask for the same."""

    async def __call__(self, request):
        if request.url.path.endswith("/chat/completions"):
            await asyncio.sleep(0.3)
        return await super().__call__(request)


async def test_identical_items_are_summarized_once_across_batches_workers_and_runs(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in range(1, 501))))
    stub = SlowStub()
    counts = await asyncio.gather(*(digest_with(store, stub, workers=2) for _ in range(3)))
    assert sum(stub.asked.values()) == 1
    assert sum(each.embedded for each in counts) == 500
    assert (await read_status(store.pool)).complete
    assert await one(store, "SELECT count(*) FROM summary_lease") == (0,)


async def test_a_batch_that_comes_second_digests_the_rest_of_its_items_meanwhile(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) if n % 2 else row(n) for n in range(1, 201))))
    stub = SlowStub()
    counts = await digest_with(store, stub, workers=4)
    assert counts.embedded == 200
    assert max(stub.asked.values()) == 1


async def test_a_text_that_fails_for_one_batch_is_asked_by_the_next(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in range(1, 101))))
    stub = SlowStub(lambda text, times: nonsense() if times == 0 else None)
    counts = await digest_with(store, stub, workers=2)
    assert (counts.embedded, counts.dead_letters) == (100, 0)
    assert sum(stub.asked.values()) == 2


async def test_a_turn_ends_with_its_worker_or_its_time(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in range(1, 4))))
    version = await ensure_version(store.pool, VERSION)
    await find_due(store.pool)

    async def turn(number):
        batch = await claim(store.pool, version.id, number, size=1)
        return await take_turns(store.pool, version.id, batch, number, {batch.items[0].id: b"key"})

    async with worker(store.dsn) as second:
        async with worker(store.dsn) as first:
            assert (await turn(first)).ours
            assert not (await turn(second)).ours
        async with asyncio.timeout(20):  # PostgreSQL ends a session a moment after its client does
            while await rows(store, f"SELECT FROM living_worker WHERE worker = {first}"):
                await asyncio.sleep(0.01)
        assert (await turn(second)).ours
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now()")
        assert not (await turn(second)).ours  # another batch of the same worker holds it
        async with store.pool.connection() as connection:
            await connection.execute("UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now()")
            await connection.execute("UPDATE summary_lease SET expires_at = now() - interval '1 second'")
        assert (await turn(second)).ours
    await release_dead(store.pool)
    assert await one(store, "SELECT count(*) FROM summary_lease") == (0,)


@pytest.fixture
def hanging_engine():
    """An engine on a port that never answers its first chat request, and every other one at once."""
    hung = Event()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.answer({"object": "list", "data": [{"id": "stub", "object": "model"}]})

        def do_POST(self):
            request = httpx2.Request("POST", f"http://stub{self.path}", content=self.rfile.read(int(self.headers["content-length"])))
            if self.path.endswith("/chat/completions"):
                asked.append(self.path)
                if len(asked) == 1:
                    hung.set()
                    time.sleep(60)
            self.answer(asyncio.run(StubEngine()(request)).json())

        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", hung, asked
    server.shutdown()


async def test_a_process_killed_while_it_asks_for_all_the_others_leaves_its_turn(store, row, jsonl, environment, hanging_engine):
    url, hung, asked = hanging_engine
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in range(1, 101))))
    env = environment | {"STARSEARCH_LLM_BASE_URL": url, "STARSEARCH_EMBEDDING_BASE_URL": url}
    command = [sys.executable, "-m", "starsearch.cli", "digest", "--json"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    assert await asyncio.to_thread(hung.wait, 60)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    last = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(last.stdout)["embedded"] == 100
    assert len(asked) == 2  # the one that died with its process, and one for all
    status = await read_status(store.pool)
    assert (status.complete, status.usage["unsettled_calls"]) == (True, 2)


@pytest.fixture
def engine(environment):
    with embedded_engine(environment) as address:
        yield address


class Mishaps(httpx2.AsyncHTTPTransport):
    """The real network to a real engine; some of its chat answers are cut off, hold no message, or are lost after they were served."""

    def __init__(self):
        super().__init__()
        self.asked = 0
        self.lost = []
        self.unserved = 0  # the engine closed a connection that had been idle for long, just when it was used again

    async def handle_async_request(self, request):
        try:
            response = await super().handle_async_request(request)
        except (httpx2.ReadError, httpx2.RemoteProtocolError):
            self.unserved += request.url.path.endswith("/chat/completions")
            raise
        if not request.url.path.endswith("/chat/completions"):
            return response
        self.asked += 1
        body = json.loads(await response.aread())
        if self.asked % 7 == 0:
            self.lost.append(body["usage"])
            raise httpx2.ReadError("connection reset")
        if self.asked % 5 == 0:
            body["choices"][0]["finish_reason"] = "length"
        if self.asked % 6 == 0:
            del body["choices"][0]["message"]
        return httpx2.Response(200, json=body)


async def test_tokens_in_the_ledger_are_those_the_engine_served_failures_included(store, row, jsonl, engine, monkeypatch):
    monkeypatch.setattr("starsearch.inference.endpoints.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("starsearch.inference.balancer.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("starsearch.inference.balancer.LONGEST_PAUSE_SECONDS", 0.001)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 151))))
    models = ("embedded-extractive-v1", "minilm-l6-v2")
    version = IndexVersion(models[1], "", 384, "recipe", models[0], "v1")
    mishaps = Mishaps()
    url = f"{engine}/v1"
    async with engines_of(mishaps, base_url=url, models=models, version=version) as engines, recorded_run(store, "digest") as run:
        await digest(store, engines, run, workers=2)
    served = json.load(urllib.request.urlopen(f"{engine}/requests", timeout=5))
    failed = await one(store, "SELECT count(*) FROM engine_call WHERE outcome <> 'ok' AND prompt_tokens > 0")
    assert failed[0] > 20, "too few failures to prove anything"
    assert len(mishaps.lost) > 10

    usage = (await read_status(store.pool)).usage
    assert usage["llm_requests"] == served["chat"] + mishaps.unserved == run.counts.llm_requests
    # an answer that never came cannot be read; how many those are is known, and here also what they cost
    assert usage["unanswered_requests"] == len(mishaps.lost) + mishaps.unserved
    lost = [sum(each[name] for each in mishaps.lost) for name in ("prompt_tokens", "completion_tokens")]
    assert usage["prompt_tokens"] + lost[0] == served["prompt_tokens"] + served["embedding_tokens"]
    assert usage["completion_tokens"] + lost[1] == served["completion_tokens"]
    assert (run.counts.prompt_tokens, run.counts.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


async def test_totals_agree_with_the_calls_whatever_became_of_them(store, row, jsonl, monkeypatch):
    monkeypatch.setattr("starsearch.inference.endpoints.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("starsearch.inference.balancer.FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("starsearch.inference.balancer.LONGEST_PAUSE_SECONDS", 0.001)
    await ingest_file(store, jsonl(*(row(n) for n in range(1, 151))))
    stub = StubEngine(lambda text, times: [None, failure(503), nonsense(), httpx2.ConnectError("refused")][(len(text) + times) % 4])
    await digest_with(store, stub, workers=2)
    columns = "requests", "unanswered", "prompt_tokens", "cached_tokens", "completion_tokens"
    sums = ", ".join(f"sum({name})" for name in columns)
    called = await rows(
        store,
        f"SELECT run_id, purpose, model, count(*), count(*) FILTER (WHERE outcome <> 'ok'), sum(items) FILTER (WHERE outcome = 'ok'), {sums} "
        "FROM engine_call GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
    )
    kept = await rows(
        store, f"SELECT run_id, purpose, model, calls, failed, items, {', '.join(columns)} FROM engine_usage ORDER BY 1, 2, 3"
    )
    assert called == kept
    assert sum(stub.asked.values()) == sum(row[6] for row in kept if row[1] == "summary")


async def test_cost_of_a_call_is_shared_by_the_items_it_was_for(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in (1, 2)), row(3)))
    await digest_with(store, StubEngine())
    shared = await rows(
        store,
        "SELECT number, sum(prompt_tokens) FILTER (WHERE purpose = 'summary') FROM item_usage JOIN item ON id = item_id GROUP BY 1 ORDER BY 1",
    )
    assert shared == [(1, 5.0), (2, 5.0), (3, 10.0)]
    assert await one(store, "SELECT round(sum(prompt_tokens)) = (SELECT sum(prompt_tokens) FROM engine_call) FROM item_usage") == (True,)
    explained = await explain(store.pool, parse_address("quillcap/marlframe#1", host="github.com"))
    assert (explained["spent_requests"], explained["spent_tokens"]) == (pytest.approx(0.5 + 1 / 3), pytest.approx(7.5 + 1 / 3))


async def test_a_purged_item_leaves_its_cost_and_not_its_name(store, row, jsonl):
    await ingest_file(store, jsonl(*(row(n, **SAME) for n in (1, 2)), row(3)))
    await digest_with(store, StubEngine())
    before = await rows(store, "SELECT id, cardinality(item_ids), prompt_tokens FROM engine_call ORDER BY 1")
    purged = await one(store, "SELECT id FROM item WHERE number = 2")
    await purge(store.pool, Target("github.com", "quillcap/marlframe", 2))
    assert await rows(store, "SELECT id, cardinality(item_ids), prompt_tokens FROM engine_call ORDER BY 1") == before
    named = {item for (item,) in await rows(store, "SELECT DISTINCT unnest(item_ids) FROM engine_call")}
    assert None in named
    assert purged[0] not in named
    assert len(named) == 3


async def test_an_item_that_failed_twice_has_all_three_calls_on_its_account(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    await digest_with(store, StubEngine(lambda text, times: nonsense() if times < 2 else None))
    calls = await rows(store, "SELECT outcome, prompt_tokens, seconds > 0 FROM item_usage WHERE purpose = 'summary' ORDER BY call_id")
    assert calls == [("unreadable answer", 10.0, True), ("unreadable answer", 10.0, True), ("ok", 10.0, True)]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}, (10, 8, 5)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}}, (10, 10, 5)),  # more than all
        ({"prompt_tokens": -1, "completion_tokens": 10**12}, (0, 0, 0)),  # would overflow the column, and the batch with it
        ({"prompt_tokens": "many", "completion_tokens": None}, (0, 0, 0)),
        ("free", (0, 0, 0)),
        (None, (0, 0, 0)),
    ],
)
async def test_what_an_engine_says_of_its_tokens_is_taken_down_where_it_makes_sense(store, row, jsonl, usage, tokens):
    await ingest_file(store, jsonl(row(1)))
    answer = completion("The totals are wrong in report 1.").json() | {"usage": usage}
    assert (await digest_with(store, StubEngine(lambda text, times: httpx2.Response(200, json=answer)))).embedded == 1
    columns = "prompt_tokens, cached_tokens, completion_tokens"
    assert await rows(store, f"SELECT {columns} FROM engine_call WHERE purpose = 'summary'") == [tokens]


async def test_a_lost_lease_still_costs_what_was_asked(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))

    class Robbed(StubEngine):
        async def __call__(self, request):
            if request.url.path.endswith("/chat/completions") and not self.asked:
                async with store.pool.connection() as connection:
                    await connection.execute("UPDATE due SET lease_token = lease_token + 1000, due_at = now() + interval '50 ms'")
            return await super().__call__(request)

    stub = Robbed()
    await digest_with(store, stub)
    await asyncio.sleep(0.1)
    await digest_with(store, stub)
    status = await read_status(store.pool)
    assert status.complete
    assert status.usage["llm_requests"] == sum(stub.asked.values()) == 2


async def test_a_model_without_a_price_is_named_and_a_run_of_it_has_no_cost(store, row, jsonl):
    await ingest_file(store, jsonl(row(1)))
    counts = await digest_with(store, StubEngine())
    assert counts.cost_usd is None
    status = await read_status(store.pool)
    assert (status.usage["cost_usd"], status.usage["unpriced"]) == (None, ["stub"])


async def test_the_cost_command_adds_up_what_was_spent_and_compares_it(store, row, jsonl, environment, tmp_path):
    def starsearch(*arguments, **extra):
        command = [sys.executable, "-m", "starsearch.cli", "cost", *arguments]
        return subprocess.run(command, env=environment | extra, capture_output=True, text=True, timeout=120, check=False)

    nothing = starsearch()
    assert (nothing.returncode, "nothing was digested yet" in nothing.stderr) == (3, True)

    await ingest_file(store, jsonl(*(row(n) for n in (1, 2)), row(1, repo="other/repository", title="Another")))
    await digest_with(store, StubEngine())
    prices = tmp_path / "prices.toml"
    prices.write_text('[models.stub]\nprompt = 100\ncompletion = 1000\nsource = "a test"\ndate = "2026-11-24"\n')
    dollars = (3 * 10 + 1) * 100e-6 + 3 * 5 * 1000e-6
    found = json.loads(starsearch("--json", STARSEARCH_PRICES=str(prices)).stdout)
    assert found["total"]["cost_usd"] == pytest.approx(dollars)
    assert found["total"]["usd_per_million_items"] == pytest.approx(dollars / 3 * 1e6, rel=1e-4)
    assert (found["elsewhere"]["prompt_tokens_per_item"], found["elsewhere"]["completion_tokens_per_item"]) == (10, 5)
    for by in ("run", "repository"):
        lines = json.loads(starsearch("--by", by, "--json", STARSEARCH_PRICES=str(prices)).stdout)["spent"]
        # a third of a token of a shared call is rounded
        assert sum(line["cost_usd"] for line in lines) == pytest.approx(dollars, abs=101e-6)
    assert {line["repository"] for line in lines} == {"quillcap/marlframe", "other/repository"}

    text = starsearch().stdout
    assert "cost unknown" in text
    assert "no price for stub" in text
    assert "Break-even is with the cheapest API" in text


async def test_the_calls_for_one_item_are_found_by_their_index(store):
    async with store.pool.connection() as connection:
        await connection.execute("INSERT INTO run (kind) VALUES ('digest')")
        # 3,000 rows: fewer are read faster without an index
        await connection.execute(
            "INSERT INTO engine_call (run_id, purpose, model, lease_token, items, item_ids, requests, prompt_tokens, completion_tokens) "
            "SELECT run.id, 'summary', 'stub', 1, 1, ARRAY[n], 1, 1, 1 FROM run, generate_series(1, 3000) AS n"
        )
        await connection.execute("ANALYZE engine_call")
        query = "EXPLAIN SELECT sum(requests::float8 / items) FROM engine_call WHERE item_ids @> ARRAY[17::bigint]"
        plan = "\n".join(line for (line,) in await (await connection.execute(query)).fetchall())
    assert "engine_call_items" in plan
