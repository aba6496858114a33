"""`starsearch reprocess` and `starsearch versions …`: other models, built beside the ones that serve, compared, swapped."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from starsearch.commands.options import Json, recorded
from starsearch.models import GATE_MARGIN
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.activation import Swap
    from starsearch.pipeline import Run
    from starsearch.storage import Store

versions = typer.Typer(help="Index versions: which one serves, and which are kept beside it.", no_args_is_help=True)

Questions = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="JSON Lines: question, url, also_ok. Default: titles of stored items."),
]
Margin = Annotated[float, typer.Option(min=0, max=1, help="By how much recall@10 may fall.")]


def reprocess(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and do nothing.")] = False,
    activate: Annotated[bool, typer.Option("--activate", help="Let it serve when it is built, if the gate does not object.")] = False,
    questions: Questions = None,
    margin: Margin = GATE_MARGIN,
    json: Json = False,
) -> None:
    """Build an index version with the models that the settings name, beside the one that serves. Stopped, the same command goes on."""
    if dry_run:
        asyncio.run(_price(read_settings(), json))
        return
    asyncio.run(_reprocess(read_settings(), activate, questions, margin, json))


async def _price(settings: Settings, json: bool) -> None:
    from starsearch.reprocess import price
    from starsearch.storage import open_store
    from starsearch.terminal import print_fields, print_json

    async with open_store(settings) as store:
        found = vars(await price(settings, store))
    (print_json if json else print_fields)(found)


async def _reprocess(settings: Settings, activate: bool, questions: Path | None, margin: float, json: bool) -> None:
    from starsearch.reprocess import reprocess
    from starsearch.terminal import print_counts, print_json

    async with recorded(settings, "reprocess") as (store, run):
        version = await reprocess(settings, store, run)
    counts = run.counts.as_dict() | {"index_version": version.short}
    if activate:
        from starsearch.activation import activate as swap

        counts["swap"] = (
            await _recorded(
                settings,
                "activate",
                lambda store, run: swap(settings, store, run, name=version.fingerprint, questions=questions, margin=margin),
            )
        ).as_dict()
    if json:
        print_json(counts)
        return
    print_counts(run.counts.as_dict())
    typer.echo(f"index version {version.name} is built" + ("" if activate else f": `starsearch versions activate {version.short}`"))


@versions.command("list")
def list_(json: Json = False) -> None:
    """Every version and what it holds."""
    asyncio.run(_list(read_settings(), json))


async def _list(settings: Settings, json: bool) -> None:
    from starsearch.storage import open_store
    from starsearch.store.versions import describe_versions
    from starsearch.terminal import print_json, print_versions

    async with open_store(settings) as store:
        found = await describe_versions(store.pool)
    (print_json if json else print_versions)(found)


@versions.command()
def compare(
    file: Annotated[
        Path | None,
        typer.Argument(exists=True, dir_okay=False, help="JSON Lines: question, url, also_ok. Default: titles of stored items."),
    ] = None,
    json: Json = False,
) -> None:
    """Ask every version the same questions: recall@10, what is missing, the index against exact search."""
    asyncio.run(_compare(read_settings(), file, json))


async def _compare(settings: Settings, file: Path | None, json: bool) -> None:
    from starsearch.compare import compare
    from starsearch.storage import open_store
    from starsearch.terminal import print_comparison, print_json

    async with open_store(settings) as store:
        found = await compare(settings, store, file)
    (print_json if json else print_comparison)(found)


@versions.command()
def activate(
    version: Annotated[str | None, typer.Argument(help="Its first characters. Default: the newest that never served.")] = None,
    questions: Questions = None,
    margin: Margin = GATE_MARGIN,
    force: Annotated[bool, typer.Option("--force", help="Swap whatever the gate says against it.")] = False,
    json: Json = False,
) -> None:
    """Let a version serve search, unless it is incomplete or finds less. The one before is kept: `rollback`."""
    from starsearch.activation import activate as swap

    settings = read_settings()
    _swapped(
        settings,
        "activate",
        lambda store, run: swap(settings, store, run, name=version, questions=questions, margin=margin, force=force),
        json,
    )


@versions.command()
def rollback(json: Json = False) -> None:
    """Let the version that served before serve again. Nothing is lost: what was stored since went to both."""
    from starsearch.activation import roll_back

    settings = read_settings()
    _swapped(settings, "rollback", lambda store, run: roll_back(settings, store, run), json)


@versions.command()
def drop(version: Annotated[str, typer.Argument(help="Its first characters.")]) -> None:
    """Remove a version that does not serve: its digests, its index. It is not kept up to date any more."""
    asyncio.run(_drop(read_settings(), version))


async def _drop(settings: Settings, name: str) -> None:
    from starsearch.storage import open_store
    from starsearch.store.versions import drop_version, find_version

    async with open_store(settings) as store:
        version = await find_version(store.pool, name)
        await drop_version(store.pool, version)
    typer.echo(f"index version {version.name} is dropped")


def _swapped(settings: Settings, kind: str, work: "Callable[[Store, Run], Awaitable[Swap]]", json: bool) -> None:
    from starsearch.terminal import print_json, print_swap

    done = asyncio.run(_recorded(settings, kind, work)).as_dict()
    (print_json if json else print_swap)(done)


async def _recorded(settings: Settings, kind: str, work: "Callable[[Store, Run], Awaitable[Swap]]") -> "Swap":
    async with recorded(settings, kind) as (store, run):
        return await work(store, run)
