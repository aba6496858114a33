"""What chaos knows of Jobs and pods: which have not ended, what breaks them, and that without them a seed's faults stay what they were."""

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chaos import cluster_faults
from chaos.faults import FAULTS, schedule
from chaos.kubernetes import OnKubernetes
from chaos.proof import _orphans
from starsearch.settings import Settings
from tests.k8s.manifests import Manifest


class Api:
    """Instead of the cluster's: what is there, and what was asked."""

    def __init__(self, **there: Sequence[Manifest]) -> None:
        self.there, self.asked = there, list[tuple[str, ...]]()

    def get(self, kind: str, namespace: str, *arguments: str) -> list[Manifest]:
        return list(self.there.get(kind, ()))

    def kubectl(self, *arguments: str, **_: Any) -> str:
        self.asked.append(arguments)
        return ""


class System:
    kills = 0

    def __init__(self, prefect: OnKubernetes) -> None:
        self.prefect = prefect


def job(name: str, **status: int) -> Manifest:
    return {"metadata": {"name": name}, "status": status}


def pod(name: str, phase: str) -> Manifest:
    return {"metadata": {"name": name}, "status": {"phase": phase}}


@pytest.fixture
def prefect(tmp_path: Path) -> OnKubernetes:
    return OnKubernetes(Settings(_env_file=None, home=tmp_path), 1, {})


def test_jobs_and_pods_that_have_not_ended_are_left_over(prefect):
    prefect.cluster = Api(
        jobs=[job("b", active=1), job("done", succeeded=1), job("dead", failed=1), job("a")],
        pods=[pod("waits", "Pending"), pod("works", "Running"), pod("done", "Succeeded"), pod("dead", "Failed")],
    )
    assert [line.split()[:2] for line in prefect.left_over()] == [["Job", "a"], ["Job", "b"], ["pod", "waits"], ["pod", "works"]]


def test_a_job_is_deleted_only_while_it_is_at_work(prefect):
    prefect.cluster = Api(jobs=[job("done", succeeded=1), job("works", active=1)])
    assert cluster_faults.delete_a_job(System(prefect), random.Random(1)) == "Job works deleted"
    assert prefect.cluster.asked == [("-n", "starsearch", "delete", "Job", "works", "--wait=false", "--ignore-not-found")]
    prefect.cluster = Api(jobs=[job("done", succeeded=1)])
    assert cluster_faults.delete_a_job(System(prefect), random.Random(1)) == "no Job to delete"
    assert not prefect.cluster.asked


def test_an_api_server_that_is_not_ours_is_left_alone(prefect):
    prefect.cluster = Api()
    prefect.cluster.run = None
    assert "left out" in cluster_faults.kill_the_api_server(System(prefect), random.Random(1))


def test_the_clusters_faults_come_beside_the_others_and_only_there():
    both = FAULTS | cluster_faults.FAULTS
    assert {fault for _, fault, _ in schedule(7, 3_600, faults=both)} == set(both)
    assert not {fault for _, fault, _ in schedule(7, 3_600)} & set(cluster_faults.FAULTS)


def test_the_reaper_looks_for_jobs_as_its_own_service_account(prefect):
    told = prefect._variables("reap/often")
    assert told["env"]["KUBECONFIG"].endswith("reaper.kubeconfig")
    assert told["command"].endswith("-m chaos.sooner reap/often")
    assert "KUBECONFIG" not in prefect._variables("digest/shard")["env"]


def test_what_is_left_over_fails_the_proof(prefect):
    prefect.cluster = Api(jobs=[job("forgotten", active=1)])
    process = SimpleNamespace(pid=1)
    system = SimpleNamespace(github=process, liar=process, engines={}, settings=prefect.settings, prefect=prefect)
    assert list(_orphans(system)) == ["Job forgotten has not ended, and nothing is at work for it"]
