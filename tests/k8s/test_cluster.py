"""The hour on a real Kubernetes API: real Prefect server, real workers under their Role, real shard Jobs, real issues (make test-kubernetes).

A control plane on this machine, three nodes that run pods as processes, engines as a DaemonSet on the two that have GPUs. Nodes share no
network and an API server refuses loopback addresses as endpoints, so runners are given the engines' addresses, which the nodes' names tell.
"""

import asyncio
import gzip
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
import yaml

from starsearch.embedded import postgres
from tests.k8s import cluster as kubernetes
from tests.k8s.cluster import Cluster, ended, wait_for
from tests.k8s.manifests import CUSTOM_KINDS, Manifest, read, rendered
from tests.processes import free_port
from tests.standin.server import StandIn
from tests.standin.world import World

pytestmark = [pytest.mark.kubernetes, pytest.mark.skipif(bool(kubernetes.missing()), reason=str(kubernetes.missing()))]

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 3_000
SHARD = 375
FAULT_ITEMS, FAULT_SHARD = 3_000, 375
TWICE = 0.05  # of the items may be asked again: what a killed shard had in flight, and what it was told in its last moment
QUERY_SECONDS = 2  # how often a worker asks for runs here
NAMESPACE = "starsearch"
GPU_NODES = ("gpu-2", "gpu-3")  # the engine of node gpu-N is at 127.0.0.N
NOT_IN_1_20 = {"PodDisruptionBudget"}  # policy/v1 is younger
PLAYED = {"Deployment", "StatefulSet", "Job"}  # by processes of this test, or not needed


