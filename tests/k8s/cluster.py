"""A real Kubernetes API for tests: a control plane on this machine, nodes that run pods as processes, and what is applied to them.

The tools lie beside the checkout (../shared/tools/kubernetes). Instead of a control plane that is started and thrown away, the current context
of the file that STARSEARCH_TEST_KUBECONFIG names will do: never what KUBECONFIG names, which is where a person works. It must be empty, for
what it runs would come to nodes that are this machine; what is put there is removed in the end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.k8s.manifests import Manifest
from tests.processes import free_port

TOOLS = Path(__file__).resolve().parents[3] / "shared" / "tools" / "kubernetes"
CACHE = Path.home() / ".cache"
BINARIES = CACHE / "kube-1.20.2" / "bin"
LIBRARIES = ("libpopt0", "libxxhash0")  # of the rsync that the build unpacks without installing it
GIVEN = "STARSEARCH_TEST_KUBECONFIG"
SYSTEM_NAMESPACES = {"default", "kube-system", "kube-public", "kube-node-lease"}
TOKEN_SECONDS = 86_400
WAIT_SECONDS = 300.0
STARTING_SECONDS, TRIES = 90.0, 3
BEAT_SECONDS = 5.0


def missing() -> str | None:
    """Why there can be no cluster here; None: there can. A control plane can be given; what runs pods as processes is a tool all the same."""
    if not shutil.which("kubectl"):
        return "no kubectl here"
    wanted = ["process_node.py"] if os.environ.get(GIVEN) else ["build.sh", "cluster.sh", "process_node.py"]
    if absent := [name for name in wanted if not (TOOLS / name).exists()]:
        return f"no ../shared/tools/kubernetes/{absent[0]} beside this checkout"
    return None


def build() -> None:
    """The control plane's binaries, once: 4 to 6 minutes."""
    if (BINARIES / "etcd").exists():  # the last that is put there
        return
    libraries = CACHE / "kube-build-libraries"
    libraries.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "-qq", "download", *LIBRARIES], cwd=libraries, check=True, capture_output=True)
    for package in libraries.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(libraries)], check=True)
    folders = ":".join(str(folder) for folder in libraries.glob("usr/lib/*-linux-gnu"))
    subprocess.run([str(TOOLS / "build.sh")], env=os.environ | {"LD_LIBRARY_PATH": folders}, check=True, capture_output=True, timeout=1_800)


class ClusterInUse(Exception):
    """What was given is not for tests; nothing was changed there."""


