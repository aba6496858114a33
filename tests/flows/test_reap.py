"""The reaper on a real Prefect server: what is dead is ended and frees its place, what is at work is left alone."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from aiohttp import web

from starsearch.store.presence import present

pytestmark = pytest.mark.flows
PATIENCE_SECONDS = 1.0


@pytest.fixture(scope="module", autouse=True)
def prefect_server():
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its defaults must be set before Prefect is imported

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
async def runs(environment, monkeypatch):
    """Makes runs of a deployment that takes one at a time, and brings them into a state."""
    from prefect import get_client
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy
    from prefect.states import State

    from flows.crawl import crawl
    from tasks import reaping

    monkeypatch.setattr(reaping, "LOOKS_APART_SECONDS", 0)
    monkeypatch.setattr(reaping, "PATIENCE", dict.fromkeys(reaping.PATIENCE, timedelta(seconds=PATIENCE_SECONDS)))
    async with get_client() as client:
        flow_id = await client.create_flow(crawl)
        deployment = await client.create_deployment(
            flow_id,
            name=f"hourly-{uuid4()}",
            concurrency_limit=1,
            concurrency_options={"collision_strategy": ConcurrencyLimitStrategy.CANCEL_NEW},
        )

        made = []

        async def make(*states, force=True):
            run = await client.create_flow_run_from_deployment(deployment)
            made.append(run.id)
            for state in states:
                await client.set_flow_run_state(run.id, State(type=state, name=state.capitalize()), force=force)
            return run.id

        async def state_of(id):
            return (await client.read_flow_run(id)).state

        yield make, state_of
        for id in made:
            await client.delete_flow_run(id)


async def test_runs_without_a_process_are_ended_and_their_place_is_free(runs):
    from tasks.reaping import reap_runs

    make, state_of = runs
    stuck = {states[-1]: await make(*states) for states in (["RUNNING"], ["PENDING"], ["RUNNING", "CANCELLING"])}
    await asyncio.sleep(PATIENCE_SECONDS)
    fresh = await make("RUNNING")
    assert await reap_runs.fn() == 3
    assert (await state_of(stuck["RUNNING"])).type == "CRASHED"
    assert "no process is at work on it" in (await state_of(stuck["PENDING"])).message
    assert (await state_of(stuck["CANCELLING"])).type == "CANCELLED"
    assert (await state_of(fresh)).type == "RUNNING"
    assert (await state_of(stuck["RUNNING"])).type == "CRASHED"


async def test_runs_are_ended_although_the_cluster_does_not_say_why(runs, monkeypatch, tmp_path):
    from tasks.reaping import reap_runs

    make, state_of = runs
    monkeypatch.setenv("STARSEARCH_KUBERNETES_NAMESPACE", "starsearch")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    stuck = await make("PENDING")
    await asyncio.sleep(PATIENCE_SECONDS)
    assert await reap_runs.fn() == 1
    assert (await state_of(stuck)).message.endswith("no process is at work on it.")


async def test_a_run_that_is_at_work_is_left_alone(runs, environment):
    from tasks.reaping import reap_runs

    make, state_of = runs
    alive = await make("RUNNING")
    await asyncio.sleep(PATIENCE_SECONDS)
    async with present(environment["STARSEARCH_DATABASE_URL"], alive):
        assert await reap_runs.fn() == 0
    assert (await state_of(alive)).type == "RUNNING"
    assert await reap_runs.fn() == 1


async def test_a_stranded_run_stops_the_schedule_until_it_is_reaped(runs):
    from tasks.reaping import reap_runs

    make, state_of = runs
    await make("PENDING", "RUNNING", force=False)
    assert (await state_of(await make("PENDING", force=False))).type == "CANCELLED"
    await asyncio.sleep(PATIENCE_SECONDS)
    await reap_runs.fn()
    assert (await state_of(await make("PENDING", force=False))).type == "PENDING"


async def test_the_reaper_frees_what_dead_workers_leased(store, environment, row, jsonl):
    from flows.reap import reap
    from starsearch.jsonl import read_items
    from starsearch.models import IndexVersion
    from starsearch.pipeline import ingest, make_due, recorded_run
    from starsearch.store.leases import claim, worker
    from starsearch.store.versions import ensure_version

    async with recorded_run(store, "ingest") as run:
        await ingest(store, read_items(jsonl(row(1), row(2))), run)
    version = await ensure_version(store.pool, IndexVersion("stub", "", 384, "recipe", "stub", "v1"))
    await make_due(store)
    async with worker(store.dsn) as number:
        await claim(store.pool, version.id, number)
    assert await reap() == {"runs": 0, "jobs": 0, "items": 2, "repositories": 0}


@pytest.fixture
async def cluster(monkeypatch, tmp_path):
    """An API server that knows Jobs of the namespace, by name, and forgets what is deleted; (list, deletions with their propagation)."""
    jobs, deleted = {}, {}

    async def listed(request):
        assert request.query["labelSelector"] == "prefect.io/flow-run-id"
        return web.json_response({"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": list(jobs.values())})

    async def delete(request):
        deleted[request.match_info["name"]] = request.query.get("propagationPolicy")
        return web.json_response(
            {"apiVersion": "v1", "kind": "Status", "status": "Success"} if jobs.pop(request.match_info["name"]) else {}
        )

    app = web.Application()
    app.router.add_get("/apis/batch/v1/namespaces/starsearch/jobs", listed)
    app.router.add_delete("/apis/batch/v1/namespaces/starsearch/jobs/{name}", delete)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server = {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}
    names = {"cluster": "c", "user": "u"}
    kubeconfig = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "clusters": [{"name": "c", "cluster": server}],
        "users": [{"name": "u", "user": {}}], "contexts": [{"name": "x", "context": names}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(json.dumps(kubeconfig))
    monkeypatch.setattr("kubernetes_asyncio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("STARSEARCH_KUBERNETES_NAMESPACE", "starsearch")
    yield jobs, deleted
    await runner.cleanup()


def a_job(name, flow_run, *, age=3_600, **status):
    created = f"{datetime.now(UTC) - timedelta(seconds=age):%Y-%m-%dT%H:%M:%SZ}"
    meta = {"name": name, "namespace": "starsearch", "creationTimestamp": created, "labels": {"prefect.io/flow-run-id": str(flow_run)}}
    return {name: {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "status": {"active": 1} | status}}


async def test_jobs_that_nobody_waits_for_are_deleted_and_no_others(runs, cluster):
    from tasks import reaping

    make, _ = runs
    jobs, deleted = cluster
    ended = await make("RUNNING", "CRASHED")
    jobs |= (
        a_job("ended", ended)
        | a_job("unknown", uuid4())
        | a_job("at-work", await make("RUNNING"))
        | a_job("waiting", await make("PENDING"))
    )
    jobs |= a_job("young", uuid4(), age=-60) | a_job("succeeded", ended, active=0, succeeded=1) | a_job("failed", ended, active=0, failed=1)
    assert await reaping.reap_jobs.fn() == 2
    assert deleted == dict.fromkeys(("ended", "unknown"), "Foreground")
    assert await reaping.reap_jobs.fn() == 0


async def test_without_a_cluster_no_job_is_looked_for(environment):
    from tasks.reaping import reap_jobs

    assert await reap_jobs.fn() == 0
