"""The manifests of k8s/ and the Jobs that the work pools' templates make: what a server would refuse, and what it would not."""

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import uvicorn
import yaml
from prefect.settings import get_current_settings

from deployments.one_machine import SERVER_SETTINGS
from starsearch.web import api, pages
from starsearch.web.app import build_app
from starsearch.web.metrics import Metrics
from starsearch.web.serve import access_for
from tasks import quiet
from tests.k8s.alerts import faults
from tests.k8s.manifests import K8S, Manifest, lint, pod_of, problems, read, rendered

ROOT = K8S.parent
OVERLAYS = (
    ("base",),
    ("overlays/local",),
    ("overlays/aks",),
    ("base", "overlays/ingress"),
    ("overlays/aks", "overlays/ingress"),
    ("overlays/local", "overlays/local/ollama"),
)

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here to render the manifests with")


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids="+".join)
def test_everything_that_is_applied_together_fits_together(overlay):
    manifests = read(rendered(*overlay))
    assert len(manifests) > 30
    assert problems(manifests) == []


@pytest.mark.parametrize("path", sorted(K8S.rglob("*.yaml")), ids=lambda path: str(path.relative_to(K8S)))
def test_every_file_is_tidy_and_holds_one_object(path):
    text = path.read_text()
    assert lint(text) == []
    assert len(read(text)) == 1


@pytest.mark.parametrize("folder", sorted({path.parent for path in K8S.rglob("*.yaml")}), ids=lambda path: str(path.relative_to(K8S)))
def test_every_file_is_listed_by_its_folder(folder):
    listed = (folder / "kustomization.yaml").read_text()
    for path in folder.glob("*.*"):
        assert path.name in {"kustomization.yaml", "README.md"} or path.name in listed, path


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids="+".join)
def test_only_the_prefetch_job_sees_the_hugging_face_token(overlay):
    holders = [each["metadata"]["name"] for each in read(rendered(*overlay)) if "hf-token" in json.dumps(each)]
    assert holders == ([] if "overlays/local" in overlay else ["model-prefetch"])


@needs_kubectl
def test_the_service_of_the_article_is_there_as_it_was():
    service = next(each for each in read(rendered("base")) if each["metadata"]["name"] == "vllm-service")
    assert (service["metadata"]["namespace"], service["spec"]["type"]) == ("vllm-ns", "ClusterIP")
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(80, "http")]
    assert container(vllm())["ports"] == [{"name": "http", "containerPort": 8000}]
    assert not any("enforce-eager" in argument for argument in container(vllm())["args"])


def vllm() -> Manifest:
    return yaml.safe_load((K8S / "base/vllm/daemonset.yaml").read_text())


def container(daemon_set: Manifest) -> Manifest:
    return daemon_set["spec"]["template"]["spec"]["containers"][0]


# Fifteen ways in which the vLLM stack was broken (each was tried on a real API server, which let some of them pass)


def _typo(stack):
    container(stack)["livenesProbe"] = container(stack).pop("livenessProbe")


def _number_as_text(stack):
    container(stack)["livenessProbe"]["periodSeconds"] = "20"


def _no_selector(stack):
    del stack["spec"]["selector"]


def _other_labels(stack):
    stack["spec"]["template"]["metadata"]["labels"] = {"app.kubernetes.io/name": "vlm"}


def _no_such_effect(stack):
    stack["spec"]["template"]["spec"]["tolerations"][0]["effect"] = "NoSchedul"


def _text_as_number(stack):
    container(stack)["env"].append({"name": "VLLM_LOGGING_LEVEL", "value": 1})


def _same_port_twice(stack):
    container(stack)["ports"].append({"name": "http", "containerPort": 9000})


def _more_gpus_than_allowed(stack):
    container(stack)["resources"]["requests"]["nvidia.com/gpu"] = "2"


def _mount_of_nothing(stack):
    container(stack)["volumeMounts"].append({"name": "weights", "mountPath": "/weights"})


def _latest(stack):
    container(stack)["image"] = "vllm/vllm-openai:latest"


