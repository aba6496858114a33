"""Crawl now: the followed list or named repositories, over GraphQL where there is a credential, else over REST."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from starsearch.collecting import rare_collections
from starsearch.cycle import GONE, Cycle
from starsearch.errors import PreconditionMissing, RateLimited, StarsearchError
from starsearch.fetching import Fetcher
from starsearch.github.batches import BATCH, Failed, Missing
from starsearch.github.client import GitHub
from starsearch.github.resolve import NAMES, resolve
from starsearch.github.rest import FIRST_REACH, RestSource
from starsearch.leftovers import fetch_leftovers
from starsearch.logs import about
from starsearch.models import RepositoryFacts
from starsearch.pipeline import Run, ingest
from starsearch.progress import Progress, no_progress
from starsearch.storage import Store
from starsearch.store.items import read_checkpoint
from starsearch.store.leases import LIVE, worker
from starsearch.store.purges import purged_names
from starsearch.store.repositories import count_followed, mark_failed, nodes_by_name, store_facts, to_sweep, unresolved
from starsearch.store.repository_leases import begin_sweep, claim_repositories, count_unswept, give_back_repositories
from starsearch.store.unfetched import Scope

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrawlOptions:
    """since: where a first crawl starts; None: a day back. newest: only so many of each repository, over REST."""

    since: datetime | None = None
    newest: int | None = None
    host: str = "github.com"
    comments: int = 0
    batch: int = BATCH


DEFAULTS = CrawlOptions()


async def crawl(
    store: Store,
    source: GitHub | RestSource,
    repositories: Sequence[str],
    run: Run,
    options: CrawlOptions = DEFAULTS,
) -> dict[str, str]:
    """Store what changed in the named repositories, or (none named) in the followed list, and what was left of earlier crawls.

    Returns the ones that were not crawled, with the reason; they join the next crawl. Raises RateLimited, SourceUnavailable or
    Braked after storing what had come.
    """
    purged = await purged_names(store.pool, options.host, repositories)
    if purged:
        left = [name for name in repositories if name not in purged]
        refused = dict.fromkeys(purged, "was purged, and is not taken back")
        return refused | (await crawl(store, source, left, run, options) if left else {})
    if isinstance(source, RestSource):
        return await _crawl_rest(store, source, repositories, run, options)
    if not repositories and not await count_followed(store.pool, options.host):
        raise PreconditionMissing("no repository is followed yet: `starsearch rank`, or name some with --repo")
    run.github = source.usage
    source.before_asking = partial(store.brakes.check_fetch, LIVE)
    await source.ping()
    failed, nodes = await resolve_names(store, source, repositories, host=options.host, progress=run.progress)
    since = options.since or source.now - FIRST_REACH
    fetcher = Fetcher(store, source, run, host=options.host, comments=options.comments, batch=options.batch)
    cycle = Cycle(source, fetcher, run.progress, host=options.host, batch=options.batch)
    chosen: list[int] | None = None
    with rare_collections():
        if repositories:
            named = await to_sweep(store.pool, options.host, nodes, since=since)
            chosen = [repository.id for repository in named]
            await cycle.sweep(named)
        else:
            await _sweep_list(store, cycle, options.host, now=source.now, since=since)
        await fetch_leftovers(store, fetcher, Scope(options.host, chosen, run.id), run.progress)
    _tell(cycle.notes, named=bool(repositories))
    return failed | dict.fromkeys(cycle.gone, f"{GONE}: its items left search") | cycle.failed


async def _sweep_list(store: Store, cycle: Cycle, host: str, *, now: datetime, since: datetime) -> None:
    """Sweep the followed list, sharing it by leases with whoever else does at the same time."""
    async with worker(store.dsn) as number:
        sweeper = await begin_sweep(store.pool, host, number, now=now, since=since)
        try:
            total = await count_unswept(store.pool, sweeper)
            await cycle.sweep((), claim=lambda: claim_repositories(store.pool, sweeper), total=total)
        finally:
            await give_back_repositories(store.pool, number)


def _tell(notes: Mapping[str, str], *, named: bool) -> None:
    """Who asked for a repository hears of it by name; of the followed list a number is enough."""
    if named:
        for name, note in notes.items():
            with about(repository=name):
                log.warning("%s: %s", name, note)
    for note, number in Counter(() if named else notes.values()).items():
        log.info("%d repositories: %s", number, note)


async def _crawl_rest(store: Store, source: RestSource, repositories: Sequence[str], run: Run, options: CrawlOptions) -> dict[str, str]:
    """A handful of repositories, one after the other."""
    if not repositories:
        raise PreconditionMissing(
            "the followed list needs a GitHub credential: set STARSEARCH_GITHUB_TOKENS (a token without any scope will do), or name a "
            "few repositories with --repo"
        )
    failed: dict[str, str] = {}
    for done, repo in enumerate(repositories, 1):
        await store.brakes.check_fetch(LIVE)
        with about(repository=repo):
            try:
                checkpoint = await read_checkpoint(store.pool, options.host, repo)
                await ingest(store, source.items(checkpoint, since=options.since, newest=options.newest), run)
            except RateLimited as error:
                failed |= dict.fromkeys(repositories[done - 1 :], str(error))
                break
            except StarsearchError as error:
                if error.exit_code == 3:
                    raise
                failed[repo] = str(error)
                log.warning("%s: %s", repo, error)
        run.progress("crawl", done, len(repositories))
    return failed


async def resolve_names(
    store: Store, github: GitHub, names: Sequence[str], *, host: str, progress: Progress = no_progress
) -> tuple[dict[str, str], list[str]]:
    """Node ids of the named repositories, asking GitHub for those not known yet; without names, of what the list knows by name only.

    Returns (the ones not found, with the reason; node ids).
    """
    listed = {} if names else await unresolved(store.pool, host, now=github.now)
    known = await nodes_by_name(store.pool, host, names)
    unknown = list(listed) or [name for name in names if name.lower() not in known]
    failed: dict[str, str] = {}
    nodes = [known[name.lower()] for name in names if name.lower() in known]
    for start in range(0, len(unknown), NAMES):
        found = await resolve(github, unknown[start : start + NAMES])
        facts = {name: fact for name, fact in found.items() if isinstance(fact, RepositoryFacts)}
        async with store.pool.connection() as connection:
            await store_facts(connection, host, list(facts.values()), names=facts)
            missing = {name: GONE for name, answer in found.items() if isinstance(answer, Missing)}
            unknown_yet = {name: f"{answer.reason}: {answer.detail}" for name, answer in found.items() if isinstance(answer, Failed)}
            await mark_failed(connection, {listed[name]: why for name, why in missing.items() if name in listed}, missing_at=github.now)
            await mark_failed(connection, {listed[name]: why for name, why in unknown_yet.items() if name in listed})
        for name, why in (missing | unknown_yet).items():
            with about(repository=name):
                log.warning("%s: %s", name, why)
        failed |= missing | unknown_yet
        nodes += [fact.node_id for fact in facts.values()]
        progress("names", min(start + NAMES, len(unknown)), len(unknown))
    return failed, nodes
