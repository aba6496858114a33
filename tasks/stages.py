"""The coarse stages of a run as Prefect tasks: prepare, rank, fetch, ingest, backfill, check, report; digesting is in digesting.py.

Never a task per item: one task run costs the server about 20 ms of CPU. Each opens what it needs and closes it, passes counts and
no bodies, and may simply run again: the database knows what is done. Results are not cached; a cache is not a checkpoint.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from starsearch.activation import activate
from starsearch.backfill import Limits, Request, backfill, check_price
from starsearch.backfill import price as price_of_range
from starsearch.cost import read_prices
from starsearch.crawling import crawl
from starsearch.errors import Backlog, PreconditionMissing
from starsearch.github.client import Usage
from starsearch.jsonl import read_items
from starsearch.logs import write_logs
from starsearch.models import Counts
from starsearch.pipeline import ingest, recorded_run
from starsearch.ranking import rank_by_search, rank_counts, rank_from_file
from starsearch.recall import measure_recall
from starsearch.reprocess import price, reprocess
from starsearch.sentinel import check_items
from starsearch.serving import open_version_embedding
from starsearch.settings import read_settings
from starsearch.sources import crawl_options, open_any, open_graphql
from starsearch.storage import database_address, open_store
from starsearch.store.leases import find_due
from starsearch.store.presence import present
from starsearch.store.purges import purge, unfinished
from starsearch.store.tallies import forget_old_measurements, reconcile
from starsearch.store.versions import active_version
from tasks.artifacts import counts_table, progress_artifact, values_table
from tasks.explanations import explain_price, explain_reprocess_price
from tasks.retries import may_pass, within

log = logging.getLogger(__name__)
WALK_SECONDS = 3_000.0  # within the hour, so that the next run does not meet this one
CHECK_SECONDS = 6 * 3_600.0
Crawled = tuple[Counts, dict[str, str], Usage | None]


@task(name="prepare", retries=2, retry_delay_seconds=5, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def prepare() -> None:
    """Start the database where it is ours to start, and bring its schema up to date."""
    async with open_store(read_settings()):
        pass


@asynccontextmanager
async def prepared() -> AsyncIterator[None]:
    """What every flow does first: prepare; and be known as at work until it ends, so that the reaper lets it be."""
    settings = read_settings()
    write_logs(settings.log, settings.log_level)
    await prepare()
    async with database_address(settings) as dsn, present(dsn, UUID(flow_run.id)):
        yield


@task(name="rank", retries=1, retry_delay_seconds=60, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def refresh_ranking(top: int | None, file: str | None) -> dict[str, int | float]:
    """Follow the repositories with the most stars; the list is replaced as a whole or not at all."""
    settings = read_settings()
    top = top or settings.top
    async with (
        open_store(settings) as store,
        progress_artifact("rank-walk", "repositories ranked") as progress,
        recorded_run(store, "rank", progress) as run,
        within(WALK_SECONDS),
    ):
        if file:
            refreshed = await rank_from_file(store, Path(file), run, host=settings.github_host, top=top)
        else:
            async with open_graphql(settings) as github:
                refreshed = await rank_by_search(store, github, run, host=settings.github_host, top=top)
    log.info("%s; %s", refreshed, run.github)
    counts = rank_counts(refreshed, run)
    await values_table("rank-counts", counts, run.github)
    return counts


@task(name="fetch", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def fetch(repositories: Sequence[str] | None, newest: int | None = None) -> Crawled:
    """Store what changed in the named repositories, else in those of STARSEARCH_REPOSITORIES, else in the followed list.

    Returns the counts, the repositories that were not crawled, and what GitHub charged.
    """
    settings = read_settings()
    async with (
        open_store(settings) as store,
        progress_artifact("crawl-fetch", "repositories crawled") as progress,
        recorded_run(store, "crawl", progress) as run,
        open_any(settings, newest=newest) as source,
        within(WALK_SECONDS),
    ):
        named = list(repositories or settings.repositories)
        failed = await crawl(store, source, named, run, crawl_options(settings, newest=newest))
        log.info("%s", source.usage)
    return run.counts, failed, run.github


@task(name="ingest", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def ingest_file(path: Path) -> Counts:
    """Store the items of one JSON Lines file."""
    async with open_store(read_settings()) as store, recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
    return run.counts


@task(name="check-store", retries=1, retry_delay_seconds=60, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def check_store() -> dict[str, int]:
    """Count every item and correct the kept counts, go on with purges that died, make due what was forgotten."""
    async with open_store(read_settings()) as store:
        for target in await unfinished(store.pool):
            await purge(store.pool, target)
        found = await reconcile(store.pool)
        forgotten = await find_due(store.pool)
        await forget_old_measurements(store.pool)
    if found.differences:
        log.warning("the kept counts were wrong and are corrected: %s", found.differences)
    return {"counted": found.items, "differences": len(found.differences), "forgotten": forgotten}


@task(name="measure-recall", cache_policy=NO_CACHE)
async def monitor_recall(questions: int) -> dict[str, float]:
    """How much of what is nearest search still finds. Nothing, with a warning, where the embedding engine does not answer."""
    settings = read_settings()
    async with open_store(settings) as store:
        version = await active_version(store.pool)
        if version is None:
            return {}
        try:
            async with open_version_embedding(settings, version) as engine:
                return await measure_recall(store.pool, version, engine, questions=questions)
        except PreconditionMissing as error:
            log.warning("recall was not measured: %s", error)
            return {}


@task(
    name="check-open-items",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=may_pass,
    cache_policy=NO_CACHE,
)
async def check_open_items(items: int) -> dict[str, int]:
    """Look at the next stored open items: are they still there, with the comments that we know?"""
    settings = read_settings()
    async with (
        open_store(settings) as store,
        open_graphql(settings, backfill=True) as github,
        progress_artifact("maintain-items", "open items checked") as progress,
        recorded_run(store, "maintain", progress) as run,
        within(CHECK_SECONDS),
    ):
        checks = await check_items(store, github, run, crawl_options(settings), items=items)
    log.info("%s; %s", checks, github.usage)
    await values_table("maintain-counts", vars(checks), github.usage)
    return vars(checks)


@task(name="price-version", cache_policy=NO_CACHE)
async def price_version() -> dict[str, Any]:
    """What building the version that the settings describe would cost."""
    settings = read_settings()
    async with open_store(settings) as store:
        told = vars(await price(settings, store))
    await explain_reprocess_price(told)
    return told


async def agree_to_version(limits: Limits) -> None:
    """Build only what its limits allow. Raises TooMuch."""
    if limits.items is not None or limits.usd is not None:
        told = await price_version()
        limits.check(told["items"], told["cost_usd"])


@task(name="build-version", retries=1, retry_delay_seconds=10, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def build_version() -> tuple[Counts, str]:
    """Build it beside the version that serves; returns what was done, and its name."""
    settings = read_settings()
    async with (
        open_store(settings) as store,
        progress_artifact("reprocess-items", "items digested for another index version") as progress,
        recorded_run(store, "reprocess", progress) as run,
    ):
        version = await reprocess(settings, store, run)
    return run.counts, version.short


@task(name="activate-version", cache_policy=NO_CACHE)
async def activate_version(version: str, questions: str | None, margin: float) -> dict[str, Any]:
    """Let it serve; fails with every reason where the gate objects, and then nothing changed. Not tried again: nobody's bad luck."""
    settings = read_settings()
    async with open_store(settings) as store, recorded_run(store, "activate") as run:
        path = Path(questions) if questions else None
        return (await activate(settings, store, run, name=version, questions=path, margin=margin)).as_dict()


