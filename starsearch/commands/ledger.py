"""Commands about what was spent and what was given up: `cost` and `dead-letters`."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from starsearch.commands.options import Json
from starsearch.errors import PreconditionMissing, StarsearchError
from starsearch.settings import Settings, read_settings

if TYPE_CHECKING:
    from starsearch.models import Usage
    from starsearch.store.database import Pool
    from starsearch.store.dead_letters import Choice

Result = TypeVar("Result")
dead_letters = typer.Typer(help="Items whose attempts are spent: list them, show one, give them another chance.", no_args_is_help=True)


class By(StrEnum):
    model = "model"
    run = "run"
    repository = "repository"


class Stage(StrEnum):
    fetch = "fetch"
    summarize = "summarize"
    embed = "embed"


OfStage = Annotated[Stage | None, typer.Option("--stage", help="fetch (its text never came), summarize or embed.")]
WithError = Annotated[str | None, typer.Option("--error", help="A part of the reason or detail, such as 'HTTP 500' or cut-off.")]


def cost(
    by: Annotated[By, typer.Option(help="What a line adds up.")] = By.model,
    limit: Annotated[int, typer.Option(min=1, help="Runs: the newest; repositories: those with most tokens.")] = 20,
    items_per_day: Annotated[int, typer.Option(min=1, help="For the comparison with other engines.")] = 100_000,
    json: Json = False,
) -> None:
    """What was spent on engines, in tokens and dollars, and what the same summaries would cost elsewhere."""
    from starsearch.cost import bill, compare, read_prices
    from starsearch.cost import cost as dollars
    from starsearch.store.ledger import read_usage
    from starsearch.terminal import print_cost, print_json

    settings = read_settings()
    prices = read_prices(settings.prices)

    async def read(pool: "Pool") -> tuple[list["Usage"], list[tuple[str, "Usage"]]]:
        async with pool.connection() as connection:
            return await read_usage(connection), await _lines(connection, by, limit)

    totals, lines = _with_store(settings, read)
    compared = compare(totals, prices, items_per_day=items_per_day)
    if compared is None:
        raise PreconditionMissing("nothing was digested yet, so nothing was spent: `starsearch crawl` or `starsearch ingest` first")
    spent = [{by.value: name} | vars(usage) | {"cost_usd": dollars(usage, prices)} for name, usage in lines]
    found = {"total": bill(totals, prices), "spent": spent, "elsewhere": compared.as_dict()}
    (print_json if json else print_cost)(found)


async def _lines(connection: Any, by: By, limit: int) -> list[tuple[str, "Usage"]]:
    from starsearch.store.ledger import read_usage, usage_by_repository, usage_by_run

    if by is By.run:
        return await usage_by_run(connection, limit=limit)
    if by is By.repository:
        return await usage_by_repository(connection, limit=limit)
    return [(usage.model, usage) for usage in await read_usage(connection)]


@dead_letters.command("list")
def list_dead_letters(
    stage: OfStage = None,
    error: WithError = None,
    limit: Annotated[int, typer.Option(min=1, help="Items shown, the newest first; all are counted.")] = 20,
    json: Json = False,
) -> None:
    """How many of each reason, and the newest items."""
    from starsearch.store.dead_letters import count_dead_letters, find_dead_letters
    from starsearch.terminal import print_dead_letters, print_json

    settings = read_settings()
    choice = _choice(settings, stage, error)

    async def read(pool: "Pool") -> dict[str, Any]:
        counts = [{"stage": stage, "reason": reason, "count": count} for stage, reason, count in await count_dead_letters(pool, choice)]
        letters = [vars(letter) for letter in await find_dead_letters(pool, choice, limit=limit)]
        return {"total": sum(each["count"] for each in counts), "reasons": counts, "dead_letters": letters}

    (print_json if json else print_dead_letters)(_with_store(settings, read))


@dead_letters.command("show")
def show_dead_letter(url: Annotated[str, typer.Argument(help="The item's GitHub URL, or owner/name#number.")], json: Json = False) -> None:
    """Everything known of one: what was tried, how often, and what came back."""
    from starsearch.store.dead_letters import find_dead_letters
    from starsearch.terminal import print_fields, print_json

    settings = read_settings()
    choice = _choice(settings, None, None, url)
    letters = [vars(letter) for letter in _with_store(settings, lambda pool: find_dead_letters(pool, choice))]
    if not letters:
        raise StarsearchError(f"{url} is no dead letter: `starsearch explain` says where it is")
    if json:
        print_json(letters)
    else:
        for letter in letters:
            print_fields(letter)


@dead_letters.command("retry")
def retry(
    url: Annotated[str | None, typer.Argument(help="One item; without it, all that the options choose.")] = None,
    stage: OfStage = None,
    error: WithError = None,
    every: Annotated[bool, typer.Option("--all", help="All of them, where nothing else is chosen.")] = False,
    json: Json = False,
) -> None:
    """Give them all their attempts again; the next digest or crawl takes them up."""
    from starsearch.store.dead_letters import retry_dead_letters
    from starsearch.terminal import print_json

    if not (url or stage or error or every):
        raise typer.BadParameter("name an item, --stage, --error, or --all", param_hint="URL")
    settings = read_settings()
    choice = _choice(settings, stage, error, url)
    done = _with_store(settings, lambda pool: retry_dead_letters(pool, choice))
    if json:
        print_json(done)
        return
    typer.echo(f"{done['digest']:,} are due again: `starsearch digest`; {done['fetch']:,} are fetched by the next `starsearch crawl`")


def _choice(settings: Settings, stage: Stage | None, error: str | None, url: str | None = None) -> "Choice":
    from starsearch.explain import parse_address
    from starsearch.store.dead_letters import Choice

    address = parse_address(url, host=settings.github_host) if url else None
    if url and address is None:
        raise typer.BadParameter("expected a GitHub issue or pull request URL, or owner/name#number", param_hint="URL")
    return Choice(stage.value if stage else None, error, address)


def _with_store(settings: Settings, work: "Callable[[Pool], Awaitable[Result]]") -> Result:
    from starsearch.storage import open_store

    async def run() -> Result:
        async with open_store(settings) as store:
            return await work(store.pool)

    return asyncio.run(run())