@dataclass
class System:
    cluster: Cluster
    folder: Path
    dsn: str
    world: World
    github: StandIn
    api: str
    environment: dict[str, str]
    settings: dict[str, str]
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    # Prefect

    def prefect(self, call: Any) -> Any:
        """What `call(client)` returns, asked of the real server."""
        from prefect import get_client
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        async def ask() -> Any:
            with temporary_settings({PREFECT_API_URL: self.api, PREFECT_API_AUTH_STRING: self.environment["PREFECT_API_AUTH_STRING"]}):
                async with get_client() as client:
                    return await call(client)

        return asyncio.run(ask())

    def start(self, name: str) -> None:
        """The server, or a worker, as a process."""
        arguments = (
            ["server", "start", "--host", "127.0.0.1", "--port", self.environment["PREFECT_SERVER_API_PORT"]]
            if name == "server"
            else ["worker", "start", "--pool", name, "--type", "kubernetes", "--name", f"{name}-{time.monotonic()}"]
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            command = [sys.executable, "-m", "prefect", *arguments]
            self.processes[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)
        if name == "server":
            wait_for(self._healthy, what="Prefect's server")

    def stop(self, name: str) -> None:
        with ended(self.processes[name]):
            pass

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def crawl(self) -> UUID:
        async def create(client: Any) -> UUID:
            deployment = await client.read_deployment_by_name("crawl/hourly")
            return UUID(str((await client.create_flow_run_from_deployment(deployment.id)).id))

        return self.prefect(create)

    def runs(self, flow: str) -> list[Any]:
        async def find(client: Any) -> list[Any]:
            from prefect.client.schemas.filters import FlowFilter, FlowFilterName

            return await client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), limit=200)

        return self.prefect(find)

    def state(self, flow_run: UUID) -> Any:
        async def find(client: Any) -> Any:
            return (await client.read_flow_run(flow_run)).state

        return self.prefect(find)

    # the database

    def value(self, query: str, *parameters: object) -> Any:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            row = connection.execute(query, parameters).fetchone()
        return row and row[0]

    def status(self) -> dict[str, Any]:
        command = [sys.executable, "-m", "starsearch.cli", "status", "--json"]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def digested(self) -> int:
        return self.value("SELECT count(*) FROM digest d JOIN index_version v ON v.id = d.version_id WHERE v.status = 'active'") or 0

    # the cluster

    def engine_requests(self) -> int:
        answers = (urllib.request.urlopen(f"http://127.0.0.{node[-1]}:8000/requests", timeout=10) for node in GPU_NODES)
        return sum(json.load(answer).get("chat", 0) for answer in answers)

    def set(self, **settings: str) -> None:
        """What the next Jobs are told."""
        self.settings |= {f"STARSEARCH_{name}": value for name, value in settings.items()}
        meta = {"name": "pipeline-settings", "namespace": NAMESPACE}
        self.cluster.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": self.settings}])

    def jobs(self, flow: str) -> list[Manifest]:
        runs = {str(run.id) for run in self.runs(flow)}
        return [job for job in self.cluster.get("jobs", NAMESPACE) if job["metadata"]["labels"].get("prefect.io/flow-run-id") in runs]

    def process_of(self, flow_run: UUID) -> int:
        """The first process of a flow run's pod."""
        wanted = f"PREFECT__FLOW_RUN_ID={flow_run}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue
        assert found, f"no process of flow run {flow_run}"
        return os.getpgid(min(found))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, home: Path, server: postgres.EmbeddedPostgres) -> Iterator[System]:
    folder = tmp_path_factory.mktemp("cluster")
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE kubernetes_test")
    dsn, world = server.place.dsn("kubernetes_test"), World()
    world.fill(_real_items(folder))
    with ExitStack() as stack:
        github = stack.enter_context(StandIn(world, points=1_000_000))
        cluster = stack.enter_context(kubernetes.control_plane(folder))
        for name in (*GPU_NODES, "batch-1"):
            gpu = name in GPU_NODES
            labels = ["nvidia.com/gpu.present=true"] if gpu else []
            stack.enter_context(kubernetes.node(cluster, name, folder, gpus=int(gpu), labels=labels))
        port = free_port()
        login = "admin:not-a-secret"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_API_AUTH_STRING": login,
            "PREFECT_API_AUTH_STRING": login,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES": NAMESPACE,
            "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
            "DO_NOT_TRACK": "1",
            "STARSEARCH_HOME": str(home),
            "STARSEARCH_DATABASE_URL": dsn,
        }
        found = System(cluster, folder, dsn, world, github, environment["PREFECT_API_URL"], environment, _settings(github, home))
        _apply(found)
        environment["KUBECONFIG"] = str(cluster.as_service_account(NAMESPACE, "prefect-worker", folder / "worker.kubeconfig"))
        found.start("server")
        stack.callback(lambda: [found.stop(name) for name in found.processes])
        _deploy(found)
        for pool in ("starsearch", "starsearch-shards"):
            found.start(pool)
        yield found


def _real_items(folder: Path) -> Path:
    path = ROOT / ".." / "shared" / "data" / "items.jsonl.gz"
    some = folder / "items.jsonl"
    with gzip.open(path, "rt", encoding="utf-8") as all_of_them:
        some.write_text("".join(itertools.islice(all_of_them, ITEMS)), "utf-8")
    return some


def _settings(github: StandIn, home: Path) -> dict[str, str]:
    data: dict[str, str] = next(each["data"] for each in read(rendered("base")) if each["metadata"]["name"] == "pipeline-settings")
    engines = ",".join(f"http://127.0.0.{node[-1]}:8000/v1" for node in GPU_NODES)
    return data | {
        "STARSEARCH_LLM_BASE_URL": engines,
        "STARSEARCH_LLM_MODEL": "embedded-extractive-v1",
        "STARSEARCH_EMBEDDING_BASE_URL": engines,
        "STARSEARCH_EMBEDDING_MODEL": "minilm-l6-v2",
        "STARSEARCH_HOME": str(home),
        "STARSEARCH_GITHUB_GRAPHQL_URL": github.graphql_url,
        "STARSEARCH_GITHUB_REST_URL": github.url,
        "STARSEARCH_SINCE": "2000-01-01",
        "STARSEARCH_SHARD_SIZE": str(SHARD),
        "STARSEARCH_COMMENTS": "5",
    }


