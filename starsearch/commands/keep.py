"""Commands that look after it: `doctor`, `migrate`, `status`, `pause`, `resume`, `purge`, `engine`."""

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from starsearch.commands.options import Json, repository_names
from starsearch.errors import PreconditionMissing
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.audit import Status
    from starsearch.store.purges import Target


def doctor(json: Json = False) -> None:
    """Check every precondition; each red line says what to do."""
    exit_code = asyncio.run(_doctor(read_settings(), json))
    raise typer.Exit(exit_code)


async def _doctor(settings: Settings, json: bool) -> int:
    from starsearch.doctor import checks
    from starsearch.terminal import out, print_json
    from starsearch.untrusted import safe

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


def migrate(
    roles: Annotated[
        bool, typer.Option("--roles", help="Then make the roles starsearch_owner, _writer and _reader, and grant what each needs.")
    ] = False,
    first_version: Annotated[
        bool,
        typer.Option("--first-version", help="In a new database, make the index version of the settings, so that the writer need not."),
    ] = False,
) -> None:
    """Bring the database's schema up to date. Safe from many processes at once."""
    asyncio.run(_migrate(read_settings(), roles, first_version))


async def _migrate(settings: Settings, roles: bool, first_version: bool) -> None:
    from starsearch.serving import open_live
    from starsearch.storage import database_address, open_store
    from starsearch.store.database import connect
    from starsearch.store.migrate import migrate
    from starsearch.store.roles import set_up_roles
    from starsearch.store.versions import active_version

    async with database_address(settings) as dsn, await connect(dsn) as connection:
        applied = await migrate(connection, allow_old_pgvector=settings.allow_old_pgvector)
        typer.echo(f"applied {', '.join(applied)}" if applied else "the schema is up to date")
        if first_version:  # before the roles, which get what it makes
            async with open_store(settings) as store:
                if await active_version(store.pool) is None:
                    async with open_live(settings, store) as [engines, *_]:
                        typer.echo(f"made index version {engines.version.name}")
        if roles:
            made = await set_up_roles(connection)
            typer.echo(f"roles made: {', '.join(made)}; set their passwords" if made else "the roles are there; rights granted")


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
    found = asyncio.run(_status(read_settings(), json, gaps, full))
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


def pause(reason: Annotated[str, typer.Argument(help="For whoever meets it.")] = "by hand") -> None:
    """Stop new work everywhere within ten seconds: crawls, digests, backfills. What is under way is finished; search goes on."""
    asyncio.run(_pause(read_settings(), reason))


async def _pause(settings: Settings, reason: str) -> None:
    from starsearch.models import clean
    from starsearch.storage import open_store
    from starsearch.store.pauses import pause

    async with open_store(settings) as store:
        new = await pause(store.pool, clean(reason)[:200])
    typer.echo("paused: no process begins anything new; `starsearch resume` lets them" if new else "work was paused already")


def resume() -> None:
    """Let work go on after `pause`: what is due is still due, and the next crawl reads from where the last one stopped."""
    asyncio.run(_resume(read_settings()))


async def _resume(settings: Settings) -> None:
    from starsearch.storage import open_store
    from starsearch.store.pauses import resume

    async with open_store(settings) as store:
        was = await resume(store.pool)
    typer.echo("work goes on with the next run" if was else "work was not paused")


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
        target = Target(settings.github_host, repository_names([repo])[0])
    if item:
        address = parse_address(item, host=settings.github_host)
        if address is None:
            raise typer.BadParameter("expected a GitHub issue or pull request URL, or owner/name#number", param_hint="--item")
        target = Target(address["host"], address["repo"], address["number"])
    elif author is not None and not target.author:
        raise typer.BadParameter("is empty", param_hint="--author")
    asyncio.run(_purge(settings, target, dry_run, json))


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


def engine(port: Annotated[int, typer.Option(min=0, max=65535)] = 8000, host: Annotated[str, typer.Option()] = "127.0.0.1") -> None:
    """Serve the embedded engine: an OpenAI-compatible API that needs no GPU. GET /requests tells how many it answered.

    With STARSEARCH_SERVED_ENGINE_KEY (or …_FILE) it answers only whoever sends that key; /health answers everybody.
    """
    import uvicorn

    from starsearch.embedded.engine import EmbeddedEngine

    settings = read_settings()
    key = settings.served_engine_key.get_secret_value() if settings.served_engine_key else None
    typer.echo(f"embedded engine on http://{host}:{port}/v1 for {'whoever has its key' if key else 'everybody'}", err=True)
    uvicorn.run(EmbeddedEngine(settings.home / "cache", key).app, host=host, port=port, log_level="warning", log_config=None)