class Cluster:
    """kubectl with one identity, and the files of the control plane; `run` is None where it was given, and only its API is at hand."""

    def __init__(self, kubeconfig: Path, run: Path | None) -> None:
        self.kubeconfig, self.run, self.applied = kubeconfig, run, list[Manifest]()

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, f"{' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, kind: str, namespace: str, *arguments: str) -> list[Manifest]:
        items: list[Manifest] = json.loads(self.kubectl("-n", namespace, "get", kind, "-o", "json", *arguments))["items"]
        return items

    def apply(self, manifests: Sequence[Manifest]) -> None:
        self.applied += manifests
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(manifests))

    def remove_applied(self) -> None:
        """And what came into its namespaces since; its nodes must still be there, for they end the pods."""
        kept = [each for each in self.applied if not each["metadata"].get("namespace")]
        if kept:
            self.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=yaml.safe_dump_all(kept))
            wait_for(
                lambda: not self.foreign_namespaces() & {each["metadata"]["name"] for each in kept}, every=1, what="the namespaces' end"
            )

    def foreign_namespaces(self) -> set[str]:
        """Those that Kubernetes does not make by itself."""
        return set(self.kubectl("get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}").split()) - SYSTEM_NAMESPACES

    def check_empty(self) -> None:
        """Raises ClusterInUse."""
        for kind in ("nodes", "pods", "daemonsets", "deployments"):
            if found := self.kubectl("get", kind, "-A", "-o", "name").split():
                raise ClusterInUse(
                    f"{GIVEN} names a cluster that has {found[0]}: tests register nodes that are this machine, so what is there would run here. "
                    "Give an API server with its controllers and scheduler and nothing else"
                )
        if found := sorted(self.foreign_namespaces()):
            raise ClusterInUse(
                f"{GIVEN} names a cluster with a namespace {found[0]}: somebody works there. Remove it, or give an empty one"
            )

    def as_service_account(self, namespace: str, name: str, path: Path) -> Path:
        """A kubeconfig that may do what the service account may, and no more."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": TOKEN_SECONDS}}
        path_ = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token = json.loads(self.kubectl("create", "--raw", path_, "-f", "-", stdin=json.dumps(asked)))["status"]["token"]
        config["users"][0]["user"] = {"token": token}
        config["contexts"][0]["context"]["namespace"] = namespace
        path.write_text(yaml.safe_dump(config))
        return path

    def audit(self, user: str) -> set[tuple[str, str]]:
        """(verb, resource) of everything a user asked for, discovery apart."""
        events = (json.loads(line) for line in (self.files / "log" / "audit.jsonl").read_text().splitlines())
        asked = (event for event in events if event["user"]["username"] == user and "objectRef" in event)
        return {
            (event["verb"], "/".join(filter(None, (event["objectRef"].get("resource"), event["objectRef"].get("subresource")))))
            for event in asked
        }

    @property
    def files(self) -> Path:
        """Of the control plane. Skips a test that needs them, where it was given."""
        if self.run is None:
            import pytest

            pytest.skip(f"{GIVEN} gives an API and no more: its server is not ours to stop, its audit log not here")
        return self.run

    @property
    def api_server(self) -> int:
        return int((self.files / "pid" / "apiserver").read_text())

    def stop_api_server(self, how: signal.Signals = signal.SIGTERM) -> Callable[[], None]:
        """Returns what starts it again, as it was."""
        pid = self.api_server
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        os.kill(pid, how)
        wait_for(lambda: not _alive(pid))

        def again() -> None:
            with (self.files / "log" / "apiserver-2.log").open("ab") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            (self.files / "pid" / "apiserver").write_text(str(process.pid))
            wait_for(lambda: self.kubectl("get", "--raw", "/readyz", check=False) == "ok")

        return again


@contextmanager
def control_plane(folder: Path) -> Iterator[Cluster]:
    """One that is started and thrown away, or the one that was given, as empty in the end as before."""
    with given(folder, Path(path)) if (path := os.environ.get(GIVEN)) else _started(folder) as cluster:
        yield cluster


@contextmanager
def given(folder: Path, kubeconfig: Path) -> Iterator[Cluster]:
    """Raises ClusterInUse. Whoever applies something calls remove_applied, while there are nodes."""
    one_context = folder / "given.kubeconfig"
    one_context.touch(0o600)
    one_context.write_text(Cluster(kubeconfig, None).kubectl("config", "view", "--minify", "--flatten", "--raw"))
    cluster = Cluster(one_context, None)
    cluster.check_empty()
    yield cluster


@contextmanager
def _started(folder: Path) -> Iterator[Cluster]:
    build()
    run = folder / "control-plane"
    cluster = Cluster(run / "admin.kubeconfig", run)
    for attempt in range(TRIES):
        ports = {"API_PORT": str(_three_free_ports()), "ETCD_PORT": str(_three_free_ports())}  # which another program may take before it
        environment = os.environ | ports | {"RUN": str(run), "KUBE_BIN": str(BINARIES)}
        try:
            _script("up", folder, environment)  # it gives up after half a minute; a busy machine takes longer
            try:
                wait_for(
                    lambda: cluster.kubectl("-n", "default", "get", "serviceaccount", "default", check=False), seconds=STARTING_SECONDS
                )
            except AssertionError as error:
                if attempt == TRIES - 1:
                    raise AssertionError(f"the control plane does not start: {_said(run)}") from error
                continue
            yield cluster
            return
        finally:
            _script("down", folder, environment)


def _script(what: str, folder: Path, environment: Mapping[str, str]) -> None:
    with (folder / "cluster.log").open("ab") as log, suppress(subprocess.TimeoutExpired):
        subprocess.run([str(TOOLS / "cluster.sh"), what], env=environment, check=False, stdout=log, stderr=log, timeout=STARTING_SECONDS)


def _said(run: Path) -> str:
    """The last that each of its programs wrote."""
    return "; ".join(f"{path.stem}: {(path.read_text('utf-8', 'replace').splitlines() or [''])[-1]}" for path in run.glob("log/*.log"))


def _three_free_ports() -> int:
    """The first of three in a row, as the control plane wants them."""
    while True:
        port = free_port()
        if port < 65_000 and all(_is_free(port + n) for n in range(3)):
            return port


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def node(cluster: Cluster, name: str, folder: Path, *, gpus: int = 0, labels: Sequence[str] = ()) -> Iterator[None]:
    """Runs pods as processes of this machine, with this environment's programs."""
    environment = os.environ | {
        "KUBECONFIG": str(cluster.kubeconfig),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(folder),  # for what its pods say
    }
    command = [sys.executable, str(TOOLS / "process_node.py"), "--name", name, "--gpus", str(gpus)]
    for label in labels:
        command += ["--label", label]
    with (folder / f"{name}.log").open("wb") as log, ExitStack() as stack:
        if cluster.run is None:
            stack.callback(_forget_node, cluster, name)  # when its process has ended

        def start() -> "subprocess.Popen[bytes]":
            return stack.enter_context(ended(subprocess.Popen(command, env=environment, stdout=log, stderr=log)))

        ending = threading.Event()
        living = threading.Thread(target=_live, args=(cluster, name, start, ending), daemon=True)
        living.start()
        stack.callback(living.join)
        stack.callback(ending.set)
        wait_for(lambda: name in cluster.kubectl("get", "nodes", "-o", "name"), what=f"node {name}")
        yield


