"""What breaks beside all else where flow runs are Jobs: Kubernetes loses Jobs, pods, or its API server for a while."""

import random
import signal
import time

from chaos.faults import Fault
from chaos.kubernetes import OnKubernetes
from chaos.system import System
from tests.k8s.cluster import GIVEN
from tests.k8s.objects import NAMESPACE

GONE_SECONDS = 10.0


def delete_a_job(system: System, chance: random.Random) -> str:
    """With its pod, as by somebody who cleans up."""
    return _delete(system, chance, "Job", [job["metadata"]["name"] for job in _orchestration(system).jobs()])


def evict_a_pod(system: System, chance: random.Random) -> str:
    """As when a node is drained: its Job starts another, in which the same flow run begins again."""
    pods = _orchestration(system).cluster.get("pods", NAMESPACE, "--field-selector", "status.phase=Running")
    return _delete(system, chance, "pod", sorted(pod["metadata"]["name"] for pod in pods))


def _delete(system: System, chance: random.Random, kind: str, names: list[str]) -> str:
    if not names:
        return f"no {kind} to delete"
    name = chance.choice(names)
    _orchestration(system).cluster.kubectl("-n", NAMESPACE, "delete", kind, name, "--wait=false", "--ignore-not-found")
    system.kills += 1
    return f"{kind} {name} deleted"


def kill_the_api_server(system: System, _: random.Random) -> str:
    """Told to end, it would wait a minute for those who watch it."""
    cluster = _orchestration(system).cluster
    if cluster.run is None:
        return f"API server killed: left out, because it is the one of {GIVEN}"
    start_again = cluster.stop_api_server(signal.SIGKILL)
    system.kills += 1
    time.sleep(GONE_SECONDS)
    start_again()
    return f"kill -9 the API server of Kubernetes, gone for {GONE_SECONDS:.0f} s"


def _orchestration(system: System) -> OnKubernetes:
    assert isinstance(system.prefect, OnKubernetes)
    return system.prefect


FAULTS: dict[Fault, int] = {delete_a_job: 3, evict_a_pod: 2, kill_the_api_server: 2}
