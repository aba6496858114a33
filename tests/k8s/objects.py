"""What is applied to a cluster under test: overlays/local as far as Kubernetes 1.20 knows it, what Jobs are told, and their processes here."""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from uuid import UUID

import psutil

from tests.k8s.cluster import Cluster
from tests.k8s.manifests import CUSTOM_KINDS, Manifest, read, rendered

NAMESPACE = "starsearch"
NOT_IN_1_20 = {"PodDisruptionBudget"}  # policy/v1 is younger
PLAYED = {"Deployment", "StatefulSet", "Job"}  # by processes of the tests, or not needed
FIRST = {"Namespace", "PriorityClass"}


def local_overlay() -> list[Manifest]:
    return [each for each in read(rendered("overlays/local")) if each["kind"] not in CUSTOM_KINDS | NOT_IN_1_20 | PLAYED]


def apply_in_order(cluster: Cluster, manifests: Sequence[Manifest]) -> None:
    """First what the others need."""
    cluster.apply([each for each in manifests if each["kind"] in FIRST])
    cluster.apply([each for each in manifests if each["kind"] not in FIRST])


def pipeline_settings() -> dict[str, str]:
    """What the manifest tells Jobs."""
    data: dict[str, str] = next(each["data"] for each in read(rendered("base")) if each["metadata"]["name"] == "pipeline-settings")
    return data


def told_by(name: str, prefix: str) -> dict[str, str]:
    """The settings of that kind in the manifest of that Deployment, secrets apart."""
    [deployment] = (each for each in read(rendered("base")) if each["kind"] == "Deployment" and each["metadata"]["name"] == name)
    told = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {each["name"]: each["value"] for each in told if each["name"].startswith(prefix) and "value" in each}


def apply_settings(cluster: Cluster, settings: Mapping[str, str]) -> None:
    """What the next Jobs are told."""
    meta = {"name": "pipeline-settings", "namespace": NAMESPACE}
    cluster.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(settings)}])


def apply_secrets(cluster: Cluster, secrets: Mapping[str, str]) -> None:
    """What the next Jobs are told in secret."""
    coded = {name: base64.b64encode(value.encode()).decode() for name, value in secrets.items()}
    meta = {"name": "pipeline-secrets", "namespace": NAMESPACE}
    cluster.apply([{"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": coded}])


def pod_processes(flow_run: UUID | str) -> list[psutil.Process]:
    """All of a flow run's pod: some are in a session of their own, and would outlive their pod here."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(flow_run):
                found.append(process)
    return found
