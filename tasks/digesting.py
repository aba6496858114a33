"""Digest what is due: in this process, or by shards that are deployment runs of their own (STARSEARCH_DISPATCH)."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect import get_client, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId, LogFilterLevel
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run

from starsearch.dispatching import Cut, Prospect, Starter, digest_by_shards
from starsearch.errors import PreconditionMissing
from starsearch.logs import about, write_logs
from starsearch.models import Counts
from starsearch.pipeline import Allowance, Run, digest, make_due, recorded_run
from starsearch.serving import open_live
from starsearch.settings import Settings, read_settings
from starsearch.storage import Store, open_store
from starsearch.store.leases import BACKFILL, LIVE
from starsearch.store.presence import present
from starsearch.store.shards import Shard, at_work, shard_counts
from starsearch.store.versions import active_version
from tasks.artifacts import counts_table, progress_artifact
from tasks.retries import may_pass

SHARD = "digest/shard"
POD_PENDING = "InfrastructurePending"  # the state of a run whose pod is there and does not run yet
MADE_WITHIN = timedelta(minutes=3)  # longer than a worker tries to make a Job; one that ended meanwhile leaves a run that no other takes
LIVE_SECONDS = 2_700.0  # an hourly run leaves the rest to the next one

log = logging.getLogger(__name__)


async def digest_due(*, backfill: bool = False) -> Counts:
    """Summarize and embed what changed; with `backfill` also the history that was asked for, however long it takes."""
    if read_settings().dispatch == "local":
        return await digest_here()
    return await dispatch_shards(BACKFILL, None) if backfill else await dispatch_shards(LIVE, LIVE_SECONDS)


@task(name="digest", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def digest_here() -> Counts:
    """Everything due, sharing it by leases with whoever else digests."""
    async with _recorded() as (settings, store, run):
        await _digest(settings, store, run)
    return run.counts


@task(name="digest-shard", cache_policy=NO_CACHE)
async def digest_shard(shard: int | None, items: int) -> Counts:
    """Up to so many of the items that are due now. Not tried again here: whoever dispatched the shard does that.

    All of a shard is this one task, because each costs the server 20 ms: it is prepared, known as at work, and reports itself.
    """
    with about(shard=shard):
        async with _recorded() as (settings, store, run), present(store.dsn, UUID(flow_run.id)):
            if shard is None:
                await _digest(settings, store, run, Allowance(items))
            else:
                async with at_work(store.pool, shard, UUID(flow_run.id), run.id):
                    await _digest(settings, store, run, Allowance(items))
        await counts_table("digest-counts", run.counts, {})
        return run.counts


@asynccontextmanager
async def _recorded() -> AsyncIterator[tuple[Settings, Store, Run]]:
    settings = read_settings()
    write_logs(settings.log, settings.log_level)
    async with (
        open_store(settings) as store,
        progress_artifact("digest-shard", "items digested") as progress,
        recorded_run(store, "digest", progress) as run,
    ):
        yield settings, store, run


async def _digest(settings: Settings, store: Store, run: Run, allowance: Allowance | None = None) -> None:
    await store.brakes.check(run.id)  # opening asks the engines for something, too
    async with open_live(settings, store) as live:
        await digest(
            store,
            live[0],
            run,
            beside=live[1:],
            workers=settings.workers,
            concurrency=settings.concurrency,
            allowance=allowance,
        )


@task(name="dispatch", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def dispatch_shards(priority: int, seconds: float | None) -> Counts:
    """Start shards until nothing of that priority is due; returns what they did. Cancelled with it, they stop too: they are subflows.

    Tried again, it goes on with the shards that it started: they are in the database.
    """
    settings, parent = read_settings(), UUID(flow_run.id)
    async with (
        open_store(settings) as store,
        get_client() as client,
        progress_artifact("digest-shards", "items digested by shards") as progress,
    ):
        await _check_deployment(client)
        version = await _version(settings, store)
        await make_due(store)
        cut = Cut(settings.shard_size, settings.max_shards, priority)
        await digest_by_shards(store, _starter(client), parent, version, cut, seconds=seconds, progress=progress)
        return await shard_counts(store.pool, parent)


async def _version(settings: Settings, store: Store) -> int:
    active = await active_version(store.pool)
    if active is None:  # a new database: the engines say what its version is
        async with open_live(settings, store) as live:
            active = live[0].version
    return active.id


async def _check_deployment(client: PrefectClient) -> None:
    try:
        deployment = await client.read_deployment_by_name(SHARD)
    except ObjectNotFound as error:
        raise PreconditionMissing(f"{SHARD} is not registered on the Prefect server: make deploy, or STARSEARCH_DISPATCH=local") from error
    if not deployment.work_pool_name:
        raise PreconditionMissing(
            f"the work pool of {SHARD} is gone: deployments/set_up.py (in a cluster: --kubernetes) and prefect deploy --all make it again"
        )


def _starter(client: PrefectClient) -> Starter:
    async def start(shard: Shard) -> UUID | None:
        try:
            started = await arun_deployment(
                SHARD,
                client=client,
                parameters={"items": shard.size, "shard": shard.id},
                timeout=0,
                idempotency_key=shard.key,
                flow_run_name=f"shard-{shard.number}" + (f"-attempt-{shard.attempt}" if shard.attempt > 1 else ""),
            )
        except httpx.HTTPError as error:
            log.warning("Prefect's server does not answer now, so no shard is started: %s", error or type(error).__name__)
            return None
        return started.id

    async def prospects(flow_runs: Sequence[UUID]) -> Mapping[UUID, Prospect]:
        if not flow_runs:
            return {}
        try:
            runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=list(flow_runs))))
            errors = await _errors(client, [run.id for run in runs if run.state_name == POD_PENDING])
        except httpx.HTTPError:
            return {}
        return {run.id: _prospect(run, run.state, errors.get(run.id)) for run in runs if run.state}

    return Starter(start, prospects)


def _prospect(run: FlowRun, state: State, error: str | None) -> Prospect:
    if (
        state.is_pending()
        and state.name != POD_PENDING
        and not run.infrastructure_pid
        and state.timestamp < datetime.now(UTC) - MADE_WITHIN
    ):
        return Prospect("its worker has made no Job or process of it: it was restarted, or is stuck", lost=True)
    told = f"{state.name}: {state.message}" if state.message else str(state.name)
    return Prospect(error or told, state.is_final())


async def _errors(client: PrefectClient, flow_runs: list[UUID]) -> dict[UUID, str]:
    """What the worker's observer wrote into their logs: why a pod that waits cannot start, such as an image that cannot be pulled."""
    if not flow_runs:
        return {}
    logs = await client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=flow_runs), level=LogFilterLevel(ge_=logging.ERROR)))
    return {entry.flow_run_id: entry.message for entry in logs if entry.flow_run_id}
