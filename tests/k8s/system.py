"""The system on a real Kubernetes API: Prefect's server and workers as processes, engines as a DaemonSet, and what tests ask of them.

A control plane on this machine, three nodes that run pods as processes, engines on the two that have GPUs. Nodes share no network and an
API server refuses loopback addresses as endpoints, so runners are given the engines' addresses, which the nodes' names tell.
"""

import asyncio
import gzip
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import psycopg

from deployments.one_machine import server_command
from starsearch.embedded import postgres
from tests.k8s import cluster as kubernetes
from tests.k8s.cluster import Cluster, ended, wait_for
from tests.k8s.manifests import Manifest
from tests.k8s.objects import (
    NAMESPACE,
    apply_in_order,
    apply_secrets,
    apply_settings,
    local_overlay,
    pipeline_settings,
    pod_processes,
    told_by,
)
from tests.processes import free_port
from tests.standin.server import StandIn
from tests.standin.world import World

ROOT = Path(__file__).resolve().parents[2]
SHARD = 375
ENGINE_KEY = "the-engines-key"
QUERY_SECONDS = 2  # how often a worker asks for runs here
GPU_NODES = ("gpu-2", "gpu-3")  # the engine of node gpu-N is at 127.0.0.N
WORKER = ("--type", "kubernetes", "--no-create-pool-if-not-found")  # as k8s/base/prefect-worker has it


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
        command = (
            [*server_command(), "--port", self.environment["PREFECT_SERVER_API_PORT"]]
            if name == "server"
            else [sys.executable, "-m", "prefect", "worker", "start", "--pool", name, *WORKER, "--name", f"{name}-{time.monotonic()}"]
        )
        with (self.folder / f"{name}.log").open("ab") as log:
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

    def ended(self, flow_run: UUID, *, seconds: float = 600) -> Any:
        """Its state, once that is final."""
        wait_for(lambda: self.state(flow_run).is_final(), seconds=seconds, every=2, what=f"the end of run {flow_run}")
        return self.state(flow_run)

    def logs(self, flow_run: UUID) -> list[str]:
        async def find(client: Any) -> list[str]:
            from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

            return [log.message for log in await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run])))]

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

    def rank(self) -> None:
        """Follow every repository of the stand-in GitHub."""
        names = self.folder / "list.csv"
        repositories = [repository.full_name for repository in self.world.visible_repositories()]
        names.write_text("full_name,stars\n" + "".join(f"{name},1\n" for name in repositories))
        rank = [sys.executable, "-m", "starsearch.cli", "rank", "--from", str(names)]
        subprocess.run(rank, env=self.environment, check=True, capture_output=True, timeout=120)

    def digested(self) -> int:
        return self.value("SELECT count(*) FROM digest d JOIN index_version v ON v.id = d.version_id WHERE v.status = 'active'") or 0

    def waiting_shard(self, parent: UUID) -> UUID | None:
        """The flow run of one that has not begun."""
        query = "SELECT flow_run FROM shard WHERE parent = %s AND flow_run IS NOT NULL AND began_at IS NULL AND ended_at IS NULL"
        return self.value(query, parent)

    # GitHub

    def add_items(self, number: int) -> None:
        """Real texts again, as other items, each with a word of its own so that no two are the same."""
        texts = list(itertools.islice(itertools.cycle(list(self.world.items())), number))
        repository = next(iter(self.world.visible_repositories()))
        serial = self.value("SELECT count(*) FROM item")
        self.world.advance(60)
        for n, text in enumerate(texts):
            self.world.add_item(repository, text.type, title=f"{text.title} ({serial + n})", body=text.body)
        self.world.advance(60)

    # the cluster

    def engine_requests(self) -> int:
        key = {"Authorization": f"Bearer {ENGINE_KEY}"}
        asked = (urllib.request.Request(f"http://127.0.0.{node[-1]}:8000/requests", headers=key) for node in GPU_NODES)
        return sum(json.load(urllib.request.urlopen(each, timeout=10)).get("chat", 0) for each in asked)

    def set(self, **settings: str) -> None:
        """What the next Jobs are told."""
        self.settings |= {f"STARSEARCH_{name}": value for name, value in settings.items()}
        apply_settings(self.cluster, self.settings)

    def secrets(self, **changed: str | None) -> None:
        """What the next Jobs are told in secret; None leaves one out."""
        secrets = {
            **dict.fromkeys(("STARSEARCH_LLM_API_KEY", "STARSEARCH_EMBEDDING_API_KEY"), ENGINE_KEY),
            "STARSEARCH_DATABASE_URL": self.dsn,
            "STARSEARCH_GITHUB_TOKENS": "token-a",
            "PREFECT_API_AUTH_STRING": self.environment["PREFECT_API_AUTH_STRING"],
        } | changed
        apply_secrets(self.cluster, {name: value for name, value in secrets.items() if value is not None})

    def jobs(self, flow: str) -> list[Manifest]:
        runs = {str(run.id) for run in self.runs(flow)}
        return [job for job in self.cluster.get("jobs", NAMESPACE) if job["metadata"]["labels"].get("prefect.io/flow-run-id") in runs]

    def kill_pod(self, flow_run: UUID) -> None:
        """kill -9 of all its processes, as a container's end is: the flow runs in a session of its own, and would outlive its pod here."""
        processes = pod_processes(flow_run)
        assert processes, f"no process of flow run {flow_run}"
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@contextmanager
def running_system(folder: Path, home: Path, server: postgres.EmbeddedPostgres, *, items: int) -> Iterator[System]:
    """Everything deployed and every schedule at rest; a database of its own on `server`, so many items on the stand-in GitHub."""
    name = f"kubernetes_{time.monotonic_ns()}"
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    dsn, world = server.place.dsn(name), World()
    world.fill(_real_items(folder, items))
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
            **told_by("prefect-server", "PREFECT_SERVER_"),
            **told_by("prefect-worker-shards", "PREFECT_INTEGRATIONS_"),
            "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
            "DO_NOT_TRACK": "1",
            "STARSEARCH_HOME": str(home),
            "STARSEARCH_DATABASE_URL": dsn,
        }
        found = System(cluster, folder, dsn, world, github, environment["PREFECT_API_URL"], environment, _settings(github, home))
        if cluster.run is None:
            stack.callback(cluster.remove_applied)
        _apply(found)
        environment["KUBECONFIG"] = str(cluster.as_service_account(NAMESPACE, "prefect-worker", folder / "worker.kubeconfig"))
        found.start("server")
        stack.callback(lambda: [found.stop(name) for name in found.processes])
        deploy(found)
        for pool in ("starsearch", "starsearch-shards"):
            found.start(pool)
        yield found


