"""What dead processes leave behind: flow runs that Prefect takes for alive, leases, Kubernetes Jobs that nobody waits for."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import aiohttp
from kubernetes_asyncio import client as kubernetes
from kubernetes_asyncio import config
from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Crashed

from starsearch.errors import PreconditionMissing
from starsearch.settings import read_settings
from starsearch.storage import open_store
from starsearch.store.leases import release_dead
from starsearch.store.presence import absent, forget_old_runs
from starsearch.store.repository_leases import release_dead_sweeps
from tasks.artifacts import values_table
from tasks.retries import may_pass

# How long a run may be in a state without being at work: a Pending one waits for its Job's image, a Running one for its database.
PATIENCE = {
    StateType.PENDING: timedelta(minutes=15),
    StateType.RUNNING: timedelta(minutes=5),
    StateType.CANCELLING: timedelta(minutes=5),
}
LOOKS_APART_SECONDS = 30.0  # a run is reaped when it is not at work twice: its database may have restarted
PAGE = 200
LABEL = "prefect.io/flow-run-id"
LONGEST_REASON = 600

log = logging.getLogger(__name__)


@task(name="reap-runs", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def reap_runs() -> int:
    """End the runs that Prefect takes for alive and that are not at work, so that their deployment's place is free. Returns how many.

    A run that is at work has a session in the database (starsearch/store/presence.py); nothing that Prefect says is needed to know.
    """
    async with open_store(read_settings()) as store, get_client() as client:
        stuck = {run.id: run for run in await _overdue(client)}
        gone = await absent(store.pool, list(stuck))
        if gone:
            await asyncio.sleep(LOOKS_APART_SECONDS)
            gone = await absent(store.pool, list(gone)) & {run.id for run in await _overdue(client)}
        reasons = await _reasons() if gone else {}
        for id in gone:
            await _end(client, stuck[id], reasons.get(id))
        await forget_old_runs(store.pool)
    return len(gone)


async def _overdue(client: PrefectClient) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(is_null_=False),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(PATIENCE))),
            ),
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            break
    now = datetime.now(UTC)
    return [run for run in found if run.state and run.state.timestamp < now - PATIENCE[run.state.type]]


async def _end(client: PrefectClient, run: FlowRun, reason: str | None) -> None:
    assert run.state
    message = f"Reaped: {run.state.name} since {run.state.timestamp:%H:%M} UTC, and no process is at work on it."
    if reason:
        message += f" Kubernetes says: {reason}"
    end = Cancelled if run.state.type == StateType.CANCELLING else Crashed
    await client.set_flow_run_state(run.id, end(message=message), force=True)
    log.warning("flow run %s (%s): %s", run.name, run.id, message)


async def _reasons() -> dict[UUID, str]:
    """Why Jobs did not get to work, by flow run, as the cluster's warnings say: no quota, no image, no node, no secret.

    A run is ended without its reason where the cluster does not tell.
    """
    namespace = read_settings().kubernetes_namespace
    if namespace is None:
        return {}
    try:
        async with _cluster() as api:
            jobs = await _unfinished(kubernetes.BatchV1Api(api), namespace)
            warnings = (await kubernetes.CoreV1Api(api).list_namespaced_event(namespace, field_selector="type=Warning")).items
    except (kubernetes.ApiException, aiohttp.ClientError, TimeoutError, PreconditionMissing) as error:
        log.warning("the cluster does not say why runs did not begin: %s", error or type(error).__name__)
        return {}
    said = {UUID(job.metadata.labels[LABEL]): _said_of(job.metadata.name, warnings) for job in jobs}
    return {id: reason for id, reason in said.items() if reason}


def _said_of(job: str, warnings: Iterable[kubernetes.CoreV1Event]) -> str:
    """Of the Job and its pods, whose names begin with its own. One for each kind: the longest, for the short ones name no image."""
    told: dict[str, str] = {}
    for each in warnings:
        if each.message and f"{each.involved_object.name}-".startswith(f"{job}-"):
            told[each.reason] = max(told.get(each.reason, ""), each.message, key=len)
    return "; ".join(told.values())[:LONGEST_REASON]


@asynccontextmanager
async def _cluster() -> AsyncIterator[kubernetes.ApiClient]:
    """As the service account of the Job, or by a kubeconfig."""
    try:
        config.load_incluster_config()  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            await config.load_kube_config()
        except config.ConfigException as error:
            raise PreconditionMissing(
                "STARSEARCH_KUBERNETES_NAMESPACE is set, and there is neither a service account's token nor a kubeconfig"
            ) from error
    async with kubernetes.ApiClient() as api:
        yield api


@task(name="reap-leases", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def reap_leases() -> dict[str, int]:
    """Hand back what dead processes leased. Whoever digests or crawls does it too; this is for when nobody does."""
    async with open_store(read_settings()) as store:
        freed = {"items": await release_dead(store.pool), "repositories": await release_dead_sweeps(store.pool)}
    for what, number in freed.items():
        if number:
            log.warning("%d %s were leased by a process that is gone: free again", number, what)
    return freed


@task(name="reap-jobs", cache_policy=NO_CACHE)
async def reap_jobs() -> int:
    """Delete Jobs whose flow run has ended, or is unknown; returns how many. None where STARSEARCH_KUBERNETES_NAMESPACE is not set."""
    namespace = read_settings().kubernetes_namespace
    if namespace is None:
        return 0
    async with _cluster() as api, get_client() as client:
        batch = kubernetes.BatchV1Api(api)
        jobs = {job.metadata.name: UUID(job.metadata.labels[LABEL]) for job in await _unfinished(batch, namespace)}
        orphans = set(jobs.values()) - await _unended(client, jobs.values())
        for name, id in jobs.items():
            if id in orphans:
                log.warning("job %s: flow run %s has ended; deleted", name, id)
                await batch.delete_namespaced_job(name, namespace, propagation_policy="Foreground")
    return sum(id in orphans for id in jobs.values())


async def _unfinished(batch: kubernetes.BatchV1Api, namespace: str) -> list[kubernetes.V1Job]:
    """Jobs of flow runs that have neither succeeded nor failed, old enough that nobody is still writing them down."""
    jobs = (await batch.list_namespaced_job(namespace, label_selector=LABEL)).items
    old = datetime.now(UTC) - PATIENCE[StateType.RUNNING]
    return [job for job in jobs if not (job.status.succeeded or job.status.failed) and job.metadata.creation_timestamp < old]


async def _unended(client: PrefectClient, ids: Iterable[UUID]) -> set[UUID]:
    wanted, alive = list(set(ids)), set()
    for start in range(0, len(wanted), PAGE):
        some = wanted[start : start + PAGE]
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=some)), limit=PAGE)
        alive |= {run.id for run in runs if run.state and not run.state.is_final()}
    return alive


@task(name="report-reaped", cache_policy=NO_CACHE)
async def report_reaped(reaped: dict[str, int]) -> None:
    """A table, where there was anything to reap: a run every ten minutes would fill the server with empty ones."""
    if any(reaped.values()):
        await values_table("reaped", reaped, None)