def _apply(system: System) -> None:
    """overlays/local as far as Kubernetes 1.20 knows it, with engines on the nodes that have GPUs."""
    manifests = [each for each in read(rendered("overlays/local")) if each["kind"] not in CUSTOM_KINDS | NOT_IN_1_20 | PLAYED]
    first = [each for each in manifests if each["kind"] in {"Namespace", "PriorityClass"}]
    system.cluster.apply(first)
    engines = next(each for each in manifests if each["kind"] == "DaemonSet")
    pod = engines["spec"]["template"]["spec"]
    pod["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    [container] = pod["containers"]
    container["command"] = ["sh", "-c", "exec starsearch engine --host 127.0.0.${NODE##*-} --port 8000"]
    container["env"] = [
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "STARSEARCH_HOME", "value": system.settings["STARSEARCH_HOME"]},
    ]
    container["resources"]["limits"]["nvidia.com/gpu"] = container["resources"]["requests"]["nvidia.com/gpu"] = "1"
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "pipeline-secrets", "namespace": NAMESPACE},
        "stringData": {
            "STARSEARCH_DATABASE_URL": system.dsn,
            "STARSEARCH_GITHUB_TOKENS": "token-a",
            "PREFECT_API_AUTH_STRING": system.environment["PREFECT_API_AUTH_STRING"],
        },
    }
    system.cluster.apply([*(each for each in manifests if each not in first), secret])
    system.set()


def _deploy(system: System) -> None:
    """As the overlay's README does; then the schedules rest until a test wants one."""
    for command in (["deployments/set_up.py", "--kubernetes"], ["-m", "prefect", "--no-prompt", "deploy", "--all"]):
        subprocess.run([sys.executable, *command], env=system.environment, cwd=ROOT, check=True, timeout=180, capture_output=True)
    (system.folder / "jobs").mkdir()

    async def adapt(client: Any) -> None:
        from prefect.client.schemas.actions import WorkPoolUpdate

        for pool in ("starsearch", "starsearch-shards"):
            template = (await client.read_work_pool(pool)).base_job_template
            template["variables"]["properties"]["env"]["default"]["PREFECT_HOME"] = str(system.folder / "jobs")
            await client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))
        for deployment in await client.read_deployments():
            for schedule in deployment.schedules:
                await client.update_deployment_schedule(deployment.id, schedule.id, active=False)

    system.prefect(adapt)


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
    assert _curl(f"{address}/v1/models")["data"][0]["id"]
    message = {"role": "user", "content": "The build fails on Windows since 2.1. The path has a backslash too many. Reverting helps."}
    body = json.dumps({"model": "embedded-extractive-v1", "messages": [message]})
    answer = _curl(f"{address}/v1/chat/completions", "-H", "content-type: application/json", "-d", body)
    assert "backslash" in answer["choices"][0]["message"]["content"]


def _curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-s", "--noproxy", "*", "-m", "20", *arguments], capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.stdout else None


def test_the_hour_comes_by_its_schedule_and_completes(system):
    names = system.folder / "list.csv"
    repositories = [repository.full_name for repository in system.world.visible_repositories()]
    names.write_text("full_name,stars\n" + "".join(f"{name},1\n" for name in repositories))
    rank = [sys.executable, "-m", "starsearch.cli", "rank", "--from", str(names)]
    subprocess.run(rank, env=system.environment, check=True, capture_output=True, timeout=120)

    _schedule(system, active=True)
    wait_for(lambda: any(run.state.is_running() for run in system.runs("crawl")), what="the schedule", every=2)
    _schedule(system, active=False)
    [run] = [run for run in system.runs("crawl") if not run.state.is_scheduled()]
    assert run.auto_scheduled
    wait_for(lambda: system.state(run.id).is_final(), seconds=900, every=2, what="the crawl")
    assert system.state(run.id).is_completed(), system.state(run.id).message

    items = sum(1 for _ in system.world.items())
    status = system.status()
    assert status["complete"], status["gaps"]
    assert status["stored"] == status["embedded"] + status["dead_letters"] == items >= 0.99 * ITEMS
    jobs = system.jobs("digest")
    assert len(jobs) >= 8
    assert all(job["status"].get("succeeded") for job in jobs)
    assert system.value("SELECT count(*) FROM (SELECT item_id FROM digest GROUP BY 1 HAVING count(*) > 1) AS twice") == 0
    print(f"first shard Job {_first_job_after(system):.1f} s after it was planned, at the end of the sweep")


