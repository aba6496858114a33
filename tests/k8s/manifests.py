"""Reads Kubernetes manifests as kustomize renders them, and says what is wrong with them.

The schema of the API (kubernetes-validate, strict) finds what no server would accept; the invariants below find what a server accepts and
what then does not work, or is not safe: they were made from 15 mutants of the vLLM stack, of which the schema alone finds six.
"""

import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.k8s.alerts import faults

K8S = Path(__file__).resolve().parents[2] / "k8s"
VERSIONS = ("1.33", "1.37")  # the oldest that is maintained, and the newest that the validator knows
CUSTOM_KINDS = {"Cluster", "PodMonitor", "PrometheusRule"}  # of operators; the API's own schema knows nothing of them
LINT = YamlLintConfig(
    """
extends: default
rules:
  line-length: {max: 140}
  document-start: disable
  comments: {min-spaces-from-content: 1}
  braces: {max-spaces-inside: 1}
"""
)
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
PINNED = re.compile(r".+(:(?!latest$)[\w.-]*\d[\w.-]*|@sha256:[0-9a-f]{64})")
PINNED_DATABASE = re.compile(r".+(:\d+\.\d+[\w.-]*|@sha256:[0-9a-f]{64})")  # a major version's tag moves with every minor one
REVISION = re.compile(r"main|[0-9a-f]{40}")  # of a model; another branch or tag moves as `main` does, and says otherwise
EFFECTS = {"NoSchedule", "PreferNoSchedule", "NoExecute"}
SPARE_SECONDS = 15  # beside preStop and the server's own shutdown
BUILT_IN_PRIORITIES = {"system-node-critical", "system-cluster-critical"}
PROMETHEUS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
INGRESS = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}

Manifest = dict[str, Any]


@cache
def rendered(overlay: str, *components: str) -> str:
    """The objects of a folder of k8s/, as `kubectl kustomize` renders them; with components: in an overlay of one's own."""
    with tempfile.TemporaryDirectory() as own:
        at = {folder: os.path.relpath(K8S / folder, Path(own).resolve()) for folder in (overlay, *components)}
        listed = {"resources": [at[overlay]], "components": [at[component] for component in components]}
        Path(own, "kustomization.yaml").write_text(yaml.safe_dump(listed))
        folder = own if components else str(K8S / overlay)
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(text: str) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(text) if document]


def lint(text: str) -> list[str]:
    return [f"line {problem.line}: {problem.desc}" for problem in linter.run(text, LINT)]


def problems(manifests: Sequence[Manifest]) -> list[str]:
    """Everything wrong with objects that are applied together."""
    return [f"{name(each)}: {problem}" for each in manifests for problem in (*against_schema(each), *_of(each, manifests))]


def name(manifest: Manifest) -> str:
    meta = manifest.get("metadata", {})
    return f"{manifest.get('kind')}/{meta.get('name', meta.get('generateName'))}"


def against_schema(manifest: Manifest) -> tuple[str, ...]:
    return _against_schema(json.dumps(manifest))


@cache
def _against_schema(text: str) -> tuple[str, ...]:
    """Once for each text: the objects beside a broken one are the same every time."""
    manifest, found = json.loads(text), []
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            if manifest["kind"] not in CUSTOM_KINDS:
                found.append(f"Kubernetes {version} has no {manifest.get('apiVersion')} {manifest['kind']}")
        except kubernetes_validate.ValidationError as error:
            found.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:200]}")
    return tuple(found)


def pod_of(manifest: Manifest) -> Manifest | None:
    """The pod that a workload makes."""
    template: Manifest | None = manifest.get("spec", {}).get("template") if manifest["kind"] not in CUSTOM_KINDS else None
    return template