def _real_items(folder: Path, number: int) -> Path:
    path = ROOT / ".." / "shared" / "data" / "items.jsonl.gz"
    some = folder / "items.jsonl"
    with gzip.open(path, "rt", encoding="utf-8") as all_of_them:
        some.write_text("".join(itertools.islice(all_of_them, number)), "utf-8")
    return some


def _settings(github: StandIn, home: Path) -> dict[str, str]:
    engines = ",".join(f"http://127.0.0.{node[-1]}:8000/v1" for node in GPU_NODES)
    return pipeline_settings() | {
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
    """The overlay with engines on the nodes that have GPUs."""
    manifests = local_overlay()
    engines = next(each for each in manifests if each["kind"] == "DaemonSet")
    pod = engines["spec"]["template"]["spec"]
    pod["nodeSelector"] = {"nvidia.com/gpu.present": "true"}
    [container] = pod["containers"]
    meta = {"name": "vllm-api-key", "namespace": "vllm-ns"}
    manifests.insert(0, {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"key": ENGINE_KEY}})
    container["command"] = ["sh", "-c", "exec starsearch engine --host 127.0.0.${NODE##*-} --port 8000"]
    container["env"] = [
        *(each for each in container["env"] if "valueFrom" in each),  # its key
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "STARSEARCH_HOME", "value": system.settings["STARSEARCH_HOME"]},
    ]
    container["resources"]["limits"]["nvidia.com/gpu"] = container["resources"]["requests"]["nvidia.com/gpu"] = "1"
    apply_in_order(system.cluster, manifests)
    system.secrets()
    system.set()


def deploy(system: System) -> None:
    """As the overlay's README does; then the schedules rest until a test wants one."""
    for command in (["deployments/set_up.py", "--kubernetes"], ["-m", "prefect", "--no-prompt", "deploy", "--all"]):
        subprocess.run([sys.executable, *command], env=system.environment, cwd=ROOT, check=True, timeout=180, capture_output=True)
    (system.folder / "jobs").mkdir(exist_ok=True)

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