def _forget_node(cluster: Cluster, name: str) -> None:
    cluster.kubectl("delete", "node", name, "--ignore-not-found")
    cluster.kubectl("-n", "kube-node-lease", "delete", "lease", name, "--ignore-not-found")


def _live(cluster: Cluster, name: str, start: "Callable[[], subprocess.Popen[bytes]]", ending: threading.Event) -> None:
    """As a kubelet does, and the tool only until the API server is gone for a moment: go on, and say that the node lives and is ready.

    The processes of its pods end with it.
    """
    process, pods = start(), set[psutil.Process]()
    while not ending.wait(BEAT_SECONDS):
        if process.poll() is not None:
            process = start()
        with suppress(psutil.NoSuchProcess):
            pods |= set(psutil.Process(process.pid).children(recursive=True))
        now = datetime.now(UTC)
        lease = {"spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": f"{now:%Y-%m-%dT%H:%M:%S.%fZ}"}}
        cluster.kubectl("-n", "kube-node-lease", "patch", "lease", name, "--type=merge", "-p", json.dumps(lease), check=False)
        ready = {"type": "Ready", "status": "True", "reason": "ProcNode", "lastHeartbeatTime": f"{now:%Y-%m-%dT%H:%M:%SZ}"}
        status = json.dumps({"status": {"conditions": [ready]}})
        cluster.kubectl("patch", "node", name, "--subresource=status", "--type=strategic", "-p", status, check=False)
    for pod in pods:
        with suppress(psutil.NoSuchProcess):
            pod.kill()


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator["subprocess.Popen[bytes]"]:
    """Ended with the block: a Prefect worker needs SIGTERM twice."""
    try:
        yield process
    finally:
        for signal_, seconds in ((15, 10), (15, 10), (9, 10)):
            if process.poll() is None:
                process.send_signal(signal_)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue


def wait_for(look: Callable[[], Any], *, seconds: float = WAIT_SECONDS, every: float = 0.2, what: str = "it") -> Any:
    """What `look` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(every)
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
