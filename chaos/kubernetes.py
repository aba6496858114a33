"""Prefect in a system under test whose flow runs are Jobs of a real Kubernetes API: a control plane of its own, a node that runs pods as
processes, the objects of overlays/local, and both workers under their Role.

A pod's process is prefect.engine itself, as in the pool of processes: `prefect flow-run execute`, above it in production, would load Prefect
once more for each run and tells nobody more than the worker's observer does. make test-kubernetes runs the pods with it.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from chaos.orchestration import REAP, Orchestration
from deployments import one_machine
from starsearch.embedded import postgres
from tests.k8s.cluster import Cluster, control_plane, node
from tests.k8s.manifests import Manifest
from tests.k8s.objects import NAMESPACE, apply_in_order, apply_secrets, apply_settings, local_overlay, pipeline_settings, told_by

NODE = "batch-1"
SECRET = {"STARSEARCH_GITHUB_TOKENS"}
ENGINES = {"DaemonSet"}  # processes of the system, which kills them, too
WORKING = {"Pending", "Running"}


@dataclass
class OnKubernetes(Orchestration):
    cluster: Cluster = field(init=False)
    _started: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def up(self) -> None:
        folder = self.settings.home / "kubernetes"
        folder.mkdir()
        self.cluster = self._started.enter_context(control_plane(folder))
        self._started.enter_context(node(self.cluster, NODE, folder))
        if self.cluster.run is None:
            self._started.callback(self.cluster.remove_applied)
        self._apply()
        for name in ("prefect-worker", "reaper"):
            self.cluster.as_service_account(NAMESPACE, name, folder / f"{name}.kubeconfig")
        self.environment |= told_by("prefect-worker-shards", "PREFECT_INTEGRATIONS_") | {
            "KUBECONFIG": str(folder / "prefect-worker.kubeconfig")
        }
        super().up()

    def down(self) -> None:
        self._started.close()

    def stranded(self) -> list[str]:
        return [*super().stranded(), *self.left_over()]

    def left_over(self) -> list[str]:
        """Jobs and pods that have not ended."""
        pods = [pod for pod in self.cluster.get("pods", NAMESPACE) if pod["status"].get("phase") in WORKING]
        return [
            *(f"Job {job['metadata']['name']} has not ended, and nothing is at work for it" for job in self.jobs()),
            *(f"pod {pod['metadata']['name']} is {pod['status']['phase']}, and nothing is at work in it" for pod in pods),
        ]

    def jobs(self) -> list[Manifest]:
        """Those that have not ended, by name."""
        found = [job for job in self.cluster.get("jobs", NAMESPACE) if not (job["status"].get("succeeded") or job["status"].get("failed"))]
        return sorted(found, key=lambda job: str(job["metadata"]["name"]))

    def _apply(self) -> None:
        """The overlay without its engines. Jobs are told of the system's, and carry the mark by which its processes are found."""
        apply_in_order(self.cluster, [each for each in local_overlay() if each["kind"] not in ENGINES])
        told = {name: value for name, value in self.environment.items() if name.startswith("STARSEARCH_") or name == "PYTHONPATH"}
        with contextlib.closing(postgres.start(self.settings.home)) as server:
            secrets = {name: told.pop(name) for name in SECRET} | {"STARSEARCH_DATABASE_URL": server.dsn}
        apply_settings(self.cluster, pipeline_settings() | told)
        apply_secrets(self.cluster, secrets)

    def _register(self) -> None:
        one_machine.register(self.environment, "--kubernetes")

    def _variables(self, deployment: str) -> dict[str, Any]:
        """The reaper looks for Jobs, as its service account may: a pod that is a process has no token mounted."""
        told = {"PREFECT_HOME": str(self.folder / "jobs")}
        if deployment == REAP:
            told["KUBECONFIG"] = str(self.settings.home / "kubernetes" / "reaper.kubeconfig")
        return super()._variables(deployment) | {"env": told}

    def _worker_command(self, pool: str) -> list[str]:
        return [*one_machine.worker_command(pool, "kubernetes"), "--no-create-pool-if-not-found"]