def _of(manifest: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    if manifest["kind"] == "Service":
        yield from _service(manifest, all_of_them)
    if manifest["kind"] == "RoleBinding":
        yield from _binding(manifest, all_of_them)
    if manifest["kind"] == "NetworkPolicy":
        yield from _policy(manifest)
    if manifest["kind"] == "Ingress":
        yield from _ingress(manifest, all_of_them)
    if manifest["kind"] == "PodMonitor":
        yield from _monitor(manifest, all_of_them)
    if manifest["kind"] == "Cluster" and not PINNED_DATABASE.fullmatch(manifest["spec"].get("imageName", "")):
        yield f"image {manifest['spec'].get('imageName')!r} is not pinned to a minor version"
    if manifest["kind"] == "PrometheusRule":
        yield from (fault for group in manifest["spec"]["groups"] for rule in group["rules"] for fault in faults(rule["expr"]))
    yield from (f"{value!r} is not a quantity" for value in _quantities(manifest) if not QUANTITY.fullmatch(str(value)))
    pod = pod_of(manifest)
    if pod and "spec" in pod:
        yield from _workload(manifest, pod, all_of_them)


def _workload(manifest: Manifest, pod: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    labels, spec = pod.get("metadata", {}).get("labels", {}), pod["spec"]
    wanted = manifest["spec"].get("selector", {}).get("matchLabels", {})
    if not wanted.items() <= labels.items():
        yield f"its selector {wanted} does not match its pods' labels {labels}"
    for toleration in spec.get("tolerations", ()):
        if toleration.get("effect", "NoSchedule") not in EFFECTS:
            yield f"there is no toleration effect {toleration['effect']!r}"
    yield from _references(manifest, spec, all_of_them)
    if spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false: a Service's variables would be read as settings"
    if manifest["metadata"].get("namespace") != "kube-system" and not spec.get("securityContext", {}).get("runAsNonRoot"):
        yield "may run as root"
    claimed = [claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", ())]
    volumes = {volume["name"] for volume in spec.get("volumes", ())} | set(claimed)
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        yield from (f"{container['name']}: {problem}" for problem in _container(container, volumes, spec))
        if manifest["metadata"].get("namespace") == "vllm-ns" and container.get("ports"):
            yield from (f"{container['name']}: {problem}" for problem in _engine(container))


def _references(manifest: Manifest, spec: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    """To objects that must be there. Secrets are made by hand: the overlays' READMEs list them."""
    there = {(each["kind"], each["metadata"].get("namespace"), each["metadata"].get("name")) for each in all_of_them}
    namespace = manifest["metadata"].get("namespace")
    wanted = [("PriorityClass", None, spec.get("priorityClassName")), ("ServiceAccount", namespace, spec.get("serviceAccountName"))]
    claims = [volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec.get("volumes", ())]
    wanted += [("PersistentVolumeClaim", namespace, claim) for claim in claims]
    for container in spec["containers"]:
        wanted += [("ConfigMap", namespace, each.get("configMapRef", {}).get("name")) for each in container.get("envFrom", ())]
    for reference in wanted:
        if reference[2] and reference[2] not in BUILT_IN_PRIORITIES and reference not in there:
            yield f"needs {reference[0]} {reference[2]}, which is not there"
    if "serviceAccountName" not in spec and namespace != "kube-system":
        yield "runs as its namespace's default service account"


def _container(container: Manifest, volumes: set[str], spec: Manifest) -> Iterator[str]:
    if not PINNED.fullmatch(container.get("image", "")):
        yield f"image {container.get('image')!r} is not pinned"
    for variable in container.get("env", ()):
        if variable["name"] == "REVISION" and not REVISION.fullmatch(variable.get("value", "")):
            yield f"revision {variable.get('value')!r} is neither main nor a commit"
    security = container.get("securityContext", {})
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        yield "may gain privileges"
    if not security.get("readOnlyRootFilesystem"):
        yield "writes to its root file system"
    if security.get("capabilities", {}).get("drop") != ["ALL"]:
        yield "keeps capabilities"
    if security.get("runAsUser") == 0:
        yield "runs as root"
    ports = [port.get("name") for port in container.get("ports", ())]
    yield from (f"two ports are named {port!r}" for port in {port for port in ports if ports.count(port) > 1})
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        port = container.get(probe, {}).get("httpGet", {}).get("port")
        if isinstance(port, str) and port not in ports:
            yield f"{probe} asks port {port!r}, which it does not have"
    for mount in container.get("volumeMounts", ()):
        if mount["name"] not in volumes:
            yield f"mounts {mount['name']!r}, which is no volume"
    yield from _resources(container.get("resources", {}))
    yield from _drain(container, spec)


def _engine(container: Manifest) -> Iterator[str]:
    """It asks for the key in the secret; a probe has none, and would be refused where that is asked for."""
    wanted = "STARSEARCH_SERVED_ENGINE_KEY" if container.get("command", ())[:2] == ["starsearch", "engine"] else "VLLM_API_KEY"
    from_secrets = {each["name"] for each in container.get("env", ()) if "secretKeyRef" in each.get("valueFrom", {})}
    if wanted not in from_secrets:
        yield f"answers everybody: {wanted} comes from no secret"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if (path := container.get(probe, {}).get("httpGet", {}).get("path")) != "/health":
            yield f"{probe} asks {path}, which asks for the key"


def _resources(resources: Manifest) -> Iterator[str]:
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    if requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        yield "asks for other GPUs than its limit"
    if not {"cpu", "memory"} <= requests.keys() or "memory" not in limits:
        yield "needs requests of cpu and memory, and a limit of memory"


def _drain(container: Manifest, spec: Manifest) -> Iterator[str]:
    """Time to finish what it was asked: waiting until nobody asks any more, and then answering."""
    sleep = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    shutdown = [argument.partition("=")[2] for argument in container.get("args", ()) if argument.startswith("--shutdown-timeout=")]
    needed = int(sleep[1]) + int(*shutdown or ["0"]) + SPARE_SECONDS
    if spec.get("terminationGracePeriodSeconds", 30) < needed:
        yield f"is killed after {spec.get('terminationGracePeriodSeconds', 30)} s; draining takes {needed}"


def _service(service: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    selector, namespace = service["spec"].get("selector", {}), service["metadata"].get("namespace")
    chosen = [
        pod
        for each in all_of_them
        if (pod := pod_of(each))
        and each["metadata"].get("namespace") == namespace
        and selector.items() <= pod["metadata"]["labels"].items()
    ]
    if not selector or not chosen:
        yield f"selects no pod of ours: {selector}"
    for pod in chosen:
        ports = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}
        numbers = {port["containerPort"] for container in pod["spec"]["containers"] for port in container.get("ports", ())}
        for port in service["spec"]["ports"]:
            if port.get("targetPort", port["port"]) not in ports | numbers:
                yield f"port {port['port']} leads to {port.get('targetPort')!r}, which its pods do not have"


def _binding(binding: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    there = {(each["kind"], each["metadata"].get("name")) for each in all_of_them}
    wanted = [(binding["roleRef"]["kind"], binding["roleRef"]["name"]), *((who["kind"], who["name"]) for who in binding["subjects"])]
    yield from (f"binds {kind} {name}, which is not there" for kind, name in wanted if (kind, name) not in there)


def _policy(policy: Manifest) -> Iterator[str]:
    for rule in policy["spec"].get("ingress", ()):
        if any("namespaceSelector" in peer for peer in rule["from"]) and not (policy["spec"]["podSelector"] and rule.get("ports")):
            yield "lets another namespace reach every pod or every port"


def _ingress(ingress: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    """Whoever comes from outside has TLS, reaches pods of ours, and is asked for a key by `serve`, in the Authorization header."""
    spec, secured = ingress["spec"], {host for each in ingress["spec"].get("tls", ()) for host in each["hosts"]}
    if any(key.endswith("/auth-type") for key in ingress["metadata"].get("annotations", {})):
        yield "asks for a login in the Authorization header, which carries the keys"
    for rule in spec["rules"]:
        if rule.get("host") not in secured:
            yield f"host {rule.get('host')} has no TLS"
        for backend in {json.dumps(path["backend"]["service"]) for path in rule["http"]["paths"]}:
            yield from _backend(_namespace(ingress), json.loads(backend), all_of_them)


def _backend(namespace: str | None, backend: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    here = [each for each in all_of_them if _namespace(each) == namespace]
    services = [each["spec"] for each in here if each["kind"] == "Service" and each["metadata"]["name"] == backend["name"]]
    ports = [
        port
        for service in services
        for port in service["ports"]
        if backend["port"] in ({"name": port.get("name")}, {"number": port["port"]})
    ]
    if not ports:
        yield f"leads to {backend}, which is not there"
        return
    pods = [pod for each in here if (pod := pod_of(each)) and services[0]["selector"].items() <= pod["metadata"]["labels"].items()]
    policies = [each["spec"] for each in here if each["kind"] == "NetworkPolicy"]
    for pod in pods:
        if not _lets_in(policies, INGRESS, pod["metadata"]["labels"], {"port": ports[0].get("targetPort", ports[0]["port"])}):
            yield f"no policy lets the ingress controller reach {backend}"
        if any("--anyone" in container.get("command", ()) for container in pod["spec"]["containers"]):
            yield f"{backend['name']} asks nobody for a key"


def _lets_in(policies: Iterable[Manifest], peer: Manifest, labels: dict[str, str], port: Manifest) -> bool:
    rules = [rule for policy in policies if _selects(policy["podSelector"], labels) for rule in policy.get("ingress", ())]
    return any(peer in rule["from"] and port in rule.get("ports", [port]) for rule in rules)


def _monitor(monitor: Manifest, all_of_them: Sequence[Manifest]) -> Iterator[str]:
    """Prometheus has to get through the policies of its pods' namespace."""
    wanted, here = monitor["spec"]["selector"], [each for each in all_of_them if _namespace(each) == _namespace(monitor)]
    pods = [pod["metadata"]["labels"] for each in here if (pod := pod_of(each)) and _selects(wanted, pod["metadata"]["labels"])]
    policies = [each["spec"] for each in here if each["kind"] == "NetworkPolicy"]
    if not pods:
        yield f"selects no pod of ours: {wanted}"
    for labels, port in itertools.product(pods, [{"port": each["port"]} for each in monitor["spec"]["podMetricsEndpoints"]]):
        if not _lets_in(policies, PROMETHEUS, labels, port):
            yield f"no policy lets Prometheus reach {port} of {labels}"


def _namespace(manifest: Manifest) -> str | None:
    return manifest["metadata"].get("namespace")


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] if each["operator"] == "In" else each["key"] in labels
        for each in selector.get("matchExpressions", ())
    )


def _quantities(value: Any, *, within: bool = False) -> Iterable[Any]:
    """Everything below a `requests` or `limits`, and every size of storage."""
    if isinstance(value, dict):
        for key, below in value.items():
            if key == "sizeLimit" or (within and not isinstance(below, dict | list)):
                yield below
            else:
                yield from _quantities(below, within=key in {"requests", "limits"})
    elif isinstance(value, list):
        for each in value:
            yield from _quantities(each)
