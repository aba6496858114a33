"""Flows on Prefect's own server: the same counts as the command, and artifacts."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import pytest

from starsearch.errors import Backlog, OutOfTime, RateLimited, SourceUnavailable
from starsearch.settings import read_settings
from starsearch.storage import open_store
from starsearch.store.leases import worker
from tests.processes import free_port

pytestmark = pytest.mark.flows
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def prefect_server(tmp_path_factory):
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its defaults must be set before Prefect is imported

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def github(row):
    """A stand-in for GitHub's REST API over real HTTP: one repository with three issues, and one that is gone."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    fields = ("number", "title", "body", "state", "created_at", "updated_at")
    issues = [{name: row(n)[name] for name in fields} | {"html_url": row(n)["url"], "user": {"login": "ada"}} for n in (1, 2, 3)]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path.startswith("/repos/quillcap/marlframe/issues")
            body = json.dumps(issues if known else {"message": "Not Found"}).encode()
            self.send_response(200 if known else 404)
            self.send_header("x-ratelimit-remaining", "41")
            self.send_header("x-ratelimit-limit", "60")
            self.send_header("x-ratelimit-reset", "1790000000")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


async def artifacts():
    from prefect import get_client

    async with get_client() as client:
        return await client.read_artifacts()


async def test_crawl_stores_digests_and_reports(environment, github, monkeypatch):
    from flows.crawl import crawl

    monkeypatch.setenv("STARSEARCH_GITHUB_REST_URL", github)
    counts = await crawl(repositories=["quillcap/marlframe", "no/such"])
    assert (counts["items"], counts["inserted"], counts["summarized"], counts["embedded"], counts["llm_requests"]) == (3, 3, 3, 3, 3)
    found = {artifact.key: artifact for artifact in await artifacts() if artifact.key}
    assert {"crawl-fetch", "digest-shard", "crawl-counts"} <= set(found)
    assert found["digest-shard"].data == 100.0
    assert "no/such" in json.dumps(found["crawl-counts"].data)

    again = await crawl(repositories=["quillcap/marlframe"])
    assert (again["inserted"], again["unchanged"], again["llm_requests"]) == (0, 3, 0)
    command = [sys.executable, "-m", "starsearch.cli", "crawl", "--repo", "quillcap/marlframe", "--json"]
    printed = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=True, timeout=120)
    assert set(json.loads(printed.stdout)) == set(again)
    assert "41 of 60" in printed.stderr


async def test_digest_flow_digests_what_is_due(environment, row, jsonl):
    from flows.digest import digest

    path = jsonl(row(1), row(2))
    command = [sys.executable, "-m", "starsearch.cli", "ingest", str(path), "--no-digest"]
    await asyncio.to_thread(subprocess.run, command, env=os.environ, check=True, capture_output=True, timeout=120)
    assert (await digest())["embedded"] == 2


async def test_lines_of_a_flow_name_their_subject_as_json_and_in_prefects_ui(environment, row, jsonl):
    """In a process of its own, as a worker starts it."""
    from prefect import get_client
    from prefect.client.schemas.sorting import LogSort
    from prefect.settings import PREFECT_API_URL

    command = [sys.executable, "-m", "starsearch.cli", "ingest", str(jsonl(row(1))), "--no-digest"]
    await asyncio.to_thread(subprocess.run, command, env=os.environ, check=True, capture_output=True, timeout=120)
    command = [sys.executable, "-m", "flows.digest"]
    how = dict(os.environ) | {"STARSEARCH_LOG": "json", "PREFECT_API_URL": PREFECT_API_URL.value()}
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, env=how, check=True, capture_output=True, text=True, timeout=240)
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    [began, ended] = [line for line in lines if line["logger"] == "starsearch.pipeline"]
    assert (began["message"], ended["message"].partition(":")[0]) == ("digest began", "digest ended")
    assert began["run"] == ended["run"] is not None

    async with get_client() as client:
        entries = [entry.message for entry in await client.read_logs(sort=LogSort.TIMESTAMP_DESC)]  # the first 200 of all flows
    assert f"digest began run={began['run']}" in entries


