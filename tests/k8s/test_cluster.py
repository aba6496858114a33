"""The hour on a real Kubernetes API: real Prefect server, real workers under their Role, real shard Jobs, real issues (make test-kubernetes).

What each file of tests has of its own is in system.py.
"""

import json
import subprocess
import time
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import yaml

from tests.k8s import cluster as kubernetes
from tests.k8s.cluster import wait_for
from tests.k8s.system import ENGINE_KEY, GPU_NODES, NAMESPACE, ROOT, System

pytestmark = [pytest.mark.kubernetes, pytest.mark.skipif(bool(kubernetes.missing()), reason=str(kubernetes.missing()))]

ITEMS = 3_000  # of the stand-in GitHub at first (conftest.py)
FAULT_ITEMS, FAULT_SHARD = 3_000, 375
FIRST_JOB_SECONDS = 5  # from the submission of its run to the first shard's Job: the worker's next question, and Kubernetes
TWICE = 0.05  # of the items may be asked again: what a killed shard had in flight, and what it was told in its last moment


def _schedule(system: System, *, active: bool) -> None:
    async def change(client: Any) -> None:
        from prefect.client.schemas.schedules import CronSchedule

        deployment = await client.read_deployment_by_name("crawl/hourly")
        [schedule] = deployment.schedules
        each_minute = CronSchedule(cron="* * * * *", timezone="UTC")
        await client.update_deployment_schedule(deployment.id, schedule.id, active=active, schedule=each_minute)

    system.prefect(change)


def _role_of_the_worker() -> set[tuple[str, str]]:
    role = yaml.safe_load((ROOT / "k8s/base/prefect-worker/role.yaml").read_text())
    return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}


def test_the_engines_are_ready_on_the_nodes_with_gpus(system):
    def ready() -> bool:
        status = system.cluster.get("daemonsets", "vllm-ns")[0]["status"]
        return bool(status.get("numberReady", 0) == status["desiredNumberScheduled"] == len(GPU_NODES))

    wait_for(ready, what="the engines")
    pods = system.cluster.get("pods", "vllm-ns")
    assert {pod["spec"]["nodeName"] for pod in pods} == set(GPU_NODES)


def test_the_articles_requests_work_where_its_service_leads(system):
    """curl, as in overlays/local's README: the Service's port leads to the port of a pod that it selects."""
    service = next(each for each in system.cluster.get("services", "vllm-ns") if each["metadata"]["name"] == "vllm-service")
    labels = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
    pod = system.cluster.get("pods", "vllm-ns", "-l", labels)[0]
    [port] = service["spec"]["ports"]
    ports = {each["name"]: each["containerPort"] for each in pod["spec"]["containers"][0]["ports"]}
    address = f"http://127.0.0.{pod['spec']['nodeName'][-1]}:{ports[port['targetPort']]}"
    wait_for(lambda: _curl(f"{address}/v1/models"), what="an engine")
    assert "STARSEARCH_SERVED_ENGINE_KEY" in _curl(f"{address}/v1/models")["error"]["message"]
    key = ("-H", f"Authorization: Bearer {ENGINE_KEY}")
    assert _curl(f"{address}/v1/models", *key)["data"][0]["id"]
    message = {"role": "user", "content": "The build fails on Windows since 2.1. The path has a backslash too many. Reverting helps."}
    body = json.dumps({"model": "embedded-extractive-v1", "messages": [message]})
    answer = _curl(f"{address}/v1/chat/completions", *key, "-H", "content-type: application/json", "-d", body)
    assert "backslash" in answer["choices"][0]["message"]["content"]


def _curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-s", "--noproxy", "*", "-m", "20", *arguments], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.stdout else None


def test_the_hour_comes_by_its_schedule_and_completes(system):
    system.rank()
    _schedule(system, active=True)
    wait_for(lambda: any(run.state.is_running() for run in system.runs("crawl")), what="the schedule", every=2)
    _schedule(system, active=False)
    [run] = [run for run in system.runs("crawl") if not run.state.is_scheduled()]
    assert run.auto_scheduled
    state = system.ended(run.id, seconds=900)
    assert state.is_completed(), state.message

    items = sum(1 for _ in system.world.items())
    status = system.status()
    assert status["complete"], status["gaps"]
    assert status["stored"] == status["embedded"] + status["dead_letters"] == items >= 0.99 * ITEMS
    jobs = system.jobs("digest")
    assert len(jobs) >= 8
    assert all(job["status"].get("succeeded") for job in jobs)
    assert system.value("SELECT count(*) FROM (SELECT item_id FROM digest GROUP BY 1 HAVING count(*) > 1) AS twice") == 0
    planned = float(system.value("SELECT extract(epoch FROM min(dispatched_at)) FROM shard"))
    submitted = min(run.created.timestamp() for run in system.runs("digest"))
    first = min(datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp() for job in jobs)  # told in whole seconds
    print(f"first shard Job {first - submitted:.1f} s after its run was submitted, {first - planned:.1f} s after it was planned")
    assert first - submitted <= FIRST_JOB_SECONDS