def _privileged(stack):
    container(stack)["securityContext"] |= {"privileged": True, "allowPrivilegeEscalation": True}


def _root(stack):
    stack["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] = False


def _removed_api(stack):
    stack["apiVersion"] = "extensions/v1beta1"


def _no_such_unit(stack):
    container(stack)["resources"]["limits"]["memory"] = "24GiB"


def _probe_of_no_port(stack):
    container(stack)["readinessProbe"]["httpGet"]["port"] = "web"


def _without_key(stack):
    del container(stack)["env"][0]


def _key_in_clear(stack):
    container(stack)["env"][0] = {"name": "VLLM_API_KEY", "value": "a-key"}


def _probe_without_key(stack):
    container(stack)["readinessProbe"]["httpGet"]["path"] = "/v1/models"


def _killed_while_draining(stack):
    stack["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 30


MUTANTS: list[Callable[[Manifest], Any]] = [
    _typo, _number_as_text, _no_selector, _other_labels, _no_such_effect, _text_as_number, _same_port_twice, _more_gpus_than_allowed,
    _mount_of_nothing, _latest, _privileged, _root, _removed_api, _no_such_unit, _probe_of_no_port, _without_key, _key_in_clear,
    _probe_without_key, _killed_while_draining,
]  # fmt: skip


@needs_kubectl
@pytest.mark.parametrize("mutate", MUTANTS, ids=lambda mutate: mutate.__name__.strip("_"))
def test_a_broken_engine_is_found(mutate):
    others = [each for each in read(rendered("base")) if each["kind"] != "DaemonSet" and each["kind"] != "Service"]
    stack = vllm()
    assert problems([stack, *others]) == []
    mutate(stack)
    assert problems([stack, *others])


@needs_kubectl
@pytest.mark.parametrize("field", ["selector", "targetPort"])
def test_a_service_that_leads_nowhere_is_found(field):
    manifests = copy.deepcopy(read(rendered("base")))
    service = next(each for each in manifests if each["metadata"]["name"] == "vllm-service")
    if field == "selector":
        service["spec"]["selector"] = {"app": "vllm"}
    else:
        service["spec"]["ports"][0]["targetPort"] = 8080
    assert any("vllm-service" in problem for problem in problems(manifests))


@needs_kubectl
@pytest.mark.parametrize("image", ["ghcr.io/cloudnative-pg/postgresql:18-standard-trixie", "ghcr.io/cloudnative-pg/postgresql:18", ""])
def test_a_database_whose_image_moves_is_found(image):
    manifests = copy.deepcopy(read(rendered("base")))
    databases = [each for each in manifests if each["kind"] == "Cluster"]
    assert len(databases) == 2
    for database in databases:
        database["spec"]["imageName"] = image
    assert sum("not pinned to a minor version" in problem for problem in problems(manifests)) == 2


@needs_kubectl
@pytest.mark.parametrize(("revision", "found"), [("0" * 40, False), ("main", False), ("v1.0", True), ("0123abc", True), ("", True)])
def test_a_models_revision_is_main_or_a_commit(revision, found):
    manifests = copy.deepcopy(read(rendered("base")))
    prefetch = next(each for each in manifests if each["kind"] == "Job" and each["metadata"]["name"] == "model-prefetch")
    [variable] = [each for each in container(prefetch)["env"] if each["name"] == "REVISION"]
    assert variable["value"] == "main"
    variable["value"] = revision
    assert bool(problems(manifests)) == found


def _every_port(policy):
    del policy["spec"]["ingress"][0]["ports"]


def _every_pod(policy):
    policy["spec"]["podSelector"] = {}


def _other_port(policy):
    policy["spec"]["ingress"][0]["ports"] = [{"port": "grpc"}]


def _other_pods(policy):
    policy["spec"]["podSelector"] = {"matchLabels": {"app.kubernetes.io/name": "prefect"}}


def _without_prometheus(policy):
    del policy["spec"]["ingress"][0]["from"][0]


@needs_kubectl
@pytest.mark.parametrize(
    "mutate", [_every_port, _every_pod, _other_port, _other_pods, _without_prometheus], ids=lambda mutate: mutate.__name__
)
def test_a_policy_that_is_too_wide_or_keeps_prometheus_out_is_found(mutate):
    manifests = copy.deepcopy(read(rendered("base")))
    mutate(next(each for each in manifests if each["metadata"]["name"] == "search-callers"))
    assert problems(manifests)


INSIDE = {"/healthz", "/readyz", "/metrics"}  # no key is asked for there


def test_the_ingress_offers_what_serve_asks_a_key_for_and_nothing_else():
    access = access_for("0.0.0.0", anyone=False, requests_per_minute=1)
    assert access.keys_required
    app = build_app(SimpleNamespace(metrics=Metrics(), pool=None), access)._app
    [rule] = read((K8S / "overlays/ingress/ingress.yaml").read_text())[0]["spec"]["rules"]
    offered = [(path["path"], path["pathType"]) for path in rule["http"]["paths"]]
    asked = {route.path for route in (*app.routes, *api.router.routes, *pages.router.routes) if hasattr(route, "path")}
    assert {"/", "/mcp", "/static", "/v1/search", "/ask"} | INSIDE <= asked
    assert {path for path in asked if not any(_leads(*each, path) for each in offered)} == INSIDE


def _leads(offered: str, kind: str, path: str) -> bool:
    return path == offered or (kind == "Prefix" and path.startswith(f"{offered}/"))


@needs_kubectl
@pytest.mark.parametrize("components", [(), ("overlays/ingress",)], ids=["alone", "ingress"])
def test_who_asks_is_told_by_the_ingress_only_where_there_is_one(components, monkeypatch):
    search = next(
        each for each in read(rendered("base", *components)) if each["kind"] == "Deployment" and each["metadata"]["name"] == "search"
    )
    for variable in search["spec"]["template"]["spec"]["containers"][0]["env"]:
        monkeypatch.setenv(variable["name"], variable.get("value", "secret"))
    assert ("*" in uvicorn.Config("app").forwarded_allow_ips) == bool(components)


def _login_of_its_own(ingress):
    ingress["metadata"]["annotations"]["nginx.ingress.kubernetes.io/auth-type"] = "basic"


def _without_tls(ingress):
    ingress["spec"]["tls"][0]["hosts"] = ["example.com"]


def _other_namespace(ingress):
    ingress["metadata"]["namespace"] = "vllm-ns"


def _no_such_port(ingress):
    ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["port"] = {"number": 8080}


def _what_lets_nobody_in(ingress):
    for path in ingress["spec"]["rules"][0]["http"]["paths"]:
        path["backend"]["service"] = {"name": "prefect", "port": {"name": "http"}}


@needs_kubectl
@pytest.mark.parametrize(
    "mutate",
    [_login_of_its_own, _without_tls, _other_namespace, _no_such_port, _what_lets_nobody_in],
    ids=lambda mutate: mutate.__name__.strip("_"),
)
def test_an_ingress_that_leads_nowhere_or_keeps_keys_out_is_found(mutate):
    manifests = copy.deepcopy(read(rendered("base", "overlays/ingress")))
    mutate(next(each for each in manifests if each["kind"] == "Ingress"))
    assert any("Ingress/search" in problem for problem in problems(manifests))


@needs_kubectl
def test_an_ingress_to_a_search_that_asks_nobody_for_a_key_is_found():
    manifests = copy.deepcopy(read(rendered("base", "overlays/ingress")))
    search = next(each for each in manifests if each["kind"] == "Deployment" and each["metadata"]["name"] == "search")
    search["spec"]["template"]["spec"]["containers"][0]["command"].append("--anyone")
    assert any("asks nobody for a key" in problem for problem in problems(manifests))


@needs_kubectl
@pytest.mark.parametrize("overlay", ["overlays/local", "overlays/aks"])
def test_whoever_calls_an_engine_has_its_key(overlay):
    """Search by its manifest; the jobs by the secret that the README makes."""
    keys = {"STARSEARCH_LLM_API_KEY", "STARSEARCH_EMBEDDING_API_KEY"}
    search = next(each for each in read(rendered(overlay)) if each["kind"] == "Deployment" and each["metadata"]["name"] == "search")
    given = [each for each in search["spec"]["template"]["spec"]["containers"][0]["env"] if each["name"] in keys]
    assert [each["valueFrom"]["secretKeyRef"] for each in given] == [{"name": "vllm-api-key", "key": "key"}] * 2
    readme = (K8S / overlay / "README.md").read_text()
    [made] = re.findall(r"create secret generic pipeline-secrets((?:.*\\\n)*.*)", readme)
    assert all(f'--from-literal={key}="$key"' in made for key in keys)


@needs_kubectl
@pytest.mark.parametrize(("overlay", "owners"), [("overlays/local", "starsearch-database"), ("overlays/aks", "database-app")])
def test_only_the_job_that_migrates_has_the_owners_address(overlay, owners):
    addresses = {}
    for each in read(rendered(overlay)):
        for container in ((pod_of(each) or {}).get("spec") or {}).get("containers", ()):
            for variable in container.get("env", ()):
                if variable["name"] == "STARSEARCH_DATABASE_URL":
                    addresses[each["metadata"]["name"]] = variable["valueFrom"]["secretKeyRef"]
    reader = {"name": "starsearch-database", "key": "reader-url"}
    assert addresses == {"search": reader, "migrate": {"name": owners, "key": "uri" if owners == "database-app" else "owner-url"}}
    readme = (K8S / overlay / "README.md").read_text()
    for secret, role in (("pipeline-secrets", "writer"), ("reprocess-secrets", "owner")):
        [made] = re.findall(rf"create secret generic {secret}((?:.*\\\n)*.*)", readme)
        assert f'STARSEARCH_DATABASE_URL="postgresql://starsearch_{role}:' in made
    assert 'reader-url="postgresql://starsearch_reader:' in readme


@needs_kubectl
def test_with_ollama_nothing_stands_in_for_it_and_jobs_get_through_to_it():
    manifests = read(rendered("overlays/local", "overlays/local/ollama"))
    assert not any("vllm" in each["metadata"]["name"] for each in manifests if each["kind"] in {"DaemonSet", "Service"})
    settings = next(each["data"] for each in manifests if each["metadata"]["name"] == "pipeline-settings")
    policy = next(each for each in manifests if each["metadata"]["name"] == "out")
    assert {"port": urlsplit(settings["STARSEARCH_LLM_BASE_URL"]).port} in [
        port for rule in policy["spec"]["egress"] for port in rule.get("ports", ())
    ]
    assert settings["STARSEARCH_EMBEDDING_MODEL"] == "minilm-l6-v2"


def test_a_key_that_is_there_twice_is_found():
    text = (K8S / "base/vllm/daemonset.yaml").read_text()
    assert lint(text.replace("  minReadySeconds: 10\n", "  minReadySeconds: 10\n  minReadySeconds: 20\n"))


def test_every_metric_of_an_alert_or_a_plot_exists():
    """Ours by name in the code; vLLM's were read off a live server, the last is in its documentation (usage/metrics)."""
    read_off = {
        "num_requests_running", "num_requests_waiting", "admission_rejections_total", "prompt_tokens_total", "generation_tokens_total",
        "kv_cache_usage_perc", "num_preemptions_total", "time_to_first_token_seconds_bucket",
    }  # fmt: skip
    text = "".join((K8S / "base/monitoring" / name).read_text() for name in ("alerts.yaml", "dashboard.json"))
    sources = "".join(path.read_text() for path in (ROOT / "starsearch").rglob("*.py"))
    used = set(re.findall(r"\bstarsearch_\w+", text))
    assert {name for name in used if f'"{name.removesuffix("_bucket")}"' not in sources} == set()
    assert set(re.findall(r"vllm:(\w+)", text)) == read_off


def test_what_shows_that_an_engine_is_full_is_alerted_and_plotted():
    """Queue, cache, preemptions, time to first token; one that refuses or is stuck needs no plot."""
    for name in ("alerts.yaml", "dashboard.json"):
        text = (K8S / "base/monitoring" / name).read_text()
        shown = {"num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total", "time_to_first_token_seconds_bucket"}
        assert {each for each in shown if f"vllm:{each}" not in text} == set(), name


@pytest.mark.parametrize(
    "expression",
    [
        "max(starsearch_backlog_items) > 20000 and delta(starsearch_backlog_items[1h]) > 0",  # one side has labels, the other has none
        "sum by (pod) (vllm:num_requests_running) > 0 and sum(rate(vllm:generation_tokens_total[5m])) == 0",
        "starsearch_backlog_items > 0 unless starsearch_digests_per_hour > 0",  # labels of whatever scraped them
        "increase(starsearch_dead_letters[6h]) > 0",  # a gauge
    ],
)
def test_an_alert_that_would_never_fire_is_found(expression):
    assert len(list(faults(expression))) == 1


def test_the_prefect_server_of_a_cluster_does_what_that_of_one_machine_does():
    """An unknown name would be passed over in silence."""
    [server] = read((K8S / "base/prefect-server/deployment.yaml").read_text())
    [container] = server["spec"]["template"]["spec"]["containers"]
    there = {variable["name"]: variable.get("value") for variable in container["env"]}
    both = ("PREFECT_SERVER_SERVICES_", "PREFECT_SERVER_CONCURRENCY_")
    shared = {name: value for name, value in SERVER_SETTINGS.items() if name.startswith(both)}
    assert {name: there.get(name) for name in shared} == shared
    assert shared.keys() <= get_current_settings().to_environment_variables(exclude_unset=False).keys()


DEPLOYMENTS = {
    f"{deployment['entrypoint'].rsplit('.', 1)[1]}/{deployment['name']}": deployment
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
}


async def job_of(deployment: str) -> Manifest:
    """As the worker makes it for a run: by its pool's template and its own job variables."""
    from prefect.client.schemas.objects import FlowRun
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_HOME, temporary_settings
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    pool = DEPLOYMENTS[deployment]["work_pool"]
    template = json.loads((ROOT / "deployments" / "work_pools" / f"{pool['name']}.json").read_text())
    variables = pool.get("job_variables", {})
    assert variables.keys() <= template["variables"]["properties"].keys()  # another name would be passed over in silence
    workers = {PREFECT_API_URL: "http://prefect.starsearch:4200/api", PREFECT_API_AUTH_STRING: "admin:canary", PREFECT_HOME: Path("/w")}
    with temporary_settings(workers):
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, variables)
        configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="calm-otter"), worker_name="worker")
    job: Manifest = configuration.job_manifest
    job["metadata"]["name"] = "calm-otter"  # what the server would make of generateName
    return job