async def test_reprocess_flow_prices_builds_and_lets_serve(environment, row, jsonl, monkeypatch):
    from flows.reprocess import reprocess

    path = jsonl(row(1), row(2))
    command = [sys.executable, "-m", "starsearch.cli", "ingest", str(path)]
    await asyncio.to_thread(subprocess.run, command, env=os.environ, check=True, capture_output=True, timeout=120)
    monkeypatch.setenv("STARSEARCH_EMBEDDING_DIMENSIONS", "128")
    priced = await reprocess(dry_run=True)
    assert (priced["items"], priced["done"], priced["requests"], priced["cost_usd"]) == (2, 0, 0, 0.0)
    done = await reprocess(activate=True)
    assert (done["embedded"], done["llm_requests"], done["swap"]["after"]["version"]) == (2, 0, done["index_version"])


async def test_crawl_of_nothing_fails_and_says_what_to_do(environment):
    from flows.crawl import crawl
    from starsearch.errors import PreconditionMissing

    with pytest.raises(PreconditionMissing, match="STARSEARCH_GITHUB_TOKENS"):
        await crawl()


async def test_the_flows_around_the_crawl_do_their_work_and_say_what_github_charged(environment, monkeypatch):
    from flows.backfill import backfill
    from flows.crawl import crawl
    from flows.maintain import maintain
    from flows.rank import rank
    from tests.standin.server import StandIn
    from tests.standin.world import World

    world = World()
    first, *_ = (world.add_repository(f"quillcap/{name}", stars=stars) for name, stars in (("marlframe", 9), ("oat", 8), ("rye", 7)))
    items = [world.add_item(first, kind, created_at="2025-12-01", updated_at="2026-01-02") for kind in ("issue", "pull_request")]
    with StandIn(world) as standin:
        settings = {"GRAPHQL_URL": standin.graphql_url, "REST_URL": standin.url, "TOKENS": "token-a"}
        for name, value in settings.items():
            monkeypatch.setenv(f"STARSEARCH_GITHUB_{name}", value)
        assert (await rank(top=2))["came"] == 2
        assert (await crawl())["items"] == 0  # nothing of the last day
        assert (await backfill("2026-01-01", top=1, dry_run=True))["items"] == 2
        assert (await backfill("2026-01-01", top=1))["embedded"] == 2
        world.delete_item(items[0])
        world.delete_item(items[1])
        checked = await maintain()
        assert {name: checked[name] for name in ("checked", "tombstones", "fetched", "failed")} == {
            "checked": 2,
            "tombstones": 2,
            "fetched": 0,
            "failed": 0,
        }
    newest = sorted((each for each in await artifacts() if each.key), key=lambda each: each.created)
    tables = {each.key: json.loads(each.data) for each in newest if each.key.endswith(("-counts", "-price"))}
    for key in ("rank-counts", "crawl-counts", "backfill-price", "backfill-counts", "maintain-counts"):
        told = {row["count"]: row["value"] for row in tables[key]}
        assert told["GitHub: points"] == told["GitHub: requests"] > 0
        assert {"GitHub: splits", "GitHub: waits", "GitHub: waited seconds"} <= set(told)


async def test_a_backfill_lets_the_engines_catch_up_and_goes_on(environment, row, jsonl, monkeypatch):
    from flows.backfill import backfill
    from starsearch import brakes
    from starsearch.errors import Backlog
    from tests.standin.server import StandIn
    from tests.standin.world import World

    monkeypatch.setattr(brakes, "LOOK_SECONDS", 0.0)
    world = World()
    repository = world.add_repository("quillcap/marlframe")
    for number in range(60):
        world.add_item(repository, "issue", body=f"Column {number} is doubled.", created_at="2025-12-01", updated_at="2026-01-02")
    with StandIn(world) as standin:
        settings = {"GITHUB_GRAPHQL_URL": standin.graphql_url, "GITHUB_REST_URL": standin.url, "GITHUB_TOKENS": "token-a"}
        for name, value in (settings | {"GITHUB_BATCH": "10", "MOST_DUE": "15"}).items():
            monkeypatch.setenv(f"STARSEARCH_{name}", value)
        path = jsonl(row(1, repo="quillcap/oat", url="https://github.com/quillcap/oat/issues/1"))  # so that there is a version
        command = [sys.executable, "-m", "starsearch.cli", "ingest", str(path)]
        await asyncio.to_thread(subprocess.run, command, env=os.environ, check=True, capture_output=True, timeout=120)
        with pytest.raises(Backlog):
            await backfill("2026-01-01", repositories=["quillcap/marlframe"], stages="store only")
        stopped = standin.counters.all_requests
        done = await backfill("2026-01-01", repositories=["quillcap/marlframe"])
        asked = standin.counters.all_requests - stopped
        assert standin.counters.fetched_twice == {}
    assert (done["embedded"], done["dead_letters"]) == (60, 0)
    newest = max((each for each in await artifacts() if each.key == "backfill-counts"), key=lambda each: each.created)
    assert {"count": "GitHub: requests", "value": asked} in json.loads(newest.data)


