"""Commands that bring items in and digest them: `ingest`, `rank`, `crawl`, `backfill`, `digest`."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from starsearch.commands.options import Json, NoDigest, recorded, repository_names, say
from starsearch.errors import Backlog, StarsearchError
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.backfill import Request
    from starsearch.pipeline import Run
    from starsearch.storage import Store
    from starsearch.store.rankings import Refreshed

SHOWN = 10  # rejected lines, failed repositories: the rest is counted


def ingest(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, plain or .gz; - is standard input.")],
    no_digest: NoDigest = False,
    json: Json = False,
) -> None:
    """Store items from files, then summarize and embed what is new."""
    for path in files:
        if str(path) != "-" and not path.is_file():
            raise typer.BadParameter(f"{path} is not a file", param_hint="FILE")
    asyncio.run(_ingest(read_settings(), files, no_digest, json))


async def _ingest(settings: Settings, files: list[Path], no_digest: bool, json: bool) -> None:
    from starsearch.jsonl import read_items
    from starsearch.pipeline import ingest

    async def work(store: "Store", run: "Run") -> None:
        for path in files:
            await ingest(store, read_items(path), run)
        await _report_rejections(store, run)
        if not no_digest:
            await _digest_due(settings, store, run)

    await _recorded(settings, "ingest", work, json)


def rank(
    file: Annotated[
        Path | None, typer.Option("--from", help="Take the list from this CSV file (full_name, stars; .gz too) and do not ask GitHub.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many repositories to follow. Default: STARSEARCH_TOP.")] = None,
    json: Json = False,
) -> None:
    """Refresh the list of followed repositories: the ones with the most stars."""
    if file and not file.is_file():
        raise typer.BadParameter(f"{file} is not a file", param_hint="--from")
    settings = read_settings()
    asyncio.run(_rank(settings, file, top or settings.top, json))


async def _rank(settings: Settings, file: Path | None, top: int, json: bool) -> None:
    from starsearch.ranking import rank_counts, rank_from_file
    from starsearch.terminal import print_json, print_ranking

    async with recorded(settings, "rank") as (store, run):
        if file:
            try:
                refreshed = await rank_from_file(store, file, run, host=settings.github_host, top=top)
            finally:
                await _report_rejections(store, run)
        else:
            refreshed = await _rank_by_search(settings, store, run, top)
    (print_json if json else print_ranking)(rank_counts(refreshed, run))


async def _rank_by_search(settings: Settings, store: "Store", run: "Run", top: int) -> "Refreshed":
    from starsearch.ranking import rank_by_search
    from starsearch.sources import open_graphql

    async with open_graphql(settings) as github:
        try:
            return await rank_by_search(store, github, run, host=settings.github_host, top=top)
        finally:
            say(str(github.usage))


def crawl(
    repo: Annotated[
        list[str] | None, typer.Option(help="owner/name; repeatable. Default: STARSEARCH_REPOSITORIES, else the followed list.")
    ] = None,
    no_digest: NoDigest = False,
    json: Json = False,
) -> None:
    """Fetch what changed on GitHub since the last crawl, then summarize and embed it."""
    settings = read_settings()
    repositories = repository_names(repo) or list(settings.repositories)
    asyncio.run(_crawl(settings, repositories, no_digest, json))


async def _crawl(settings: Settings, repositories: list[str], no_digest: bool, json: bool) -> None:
    from starsearch.crawling import crawl
    from starsearch.sources import crawl_options, open_any

    failed: dict[str, str] = {}

    async def work(store: "Store", run: "Run") -> None:
        async with open_any(settings) as source:
            try:
                failed.update(await crawl(store, source, repositories, run, crawl_options(settings)))
            except Backlog:
                if not no_digest:
                    await _digest_due(settings, store, run)
                raise
            finally:
                say(str(source.usage))
        await _report_rejections(store, run)
        if not no_digest:
            await _digest_due(settings, store, run)

    await _recorded(settings, "crawl", work, json)
    _refuse_failed(failed, "were not crawled, and join the next crawl")


def _refuse_failed(failed: dict[str, str], what: str) -> None:
    """Exit 1 naming what was left out; everything else is done."""
    if failed:
        shown = [f"{repo}: {reason}" for repo, reason in list(failed.items())[:SHOWN]]
        more = [f"and {len(failed) - SHOWN:,} more"] if len(failed) > SHOWN else []
        raise StarsearchError(f"{len(failed):,} repositories {what}: {'; '.join(shown + more)}")


def backfill(
    since: Annotated[str, typer.Option(help="Updated on this day or later: 2026-03-01, or days back: 7d.")],
    until: Annotated[str, typer.Option(help="Created up to this day (its end); default: now.")] = "0d",
    repo: Annotated[list[str] | None, typer.Option(help="owner/name; repeatable. Default: the followed list.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Only the first so many of the followed list.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and do nothing.")] = False,
    no_digest: NoDigest = False,
    json: Json = False,
) -> None:
    """A range of history, for the first time or again. Stopped, the same command goes on."""
    from starsearch.backfill import read_request

    try:
        request = read_request(since, until, repository_names(repo), top)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since, --until") from None
    asyncio.run(_backfill(read_settings(), request, dry_run, no_digest, json))


async def _backfill(settings: Settings, request: "Request", dry_run: bool, no_digest: bool, json: bool) -> None:
    from starsearch.backfill import backfill, backfill_in_turns, price
    from starsearch.cost import read_prices
    from starsearch.sources import crawl_options, open_graphql
    from starsearch.storage import open_store
    from starsearch.terminal import print_fields, print_json

    options = crawl_options(settings)
    if dry_run:
        async with open_store(settings) as store, open_graphql(settings) as github:
            (print_json if json else print_fields)((await price(store, github, request, options, read_prices(settings.prices))).as_dict())
        return
    failed: dict[str, str] = {}

    async def work(store: "Store", run: "Run") -> None:
        async with open_graphql(settings, backfill=True) as github:
            try:
                if no_digest:
                    failed.update(await backfill(store, github, request, run, options))
                else:
                    failed.update(await backfill_in_turns(store, github, request, run, options, lambda: _digest_due(settings, store, run)))
            finally:
                say(str(github.usage))
        if not no_digest:
            await _digest_due(settings, store, run)

    await _recorded(settings, "backfill", work, json)
    _refuse_failed(failed, "were not read to the end; the same command goes on with them")


def digest(json: Json = False) -> None:
    """Summarize and embed everything that is due, here and now."""
    settings = read_settings()

    async def work(store: "Store", run: "Run") -> None:
        await _digest_due(settings, store, run)

    asyncio.run(_recorded(settings, "digest", work, json))


async def _digest_due(settings: Settings, store: "Store", run: "Run") -> None:
    from starsearch.pipeline import digest
    from starsearch.serving import open_live

    await store.brakes.check(run.id)  # opening asks the engines for something, too
    async with open_live(settings, store) as live:
        await digest(store, live[0], run, beside=live[1:], workers=settings.workers, concurrency=settings.concurrency)


async def _recorded(settings: Settings, kind: str, work: Any, json: bool) -> None:
    """Do `work` as a recorded run with progress bars, and print what it did, even where it ends in an error."""
    from starsearch.terminal import print_counts, print_json

    run = None
    try:
        async with recorded(settings, kind) as (store, run):
            await work(store, run)
    finally:
        if run:
            counts = run.counts.as_dict()
            if json:
                print_json(counts | ({"github": run.github.as_dict()} if run.github else {}))
            else:
                print_counts(counts)


async def _report_rejections(store: "Store", run: "Run") -> None:
    from starsearch.store.runs import rejections

    if not run.counts.rejected:
        return
    for source, line, reason in await rejections(store.pool, run.id, limit=SHOWN):
        say(f"rejected {source}:{line}: {reason}")
    if run.counts.rejected > SHOWN:
        say(f"… and {run.counts.rejected - SHOWN:,} more; all are in the table `rejection`, run {run.id}")