def _first_job_after(system: System) -> float:
    """Seconds from when the parent planned its first shard, at the end of the sweep, to the first shard's Job."""
    planned = system.value("SELECT extract(epoch FROM min(dispatched_at)) FROM shard")
    created = min(job["metadata"]["creationTimestamp"] for job in system.jobs("digest"))
    return datetime.fromisoformat(created).timestamp() - float(planned)


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
    os.killpg(system.process_of(shard), signal.SIGKILL)


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
    os.killpg(system.process_of(parent), signal.SIGKILL)


# in the order in which they come together: first what must still be at work to be killed
FAULTS = [_two_jobs_deleted, _a_pod_killed, _parent_killed, _worker_restarted, _api_server_gone_for_30_seconds, _prefect_restarted]


def _everything(system: System, parent: UUID) -> None:
    for fault in FAULTS:
        fault(system, parent)


KILL_SHARDS = {_two_jobs_deleted, _a_pod_killed, _everything}


@pytest.mark.parametrize("fault", [*FAULTS, _everything], ids=lambda fault: fault.__name__.strip("_"))
def test_whatever_breaks_the_run_or_the_next_one_ends_complete(system, fault):
    before, asked = system.digested(), system.engine_requests()
    system.set(SHARD_SIZE=str(FAULT_SHARD))
    _new_items(system)
    parent = system.crawl()
    wait_for(lambda: system.value("SELECT count(*) FROM shard WHERE parent = %s AND began_at IS NOT NULL", parent), what="a shard")
    fault(system, parent)
    runs = 1
    while not _done(system, parent, before + FAULT_ITEMS):
        assert runs < 2, f"neither the run nor the next one completed: {system.status()['gaps']}"
        runs += 1
        parent = system.crawl()
    status = system.status()
    assert status["complete"], status["gaps"]
    assert system.digested() == before + FAULT_ITEMS
    assert system.value("SELECT count(*) FROM (SELECT version_id, item_id FROM digest GROUP BY 1, 2 HAVING count(*) > 1) AS twice") == 0
    twice = system.engine_requests() - asked - FAULT_ITEMS
    print(f"{fault.__name__}: {runs} run(s), {twice} of {FAULT_ITEMS} asked twice")
    assert twice <= (TWICE * FAULT_ITEMS if fault in KILL_SHARDS else 0)


def _new_items(system: System) -> None:
    """Real texts again, as other items, each with a word of its own so that no two are the same."""
    texts = itertools.islice(itertools.cycle(list(system.world.items())), FAULT_ITEMS)
    repository = next(iter(system.world.visible_repositories()))
    serial = system.value("SELECT count(*) FROM item")
    system.world.advance(60)
    for n, text in enumerate(list(texts)):
        system.world.add_item(repository, text.type, title=f"{text.title} ({serial + n})", body=text.body)
    system.world.advance(60)


def _done(system: System, parent: UUID, digests: int) -> bool:
    """Whether all is digested when this run has ended, however; a run whose process was killed may never end by itself."""

    def over() -> bool:
        return system.digested() >= digests or system.state(parent).is_final()

    wait_for(over, seconds=600, every=2, what="the run")
    if system.digested() < digests:
        return False
    wait_for(lambda: system.value("SELECT count(*) FROM shard WHERE ended_at IS NULL AND began_at IS NOT NULL") == 0, what="its shards")
    return True