async def test_the_backfill_form_prices_refuses_stores_and_explains(environment, monkeypatch):
    from prefect.exceptions import ParameterTypeError

    from flows.backfill import backfill
    from starsearch.errors import PreconditionMissing, TooMuch
    from tests.standin.server import StandIn
    from tests.standin.world import World

    world = World()
    repository = world.add_repository("quillcap/marlframe")
    for kind in ("issue", "issue", "pull_request"):
        world.add_item(repository, kind, created_at="2025-12-01", updated_at="2026-01-02")
    with StandIn(world) as standin:
        for name, value in {"GRAPHQL_URL": standin.graphql_url, "REST_URL": standin.url, "TOKENS": "token-a"}.items():
            monkeypatch.setenv(f"STARSEARCH_GITHUB_{name}", value)
        both = ["quillcap/marlframe", "no/such"]
        with pytest.raises(ParameterTypeError, match="since"):
            await backfill("soon")
        with pytest.raises(TooMuch, match="more than a year, and come to about 3 items"):
            await backfill("2020-01-01", repositories=both)
        with pytest.raises(TooMuch, match="3 items are more than max_items allows"):
            await backfill("2025-12-01", repositories=both, max_items=2)
        with pytest.raises(PreconditionMissing, match="no/such: not found"):
            await backfill("2025-12-01", repositories=["no/such"])
        told = await backfill("2020-01-01", repositories=both, dry_run=True)
        assert (told["items"], told["not_found"]) == (3, {"no/such": "not found, or private"})
        stored = await backfill("2025-12-01", repositories=both, kinds=["issue"], stages="store only")
        assert (stored["inserted"], stored["summarized"]) == (2, 0)
        done = await backfill("2020-01-01", repositories=both, confirmed=True)
        assert (done["inserted"], done["embedded"]) == (1, 3)  # what is stored already is not fetched again
    made = sorted((each for each in await artifacts() if each.key), key=lambda each: each.created)
    refusals = [each.data for each in made if each.key == "backfill-explained" and each.data.startswith("# Backfill: not done")]
    for reason in ("more than a year", "3 items are more than max_items allows", "no/such: not found"):
        assert any(reason in page and "the same run again goes on" in page for page in refusals), reason
    pages = {each.key: each.data for each in made}
    assert "about 3, counted in 1 of 1 repositories" in pages["backfill-price-explained"]
    page = pages["backfill-explained"]
    assert "issues and pull requests of 2 named repositories, updated since 2020-01-01" in page
    assert "| items read | 1: 1 new, 0 changed, 0 as they were |" in page
    assert "- `no/such`: `not found, or private`" in page


async def test_the_main_job_costs_a_handful_of_task_runs_whatever_the_number_of_items(environment, row, jsonl):
    from prefect import get_client

    from flows.demo import crawl_sample

    async def task_runs():
        async with get_client() as client:
            return len(await client.read_task_runs())

    before = await task_runs()
    counts = await crawl_sample()
    assert counts["embedded"] == counts["items"] > 50
    deadline = time.monotonic() + 30
    while (made := await task_runs() - before) < 4 and time.monotonic() < deadline:
        await asyncio.sleep(0.5)
    assert made == 4


def test_every_deployment_names_a_flow_that_exists_and_its_pool_is_set_up():
    import yaml

    spec = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    pools = (ROOT / "deployments" / "set_up.py").read_text()
    for deployment in spec["deployments"]:
        module, name = deployment["entrypoint"].rsplit(".", 1)
        assert getattr(importlib.import_module(module), name).name == name
        assert f'"{deployment["work_pool"]["name"]}"' in pools


