"""The `starsearch` command: the same functions that the flows wrap, in this process, without Prefect.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a precondition is missing and the message says what to do. Results go to stdout,
everything else to stderr. Imports stand in the functions, so that a command starts in a second.
"""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from starsearch import cli_web
from starsearch.cli_ledger import cost, dead_letters
from starsearch.cli_versions import reprocess, versions
from starsearch.errors import PreconditionMissing, StarsearchError
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.audit import Status
    from starsearch.backfill import Request
    from starsearch.finder import Finder
    from starsearch.models import Filters, Found
    from starsearch.pipeline import Run
    from starsearch.storage import Store
    from starsearch.store.purges import Target
    from starsearch.store.rankings import Refreshed

app = typer.Typer(
    help="Know what is going on across GitHub: crawl, summarize, embed, search.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(reprocess)
app.add_typer(versions, name="versions")
Result = TypeVar("Result")
SHOWN = 10  # rejected lines, failed repositories: the rest is counted

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Repo = Annotated[list[str] | None, typer.Option(help="owner/name; repeatable: any of them.")]
Since = Annotated[str | None, typer.Option(help="Created on this day (UTC) or later: 2026-03-01, or days back: 7d.")]
Until = Annotated[str | None, typer.Option(help="Created up to this day (its end).")]
NoDigest = Annotated[bool, typer.Option("--no-digest", help="Store items only; digest them later.")]


class Mode(StrEnum):
    hybrid = "hybrid"
    vector = "vector"
    text = "text"


class Type(StrEnum):
    issue = "issue"
    pull_request = "pull_request"


class State(StrEnum):
    open = "open"
    closed = "closed"
    merged = "merged"


def main() -> None:
    """Entry point; turns our errors into a message and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        app()
    except StarsearchError as error:
        from starsearch.terminal import safe

        typer.echo(f"starsearch: {safe(str(error))}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("starsearch: stopped; run the same command again to go on", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        typer.echo(f"starsearch: {error}", err=True)
        sys.exit(1)


@app.command()
def doctor(json: Json = False) -> None:
    """Check every precondition; each red line says what to do."""
    exit_code = _run(_doctor(read_settings(), json))
    raise typer.Exit(exit_code)


async def _doctor(settings: Settings, json: bool) -> int:
    from starsearch.doctor import checks
    from starsearch.terminal import out, print_json, safe

    found = []
    marks = {"ok": "[green]ok     [/]", "warning": "[yellow]warning[/]", "error": "[red]error  [/]"}
    async for check in checks(settings):
        found.append(check)
        if not json:
            out.print(f"{marks[check.level]} {check.name:<11}", end="")
            out.print(safe(check.message), markup=False, soft_wrap=True)
    if json:
        print_json([vars(check) for check in found])
    return PreconditionMissing.exit_code if any(check.level == "error" for check in found) else 0


@app.command()
def migrate(
    roles: Annotated[
        bool, typer.Option("--roles", help="Then make the roles starsearch_owner, _writer and _reader, and grant what each needs.")
    ] = False,
) -> None:
    """Bring the database's schema up to date. Safe from many processes at once."""
    _run(_migrate(read_settings(), roles))


async def _migrate(settings: Settings, roles: bool) -> None:
    from starsearch.storage import database_address
    from starsearch.store.database import connect
    from starsearch.store.migrate import migrate
    from starsearch.store.roles import set_up_roles

    async with database_address(settings) as dsn, await connect(dsn) as connection:
        applied = await migrate(connection, allow_old_pgvector=settings.allow_old_pgvector)
        typer.echo(f"applied {', '.join(applied)}" if applied else "the schema is up to date")
        if roles:
            made = await set_up_roles(connection)
            typer.echo(f"roles made: {', '.join(made)}; set their passwords" if made else "the roles are there; rights granted")


@app.command()
def ingest(
    files: Annotated[list[Path], typer.Argument(help="JSON Lines, plain or .gz; - is standard input.")],
    no_digest: NoDigest = False,
    json: Json = False,
) -> None:
    """Store items from files, then summarize and embed what is new."""
    for path in files:
        if str(path) != "-" and not path.is_file():
            raise typer.BadParameter(f"{path} is not a file", param_hint="FILE")
    _run(_ingest(read_settings(), files, no_digest, json))


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


@app.command()
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
    _run(_rank(settings, file, top or settings.top, json))


async def _rank(settings: Settings, file: Path | None, top: int, json: bool) -> None:
    from starsearch.pipeline import recorded_run
    from starsearch.ranking import rank_counts, rank_from_file
    from starsearch.storage import open_store
    from starsearch.terminal import print_json, print_ranking, progress_bars

    async with open_store(settings) as store:
        with progress_bars() as progress:
            async with recorded_run(store, "rank", progress) as run:
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
            _say(str(github.usage))


@app.command()
def crawl(
    repo: Annotated[
        list[str] | None, typer.Option(help="owner/name; repeatable. Default: STARSEARCH_REPOSITORIES, else the followed list.")
    ] = None,
    no_digest: NoDigest = False,
    json: Json = False,
) -> None:
    """Fetch what changed on GitHub since the last crawl, then summarize and embed it."""
    settings = read_settings()
    repositories = _repository_names(repo) or list(settings.repositories)
    _run(_crawl(settings, repositories, no_digest, json))


def _repository_names(names: list[str] | None) -> list[str]:
    from starsearch.models import is_repository_name

    for name in names or ():
        if not is_repository_name(name):
            raise typer.BadParameter(f"{name!r} is not owner/name", param_hint="--repo")
    return list(dict.fromkeys(names or ()))


async def _crawl(settings: Settings, repositories: list[str], no_digest: bool, json: bool) -> None:
    from starsearch.crawling import crawl
    from starsearch.sources import crawl_options, open_any

    failed: dict[str, str] = {}

    async def work(store: "Store", run: "Run") -> None:
        async with open_any(settings) as source:
            try:
                failed.update(await crawl(store, source, repositories, run, crawl_options(settings)))
            finally:
                _say(str(source.usage))
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


@app.command()
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
        request = read_request(since, until, _repository_names(repo), top)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since, --until") from None
    _run(_backfill(read_settings(), request, dry_run, no_digest, json))


async def _backfill(settings: Settings, request: "Request", dry_run: bool, no_digest: bool, json: bool) -> None:
    from starsearch.backfill import backfill, price
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
                failed.update(await backfill(store, github, request, run, options))
            finally:
                _say(str(github.usage))
        if not no_digest:
            await _digest_due(settings, store, run)

    await _recorded(settings, "backfill", work, json)
    _refuse_failed(failed, "were not read to the end; the same command goes on with them")


@app.command()
def digest(json: Json = False) -> None:
    """Summarize and embed everything that is due, here and now."""
    settings = read_settings()

    async def work(store: "Store", run: "Run") -> None:
        await _digest_due(settings, store, run)

    _run(_recorded(settings, "digest", work, json))


async def _digest_due(settings: Settings, store: "Store", run: "Run") -> None:
    from starsearch.pipeline import digest
    from starsearch.serving import open_live

    async with open_live(settings, store) as live:
        await digest(store, live[0], run, beside=live[1:], workers=settings.workers, concurrency=settings.concurrency)


async def _recorded(settings: Settings, kind: str, work: Any, json: bool) -> None:
    """Do `work` as a recorded run with progress bars, and print what it did, even where it ends in an error."""
    from starsearch.pipeline import recorded_run
    from starsearch.storage import open_store
    from starsearch.terminal import print_counts, print_json, progress_bars

    async with open_store(settings) as store:
        run = None
        try:
            with progress_bars() as progress:
                async with recorded_run(store, kind, progress) as run:
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
        _say(f"rejected {source}:{line}: {reason}")
    if run.counts.rejected > SHOWN:
        _say(f"… and {run.counts.rejected - SHOWN:,} more; all are in the table `rejection`, run {run.id}")


@app.command()
def search(  # noqa: PLR0913, PLR0917 a command's options are its arguments
    query: Annotated[str | None, typer.Argument(help="A question, or words.", show_default=False)] = None,
    like: Annotated[str | None, typer.Option(metavar="URL", help="Instead of a query: find items like this one.")] = None,
    mode: Annotated[Mode, typer.Option(help="By meaning and words, meaning only, or words only.")] = Mode.hybrid,
    repo: Repo = None,
    type: Annotated[Type | None, typer.Option(help="issue or pull_request")] = None,
    state: Annotated[State | None, typer.Option(help="open, closed or merged")] = None,
    author: Annotated[str | None, typer.Option(help="Whose: a login.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Repeatable: all of them. Compared without case.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 10,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show how it was found: index or exact, which words picked candidates.")
    ] = False,
    json: Json = False,
) -> None:
    """Find items by what they mean."""
    if (query is None) == (like is None):
        raise typer.BadParameter("give a query, or --like URL", param_hint="QUERY")
    if query is not None and not query.strip():
        raise typer.BadParameter("is empty", param_hint="QUERY")
    from starsearch.models import Filters

    filters = Filters(
        repos=tuple(_repository_names(repo)),
        type=type.value if type else None,
        state=state.value if state else None,
        author=author,
        labels=tuple(label or ()),
        since=_moment(since),
        until=_moment(until, end=True),
    )

    async def find(finder: "Finder") -> "Found":
        if like is not None:
            return await finder.like(like, filters=filters, limit=limit)
        return await finder.find(query or "", mode=mode.value, filters=filters, limit=limit)

    shape = {"query": query or like, "mode": mode.value if like is None else "vector"}
    _run(_search(read_settings(), shape, find, explain, json))


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="A question in your own words.")],
    repo: Repo = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
) -> None:
    """Answer a question from what is stored, with citations; or say that nothing close was found."""
    from starsearch.models import Filters

    filters = Filters(repos=tuple(_repository_names(repo)), since=_moment(since), until=_moment(until, end=True))
    _run(_ask(read_settings(), question, filters, json))