@needs_kubectl
@pytest.mark.parametrize("deployment", DEPLOYMENTS)
async def test_the_jobs_of_a_deployment_are_valid_and_keep_the_workers_secrets_out(deployment):
    job = await job_of(deployment)
    around = [each for each in read(rendered("base")) if each["kind"] in {"PriorityClass", "ServiceAccount", "ConfigMap"}]
    assert problems([job, *around]) == []
    assert "canary" not in json.dumps(job)
    environment = {each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environment["PREFECT_API_URL"] == "http://prefect.starsearch:4200/api"
    assert environment["PREFECT_HOME"] == "/data/prefect"
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == quiet.DEFAULTS["PREFECT_LOGGING_EXTRA_LOGGERS"]  # read before a flow's module is


async def test_only_the_reaper_may_talk_to_kubernetes_and_only_reprocess_has_the_owners_address():
    pods = {name: (await job_of(name))["spec"]["template"]["spec"] for name in DEPLOYMENTS}
    accounts = {name: (pod["serviceAccountName"], pod["automountServiceAccountToken"]) for name, pod in pods.items()}
    assert accounts == dict.fromkeys(DEPLOYMENTS, ("pipeline", False)) | {"reap/often": ("reaper", True)}
    secrets = {
        name: [each["secretRef"]["name"] for each in pod["containers"][0]["envFrom"] if "secretRef" in each] for name, pod in pods.items()
    }
    assert secrets == {name: ["pipeline-secrets"] for name in DEPLOYMENTS} | {"reprocess/manual": ["reprocess-secrets"]}
