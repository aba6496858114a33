"""A cluster that is given to the tests: only by a variable of its own, only an empty one, and as empty in the end."""

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.k8s import cluster as kubernetes
from tests.k8s.cluster import GIVEN, Cluster, ClusterInUse, control_plane, missing

NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "starsearch"}}
ROLE = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "worker", "namespace": "starsearch"}}
Answers = Callable[..., Path]


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """One that tells what is in the cluster, by kind, and writes down what it was asked to do; its path."""

    def answers(**there: str) -> Path:
        (tmp_path / "bin").mkdir()
        asked = tmp_path / "asked"
        cases = "".join(f'*" get {kind} "*) echo "{found}" ;;\n' for kind, found in there.items())
        script = f'#!/bin/sh\necho "$*" >>{asked}\ncase "$*" in\n{cases}*" delete "*) cat >>{asked} ;;\nesac\n'
        (tmp_path / "bin" / "kubectl").write_text(script)
        (tmp_path / "bin" / "kubectl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        monkeypatch.setenv(GIVEN, str(tmp_path / "kubeconfig"))
        return asked

    return answers


def test_an_empty_cluster_that_is_given_is_used_and_none_is_started(kubectl, tmp_path, monkeypatch):
    monkeypatch.setattr(kubernetes, "build", lambda: pytest.fail("a control plane was built"))
    asked = kubectl(namespaces="default kube-system kube-public kube-node-lease")
    with control_plane(tmp_path) as cluster:
        assert cluster.run is None
    assert f"--kubeconfig={tmp_path / 'kubeconfig'} config view --minify" in asked.read_text()  # one context of it, the current one


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"nodes": "node/gpu-pool-1"}, "node/gpu-pool-1"),
        ({"daemonsets": "daemonset.apps/kube-proxy"}, "daemonset.apps/kube-proxy"),  # it would run on this machine
        ({"namespaces": "default starsearch"}, "a namespace starsearch: somebody works there"),
    ],
)
def test_a_cluster_in_which_somebody_works_is_refused_before_anything_is_changed(kubectl, tmp_path, there, said):
    asked = kubectl(**there)
    with pytest.raises(ClusterInUse, match=said), control_plane(tmp_path):
        pass
    assert {line.split()[1] for line in asked.read_text().splitlines()} == {"config", "get"}


def test_the_kubeconfig_of_a_person_is_never_used(kubectl, tmp_path, monkeypatch):
    asked = kubectl()
    monkeypatch.delenv(GIVEN)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    own = Cluster(tmp_path / "own", tmp_path)
    monkeypatch.setattr(kubernetes, "_started", lambda _: nullcontext(own))
    with control_plane(tmp_path) as cluster:
        assert cluster is own
    assert not asked.exists()


def test_what_was_applied_is_removed_with_its_namespaces(kubectl, tmp_path):
    asked = kubectl(namespaces="default")
    cluster = Cluster(tmp_path / "kubeconfig", None)
    cluster.apply([NAMESPACE, ROLE])
    cluster.remove_applied()
    deleted = asked.read_text().split(" delete ")[1]
    assert "kind: Namespace" in deleted
    assert "kind: Role" not in deleted  # it goes with its namespace


def test_what_needs_the_control_planes_own_files_is_skipped_and_says_why(tmp_path):
    cluster = Cluster(tmp_path / "kubeconfig", None)
    for use in (cluster.stop_api_server, lambda: cluster.audit("somebody")):
        with pytest.raises(pytest.skip.Exception, match="its server is not ours to stop, its audit log not here"):
            use()


def test_a_given_cluster_needs_no_tools_but_the_node(kubectl, tmp_path, monkeypatch):
    kubectl()
    monkeypatch.setattr(kubernetes, "TOOLS", tmp_path)
    (tmp_path / "process_node.py").touch()
    assert missing() is None
    monkeypatch.delenv(GIVEN)
    assert missing() == "no ../shared/tools/kubernetes/build.sh beside this checkout"