async def _ask(settings: Settings, question: str, filters: "Filters", json: bool) -> None:
    from starsearch.asking import ask
    from starsearch.engines import open_llm
    from starsearch.finder import open_finder
    from starsearch.store.search import hit_as_dict
    from starsearch.terminal import print_answer, print_json

    async with open_finder(settings) as finder, open_llm(settings) as llm:
        answer = await ask(finder, llm, question, filters=filters)
    if not json:
        print_answer(answer)
        return
    citations = [{"number": n, "url": hit.url, "repo": hit.repo, "title": hit.title} for n, hit in answer.citations.items()]
    shape = {
        "question": question,
        "answer": answer.text,
        "kind": answer.kind,
        "citations": citations,
        "index_version": answer.index_version,
    }
    print_json(shape | {"hits": [hit_as_dict(hit) for hit in answer.hits]})


def _moment(text: str | None, *, end: bool = False) -> datetime | None:
    from starsearch.backfill import parse_moment

    try:
        return parse_moment(text, now=datetime.now(UTC), end=end) if text else None
    except ValueError:
        raise typer.BadParameter(
            f"{text}: write a day (2026-03-01) or days back (7d)", param_hint="--until" if end else "--since"
        ) from None


async def _search(
    settings: Settings, shape: dict[str, Any], find: Callable[["Finder"], Awaitable["Found"]], explain: bool, json: bool
) -> None:
    from starsearch.finder import open_finder
    from starsearch.store.search import MAX_QUERY, hit_as_dict
    from starsearch.terminal import err, nothing_found, print_explanation, print_hits, print_json

    async with open_finder(settings) as finder:
        found = await find(finder)
        shape |= {"index_version": finder.version.fingerprint[:12]}
    if len(shape["query"]) > MAX_QUERY:
        err.print(f"only the first {MAX_QUERY:,} of {len(shape['query']):,} characters were searched for")
    if json:
        shape |= {"hits": [hit_as_dict(hit) for hit in found.hits]}
        print_json(shape | ({"explanation": asdict(found.explanation)} if explain else {}))
        return
    if explain:
        print_explanation(found.explanation)
    print_hits(found.hits)
    if not found.hits:
        err.print(nothing_found(found.explanation, shape["mode"]))