@task(name="price", retries=1, retry_delay_seconds=60, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def price_range(request: Request) -> dict[str, Any]:
    """What reading a range of history would cost; nothing is read."""
    settings = read_settings()
    async with open_store(settings) as store, open_graphql(settings) as github, within(WALK_SECONDS):
        told = (await price_of_range(store, github, request, crawl_options(settings), read_prices(settings.prices))).as_dict()
    await values_table("backfill-price", told, github.usage)
    await explain_price(request, told)
    return told


async def agree(request: Request, limits: Limits, *, digested: bool) -> None:
    """Begin only what may begin: where that depends on the price, it is asked for first. Raises TooMuch."""
    if limits.need_price(request):
        told = await price_range(request)
        usd = told["cost_usd"] if digested else 0.0
        check_price(request, limits, items=told["items"], usd=usd, hours=told["github_hours"])


@task(name="backfill", retries=1, retry_delay_seconds=60, retry_condition_fn=may_pass, cache_policy=NO_CACHE)
async def read_range(request: Request, *, in_turns: bool) -> tuple[tuple[Counts, dict[str, str], Usage], bool]:
    """Store the items of a range of history; and whether that was all. It may take days: a backfill sits out the hour when its share of
    the points is spent.

    in_turns: where engines are behind it stops, to go on when they are not; else it fails then.
    """
    settings = read_settings()
    failed: dict[str, str] = {}
    whole = True
    async with (
        open_store(settings) as store,
        open_graphql(settings, backfill=True) as github,
        progress_artifact("backfill-fetch", "lists read and texts fetched") as progress,
        recorded_run(store, "backfill", progress) as run,
    ):
        try:
            failed = await backfill(store, github, request, run, crawl_options(settings))
        except Backlog as error:
            if not in_turns:
                raise
            log.info("digesting first: %s", error)
            whole = False
    log.info("%s", github.usage)
    return (run.counts, failed, github.usage), whole


@task(name="report", cache_policy=NO_CACHE)
async def report(key: str, parts: Sequence[Counts], failed: dict[str, str], github: Usage | None = None) -> Counts:
    """Add the stages' counts up into the run's table. A failed repository fails nothing else: it joins the next crawl."""
    total = Counts()
    for part in parts:
        total.add(part)
    await counts_table(key, total, failed, github)
    return total