def test_the_worker_did_only_what_its_role_allows(system):
    asked = system.cluster.audit(f"system:serviceaccount:{NAMESPACE}:prefect-worker")
    assert ("create", "jobs") in asked
    assert asked <= _role_of_the_worker()


# What breaks: each alone, and everything together. The run or the next one ends complete, nothing is lost or doubled, little is asked twice.


def _two_jobs_deleted(system: System, _parent: UUID) -> None:
    wanted = [job["metadata"]["name"] for job in system.jobs("digest") if job["status"].get("active")][:2]
    assert wanted, "killed too late to prove anything"
    system.cluster.kubectl("-n", NAMESPACE, "delete", "jobs", "--wait=false", *wanted)


def _a_pod_killed(system: System, _parent: UUID) -> None:
    shard = system.value("SELECT flow_run FROM shard WHERE ended_at IS NULL AND began_at IS NOT NULL ORDER BY began_at DESC LIMIT 1")
    system.kill_pod(shard)


def _worker_restarted(system: System, _parent: UUID) -> None:
    system.stop("starsearch-shards")
    system.start("starsearch-shards")


def _api_server_gone_for_30_seconds(system: System, _parent: UUID) -> None:
    start_again = system.cluster.stop_api_server()
    time.sleep(30)
    start_again()


def _prefect_restarted(system: System, _parent: UUID) -> None:
    system.stop("server")
    system.start("server")


def _parent_killed(system: System, parent: UUID) -> None:
    system.kill_pod(parent)


# in the order in which they come together: first what must still be at work to be killed
FAULTS = [_two_jobs_deleted, _a_pod_killed, _parent_killed, _worker_restarted, _api_server_gone_for_30_seconds, _prefect_restarted]


def _everything(system: System, parent: UUID) -> None:
    for fault in FAULTS:
        fault(system, parent)


KILL_PARENT = {_parent_killed, _everything}  # the others it rides out
KILL_SHARDS = {_two_jobs_deleted, _a_pod_killed, _everything}


@pytest.mark.parametrize("fault", [*FAULTS, _everything], ids=lambda fault: fault.__name__.strip("_"))
def test_whatever_breaks_the_run_or_the_next_one_ends_complete(system, fault):
    before, asked = system.digested(), system.engine_requests()
    system.set(SHARD_SIZE=str(FAULT_SHARD))
    system.add_items(FAULT_ITEMS)
    parent = _crawl_with_a_shard(system)
    fault(system, parent)
    runs = 1
    while not _done(system, parent, before + FAULT_ITEMS):
        assert runs == 1 and fault in KILL_PARENT, f"not complete after {runs}: {system.state(parent)}, {system.status()['gaps']}"
        runs += 1
        parent = system.crawl()
    status = system.status()
    assert status["complete"], status["gaps"]
    assert system.digested() == before + FAULT_ITEMS
    assert system.value("SELECT count(*) FROM (SELECT version_id, item_id FROM digest GROUP BY 1, 2 HAVING count(*) > 1) AS twice") == 0
    twice = system.engine_requests() - asked - FAULT_ITEMS
    print(f"{fault.__name__}: {runs} run(s), {twice} of {FAULT_ITEMS} asked twice")
    assert twice <= (TWICE * FAULT_ITEMS if fault in KILL_SHARDS else 0)


def _crawl_with_a_shard(system: System) -> UUID:
    """A crawl whose first shard is at work. One that came while the last was about to end is cancelled, and another comes."""
    began = "SELECT count(*) FROM shard WHERE parent = %s AND began_at IS NOT NULL"
    parent = system.crawl()

    def working() -> int:
        nonlocal parent
        if system.state(parent).is_cancelled():
            parent = system.crawl()
        return int(system.value(began, parent))

    wait_for(working, every=2, what="a shard")
    return parent


def _done(system: System, parent: UUID, digests: int) -> bool:
    """Whether all is digested when this run has ended, however; a run whose process was killed may never end by itself."""

    def over() -> bool:
        return system.digested() >= digests or system.state(parent).is_final()

    wait_for(over, seconds=600, every=2, what="the run")
    if system.digested() < digests:
        return False
    wait_for(lambda: system.value("SELECT count(*) FROM shard WHERE ended_at IS NULL AND began_at IS NOT NULL") == 0, what="its shards")
    return True