@app.command()
def status(
    json: Json = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when incomplete or late.")] = False,
    max_lag: Annotated[
        str, typer.Option(help="With --check: how long ago the last crawl and the oldest due item may be: 90m, 2h, 1d.")
    ] = "2h",
    gaps: Annotated[bool, typer.Option("--gaps", help="Name every item that is missing, not only the first.")] = False,
    full: Annotated[bool, typer.Option("--full", help="First count every item, and correct the kept counts.")] = False,
) -> None:
    """Completeness: known = stored = summarized = embedded + dead letters, with every gap named."""
    seconds = _duration(max_lag)
    found = _run(_status(read_settings(), json, gaps, full))
    problems = [problem for problem, is_so in (("incomplete", not found.complete), ("late", found.lag_seconds() > seconds)) if is_so]
    if check and problems:
        typer.echo(f"starsearch: {' and '.join(problems)}", err=True)
        raise typer.Exit(1)


async def _status(settings: Settings, json: bool, gaps: bool, full: bool) -> "Status":
    from starsearch.audit import read_status
    from starsearch.cost import read_prices
    from starsearch.storage import open_store
    from starsearch.store.tallies import reconcile
    from starsearch.terminal import print_json, print_status

    async with open_store(settings) as store:
        if full:
            await reconcile(store.pool)
        found = await read_status(store.pool, read_prices(settings.prices), every_gap=gaps)
    if json:
        print_json(found.as_dict())
    else:
        print_status(found)
    return found


