"""A cluster that is not as it should be: what a person sees in Prefect's UI, and that the next hour recovers (make test-kubernetes)."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from prefect.states import Crashed

from tests.k8s import cluster as kubernetes
from tests.k8s.cluster import wait_for
from tests.k8s.manifests import Manifest
from tests.k8s.system import NAMESPACE, ROOT, System, deploy

pytestmark = [pytest.mark.kubernetes, pytest.mark.skipif(bool(kubernetes.missing()), reason=str(kubernetes.missing()))]

ITEMS = 40  # of the stand-in GitHub at first (conftest.py)
NEW = 20
PULL = 'Failed to pull image "{image}": rpc error: code = NotFound desc = failed to resolve reference "{image}": not found'


@pytest.fixture(scope="module", autouse=True)
def followed(system: System) -> None:
    system.set(SHARD_SIZE=str(NEW))
    system.rank()


def _next_hour_recovers(system: System) -> None:
    run = system.crawl()
    state = system.ended(run)
    assert state.is_completed(), f"{state.name}: {state.message}"
    status = system.status()
    assert status["complete"], status["gaps"]
    assert status["stored"] == sum(1 for _ in system.world.items())


def _show(fault: str, state: Any) -> None:
    print(f"\n{fault}: {state.name}: {state.message}")


def test_a_database_that_is_not_named_fails_the_run_and_says_where_to_name_it(system):
    system.secrets(STARSEARCH_DATABASE_URL=None)
    state = system.ended(system.crawl())
    _show("no database URL", state)
    assert state.is_failed()
    assert "STARSEARCH_DATABASE_URL is not set in this cluster" in state.message
    system.secrets(STARSEARCH_DATABASE_URL=system.dsn)
    _next_hour_recovers(system)


def test_without_a_worker_runs_are_late_and_start_when_there_is_one(system):
    for pool in ("starsearch", "starsearch-shards"):
        system.stop(pool)
    system.add_items(NEW)
    parent = system.crawl()
    wait_for(lambda: system.state(parent).name == "Late", what="a late run", every=2)
    _show("no worker", system.state(parent))
    system.start("starsearch")
    warning = wait_for(lambda: [log for log in system.logs(parent) if "none has begun" in log], what="the parent's warning", every=2)
    print("\nno worker for shards:", warning[-1])
    assert "Prefect says: Late" in warning[-1]
    system.start("starsearch-shards")
    assert system.ended(parent).is_completed()
    _next_hour_recovers(system)


def test_jobs_beyond_the_quota_crash_their_run_with_what_kubernetes_says(system):
    there = len(system.cluster.get("jobs", NAMESPACE))
    with _quota(system, {"count/jobs.batch": str(there)}):
        state = system.ended(system.crawl())
    _show("quota of Jobs", state)
    assert state.is_crashed()
    assert "exceeded quota" in state.message
    _next_hour_recovers(system)


def test_pods_beyond_the_quota_are_told_by_the_reaper_and_their_shards_start_again(system):
    system.add_items(NEW)
    with _quota(system, {"pods": "1"}):  # the parent's
        parent = system.crawl()
        shard = wait_for(lambda: system.waiting_shard(parent), what="a shard", every=1)
        wait_for(lambda: _refused(system), what="a pod that is refused", every=1)
        _reap(system)
        state = system.state(shard)
        _show("quota of pods", state)
        assert state.is_crashed()
        assert "exceeded quota" in state.message
    state = system.ended(parent)
    assert state.is_completed(), state.message
    _next_hour_recovers(system)


def test_an_image_that_cannot_be_pulled_is_named_and_its_run_ended(system):
    system.add_items(NEW)
    with _no_image(system):
        parent = system.crawl()
        wait_for(lambda: system.state(parent).name == "InfrastructurePending", what="a pod without its image", every=1)
        said = wait_for(lambda: [log for log in system.logs(parent) if "Image pull failed" in log], what="the observer", every=1)
        print("\nimage, the run's log:", said[-1])
        _reap(system)
        state = system.state(parent)
        _show("image", state)
        assert state.is_crashed()
        assert "Failed to pull image" in state.message
    _next_hour_recovers(system)


def test_a_job_whose_run_has_ended_is_deleted_by_the_reaper(system):
    """Its pod waits for an image that never comes, so nothing would end it before its deadline of hours."""
    system.add_items(NEW)
    with _no_image(system):
        parent = system.crawl()
        wait_for(lambda: system.state(parent).name == "InfrastructurePending", what="a pod without its image", every=1)
        system.prefect(lambda client: client.set_flow_run_state(parent, Crashed(message="ended by hand"), force=True))
        assert _jobs_of(system, parent), "gone before the reaper came: this proves nothing"
        _reap(system)
        wait_for(lambda: not _jobs_of(system, parent), what="the end of the stranded Job", every=1)
    _next_hour_recovers(system)


def _jobs_of(system: System, flow_run: UUID) -> list[Manifest]:
    return system.cluster.get("jobs", NAMESPACE, "-l", f"prefect.io/flow-run-id={flow_run}")


def test_a_run_rides_out_an_api_server_that_is_gone_for_a_minute(system):
    start_again = system.cluster.stop_api_server()
    run = system.crawl()
    time.sleep(60)
    _show("API server gone", system.state(run))
    start_again()
    state = system.ended(run)
    _show("API server back", state)
    assert state.is_completed(), state.message
    _next_hour_recovers(system)


@pytest.mark.parametrize("pool", ["starsearch-shards", "starsearch"])
def test_a_work_pool_that_is_gone_is_said_and_comes_back_with_the_deployments(system, pool):
    system.add_items(NEW)
    system.prefect(lambda client: client.delete_work_pool(pool))
    run = system.crawl()
    if pool == "starsearch-shards":
        state = system.ended(run)
        assert state.is_failed()
        assert "the work pool of digest/shard is gone" in state.message
    else:
        wait_for(lambda: system.state(run).name == "Late", what="a late run", every=2)
        state = system.state(run)
    _show(f"no pool {pool}", state)
    time.sleep(40)  # its worker looks for it, or ends: then Kubernetes starts its pod again
    if system.processes[pool].poll() is not None:
        system.start(pool)
    assert pool not in system.prefect(_pools)  # made by a worker, it would have Prefect's own template
    deploy(system)
    _next_hour_recovers(system)


async def _pools(client: Any) -> list[str]:
    return [pool.name for pool in await client.read_work_pools()]


def test_a_deployment_to_a_pool_that_does_not_exist_is_refused(system, tmp_path):
    file = tmp_path / "prefect.yaml"
    file.write_text((ROOT / "prefect.yaml").read_text().replace("name: starsearch-shards", "name: starsearch-shard"))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(file), "--name", "shard"]
    done = subprocess.run(command, env=system.environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    print("\nno such pool:", said)
    assert done.returncode == 1
    assert "work pool 'starsearch-shard' which does not exist" in said


@contextmanager
def _quota(system: System, hard: dict[str, str]) -> Iterator[None]:
    """In force when its controller has counted: until then the API server lets nothing through."""
    system.cluster.apply(
        [{"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": NAMESPACE}, "spec": {"hard": hard}}]
    )
    try:
        wait_for(lambda: system.cluster.get("resourcequotas", NAMESPACE)[0].get("status", {}).get("used"), what="the quota")
        yield
    finally:
        system.cluster.kubectl("-n", NAMESPACE, "delete", "resourcequota", "small")


def _refused(system: System) -> list[Manifest]:
    events = system.cluster.get("events", NAMESPACE, "--field-selector", "reason=FailedCreate")
    return [event for event in events if "exceeded quota" in event["message"]]


@contextmanager
def _no_image(system: System) -> Iterator[None]:
    """No node takes new pods, and what a kubelet says of one whose image it cannot pull is said of each."""
    nodes = [node["metadata"]["name"] for node in system.cluster.get("nodes", NAMESPACE)]
    ending = threading.Event()
    kubelet = threading.Thread(target=_fail_to_pull, args=(system, ending), daemon=True)
    system.cluster.kubectl("cordon", *nodes)
    kubelet.start()
    try:
        yield
    finally:
        ending.set()
        kubelet.join()
        system.cluster.kubectl("uncordon", *nodes)


def _fail_to_pull(system: System, ending: threading.Event) -> None:
    told: set[str] = set()
    while not ending.wait(1):
        for pod in system.cluster.get("pods", NAMESPACE, "--field-selector", "status.phase=Pending"):
            if (name := pod["metadata"]["name"]) not in told:
                told.add(name)
                _say_that_it_cannot_be_pulled(system, pod)


def _say_that_it_cannot_be_pulled(system: System, pod: Manifest) -> None:
    name, [container] = pod["metadata"]["name"], pod["spec"]["containers"]
    message = PULL.format(image=container["image"])
    waiting = {"waiting": {"reason": "ErrImagePull", "message": message}}
    same = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0, "ready": False, "started": False}
    patch = json.dumps({"status": {"containerStatuses": [same | {"state": waiting}]}})
    system.cluster.kubectl("-n", NAMESPACE, "patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{name}.", "namespace": NAMESPACE},
        "type": "Warning",
        "reason": "Failed",
        "involvedObject": {"kind": "Pod", "namespace": NAMESPACE, "name": name, "uid": pod["metadata"]["uid"]},
        "source": {"component": "kubelet"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    for said in (message, "Error: ErrImagePull"):
        system.cluster.kubectl("create", "-f", "-", stdin=json.dumps(event | {"message": said}))


def _reap(system: System) -> None:
    """reap/often as its Job runs it, under its own Role, for runs that have waited a moment."""
    config = system.cluster.as_service_account(NAMESPACE, "reaper", system.folder / "reaper.kubeconfig")
    patience = "reaping.PATIENCE = dict.fromkeys(reaping.PATIENCE, timedelta(seconds=5)); reaping.LOOKS_APART_SECONDS = 1"
    program = f"import asyncio; from datetime import timedelta; from flows.reap import reap; from tasks import reaping; {patience}; asyncio.run(reap())"
    environment = system.environment | system.settings | {"KUBECONFIG": str(config)}
    time.sleep(6)  # longer than that patience
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