async def test_what_a_deployment_is_started_with_fits_its_flow(monkeypatch):
    """By its schedules and defaults; a shard by its parent, and a first crawl as the READMEs of k8s/ have it."""
    import yaml
    from prefect.utilities.callables import parameter_schema
    from prefect.utilities.schema_tools import validate

    from starsearch.store.shards import Shard
    from tasks import digesting

    started = {}

    async def start(name, *, parameters, **_):
        started[name] = parameters
        return SimpleNamespace(id=uuid4())

    monkeypatch.setattr(digesting, "arun_deployment", start)
    await digesting._starter(None).start(Shard(7, uuid4(), 1, 1, 400))
    given = [("digest/shard", started["digest/shard"]), ("crawl/hourly", {"repositories": ["pgvector/pgvector"]})]
    flows = {}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        module, flow = deployment["entrypoint"].rsplit(".", 1)
        name = f"{flow}/{deployment['name']}"
        flows[name] = getattr(importlib.import_module(module), flow)
        defaults = deployment.get("parameters", {})
        given += [(name, defaults | each.get("parameters", {})) for each in deployment.get("schedules", ())]
        schema = parameter_schema(flows[name]).model_dump_for_openapi()
        assert validate(defaults, schema, ignore_required=True) == []  # a form asks for what is missing
        assert defaults.keys() <= schema["properties"].keys()
    for name, parameters in given:
        schema = parameter_schema(flows[name]).model_dump_for_openapi()
        assert validate(parameters, schema) == [], name
        assert parameters.keys() <= schema["properties"].keys(), name
    assert flows.keys() - {name for name, _ in given} == {"backfill/manual", "reprocess/manual"}


async def test_a_crawl_whose_time_is_over_ends_in_order_and_is_not_begun_again(environment, github, monkeypatch):
    """Its run says why, nobody looks alive any more, and what came in time is digested."""
    from tasks import stages

    module, began = importlib.import_module("flows.crawl"), []

    async def endless(store, _source, _named, _run, _options):
        began.append(True)
        async with worker(store.dsn):
            await asyncio.sleep(60)

    monkeypatch.setattr(stages, "crawl", endless)
    monkeypatch.setattr(stages, "WALK_SECONDS", 0.2)
    with pytest.raises(OutOfTime):
        await module.crawl(["quillcap/marlframe"])
    assert began == [True]
    async with open_store(read_settings()) as store, store.pool.connection() as connection:
        told = await (await connection.execute("SELECT kind, finished_at IS NOT NULL, failure FROM run ORDER BY id")).fetchall()
        living = await (await connection.execute("SELECT count(*) FROM living_worker")).fetchone()
    assert told[0][:2] == ("crawl", True) and "not done within" in told[0][2]
    assert "digest" in {kind for kind, _, _ in told}
    assert living == (0,)


@pytest.mark.parametrize(
    "error",
    [OutOfTime("50 minutes are over"), RateLimited("GitHub's limit is reached"), SourceUnavailable("GitHub is down"), Backlog("engines")],
)
async def test_what_came_before_a_crawl_had_to_stop_is_digested(environment, monkeypatch, error):
    module = importlib.import_module("flows.crawl")
    digested = []

    async def fetch(_repositories, _newest):
        raise error

    async def digest_due():
        digested.append(True)

    monkeypatch.setattr(module, "fetch", fetch)
    monkeypatch.setattr(module, "digest_due", digest_due)
    with pytest.raises(type(error)):
        await module.crawl()
    assert digested == [True]


async def test_a_server_that_does_not_answer_fails_nothing_that_was_only_to_be_shown(monkeypatch, caplog):
    """The items are stored: no run may fail because its progress bar could not be drawn."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from starsearch.models import Counts
    from tasks import artifacts as shown
    from tasks.explanations import _publish

    monkeypatch.setattr(shown, "UPDATE_SECONDS", 0.01)
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        async with shown.progress_artifact("away", "items digested") as report:
            report("digest", 1, 2)
            await asyncio.sleep(0.5)
        await shown.counts_table("away-counts", Counts(items=2), {})
        await _publish("away-explained", ["# Done"])
    assert "does not answer, so what this run did is not shown" in caplog.text