def _duration(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
    if text[:-1].isdigit() and text[-1:] in units:
        return int(text[:-1]) * units[text[-1]]
    raise typer.BadParameter("a number and a unit: 30s, 90m, 2h, 1d", param_hint="--max-lag")


@app.command()
def explain(url: Annotated[str, typer.Argument(help="The item's GitHub URL, or owner/name#number.")], json: Json = False) -> None:
    """Where a digest came from: content hash, prompt version, model, run, tokens, times."""
    from starsearch.explain import parse_address

    address = parse_address(url)
    if address is None:
        raise typer.BadParameter("expected a GitHub issue or pull request URL, or owner/name#number", param_hint="URL")
    _run(_explain(read_settings(), address, json))


async def _explain(settings: Settings, address: dict[str, Any], json: bool) -> None:
    from starsearch.explain import explain
    from starsearch.storage import open_store
    from starsearch.terminal import print_fields, print_json

    async with open_store(settings) as store:
        found = await explain(store.pool, address)
    if found is None:
        raise StarsearchError(f"{address['repo']}#{address['number']} is not stored: `starsearch crawl --repo {address['repo']}`")
    if json:
        print_json(found)
    else:
        print_fields(found)


@app.command()
def purge(
    repo: Annotated[str | None, typer.Option(help="owner/name: the repository with all its items.")] = None,
    author: Annotated[str | None, typer.Option(help="Everything this person wrote: items, and comments on others' items.")] = None,
    item: Annotated[str | None, typer.Option(help="One item: its GitHub URL, or owner/name#number.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say how much that is, and remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove a repository, an author or an item for good, everywhere, and never take it back. Stopped, the same command goes on."""
    from starsearch.explain import parse_address
    from starsearch.store.purges import Target

    settings = read_settings()
    if sum(what is not None for what in (repo, author, item)) != 1:
        raise typer.BadParameter("name one of them", param_hint="--repo, --author, --item")
    target = Target(settings.github_host, author=author and author.removeprefix("@"))
    if repo is not None:
        target = Target(settings.github_host, _repository_names([repo])[0])
    if item:
        address = parse_address(item)
        if address is None:
            raise typer.BadParameter("expected a GitHub issue or pull request URL, or owner/name#number", param_hint="--item")
        target = Target(address["host"], address["repo"], address["number"])
    elif author is not None and not target.author:
        raise typer.BadParameter("is empty", param_hint="--author")
    _run(_purge(settings, target, dry_run, json))


async def _purge(settings: Settings, target: "Target", dry_run: bool, json: bool) -> None:
    from starsearch.storage import open_store
    from starsearch.store.purges import plan, purge
    from starsearch.terminal import print_fields, print_json, progress_bars

    async with open_store(settings) as store:
        would = await plan(store.pool, target)
        if not dry_run:
            if not json and sys.stdin.isatty():
                print_fields(would.as_dict())
                typer.confirm("Remove these for good?", abort=True, err=True)
            with progress_bars() as progress:
                would = await purge(store.pool, target, lambda done: progress("purge", done, would.items))
    if json:
        print_json(would.as_dict())
    else:
        print_fields(would.as_dict())


@app.command()
def evaluate(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSON Lines: question, url, also_ok.")],
    json: Json = False,
) -> None:
    """Measure search: recall@1, recall@10 and MRR of each mode, on questions whose right item is known."""
    _run(_evaluate(read_settings(), file, json))


async def _evaluate(settings: Settings, file: Path, json: bool) -> None:
    from starsearch.evaluate import evaluate, read_questions
    from starsearch.finder import open_finder
    from starsearch.terminal import print_json, print_measures, progress_bars

    questions = read_questions(file)
    async with open_finder(settings) as finder:
        with progress_bars() as progress:
            result = await evaluate(finder, questions, lambda done: progress("ask", done, len(questions)))
    (print_json if json else print_measures)(result)


@app.command()
def engine(port: Annotated[int, typer.Option(min=0, max=65535)] = 8000, host: Annotated[str, typer.Option()] = "127.0.0.1") -> None:
    """Serve the embedded engine: an OpenAI-compatible API that needs no GPU. GET /requests tells how many it answered."""
    import uvicorn

    from starsearch.embedded.engine import EmbeddedEngine

    settings = read_settings()
    typer.echo(f"embedded engine on http://{host}:{port}/v1", err=True)
    uvicorn.run(EmbeddedEngine(settings.home / "cache").app, host=host, port=port, log_level="warning")


app.command()(cost)
app.add_typer(dead_letters, name="dead-letters")
cli_web.register(app)


def _say(line: str) -> None:
    """On stderr, above the progress bars where there are some."""
    from starsearch.terminal import err, safe

    err.print(safe(line), markup=False)


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


if __name__ == "__main__":
    main()
