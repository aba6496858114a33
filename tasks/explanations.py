"""What happened, as a page of the Prefect UI: for the person who filled in a form and comes back an hour later.

Reasons may quote strangers (a model, GitHub, the person at the form): they appear as code, in which Markdown interprets nothing. Titles
and bodies never appear. Links are put together here, from the host, a name of known characters and a number.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from prefect import task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE

from starsearch.backfill import Request
from starsearch.github.client import Usage
from starsearch.models import Counts, is_repository_name
from starsearch.settings import read_settings
from starsearch.storage import open_store
from starsearch.store.dead_letters import Choice, DeadLetter, find_dead_letters
from starsearch.untrusted import visible
from tasks.artifacts import only_shown

SHOWN = 20  # dead letters, repositories: the rest is counted
LONGEST = 200  # characters of a reason
LONGEST_FAILURE = 1_000  # of what ended the whole run: the end of such a text says what to do
KINDS = {"issue": "issues", "pull_request": "pull requests"}


@task(name="explain", cache_policy=NO_CACHE)
async def explain_backfill(
    request: Request, counts: Counts, failed: Mapping[str, str], github: Usage | None, *, since: datetime, digested: bool
) -> None:
    """`since`: when the run began; of later dead letters some may be another run's."""
    dead, host = await _dead_letters(lambda letter: letter.dead_since >= since)
    await _publish("backfill-explained", backfill_page(request, counts, failed, github, dead, host=host, digested=digested))


def backfill_page(
    request: Request,
    counts: Counts,
    failed: Mapping[str, str],
    github: Usage | None,
    dead: Sequence[DeadLetter],
    *,
    host: str,
    digested: bool,
) -> list[str]:
    waiting = "" if digested else "Only stored, as asked: `digest/shard` or the next backfill digests them."
    return ["# Backfill: done", _asked(request), waiting, _counted(counts, github), _not_read(failed), _dead(dead, host)]


async def explain_price(request: Request, told: Mapping[str, Any]) -> None:
    hours = f"{told['github_hours']:,} hours of GitHub's quota, as a backfill may use it"
    digest = "unknown, before anything was digested here" if told["digest_hours"] is None else f"{told['digest_hours']:,} hours"
    rows = {
        "items": f"about {told['items']:,}, counted in {told['counted']:,} of {told['repositories']:,} repositories",
        "GitHub": f"{told['requests']:,} requests, {told['points']:,} points: {hours}",
        "tokens": "unknown" if told["tokens"] is None else f"{told['tokens']:,}",
        "to summarize and embed": digest,
        "cost": dollars(told["cost_usd"]),
    }
    next_step = "Nothing was read. To begin, run it again without `dry_run`; over more than a year also with `confirmed`."
    await _publish(
        "backfill-price-explained", ["# What a backfill would cost", _asked(request), table(rows), _not_read(told["not_found"]), next_step]
    )


async def explain_reprocess(counts: Counts, version: str, swap: Mapping[str, Any] | None) -> None:
    dead, host = await _dead_letters(lambda letter: letter.index_version == version)
    await _publish("reprocess-explained", reprocess_page(counts, version, swap, dead, host=host))


def reprocess_page(counts: Counts, version: str, swap: Mapping[str, Any] | None, dead: Sequence[DeadLetter], *, host: str) -> list[str]:
    serves = f"Index version {inert(version)} is built and serves nothing yet: `starsearch versions activate`, or run this with `activate`."
    if swap:
        before, after = inert(swap["before"].get("version", "")), inert(swap["after"].get("version", ""))
        serves = f"Index version {after} serves now instead of {before}, which is kept: `starsearch versions rollback` brings it back."
    return ["# Reprocess: done", serves, _counted(counts, None), _dead(dead, host)]


async def explain_reprocess_price(told: Mapping[str, Any]) -> None:
    rows = {
        "index version": inert(told["index_version"]),
        "items to embed": f"{told['items']:,}, in {told['embedding_requests']:,} requests ({told['done']:,} are done)",
        "items to summarize": f"{told['requests']:,}",
        "tokens": "unknown" if told["tokens"] is None else f"{told['tokens']:,}",
        "hours": "unknown" if told["digest_hours"] is None else f"{told['digest_hours']:,}",
        "cost": dollars(told["cost_usd"]),
    }
    await _publish("reprocess-price-explained", ["# What reprocessing would cost", table(rows), "Nothing was built."])


@asynccontextmanager
async def failure_explained(key: str, title: str, request: Request | None = None) -> AsyncIterator[None]:
    """Where the block fails, the page says what ended the run and how to go on; the error goes on to the run's state."""
    try:
        yield
    except Exception as error:
        await _publish(key, failure_page(title, request, error))
        raise


def failure_page(title: str, request: Request | None, error: Exception) -> list[str]:
    reason = inert(f"{type(error).__name__}: {error}", LONGEST_FAILURE)
    go_on = "What was stored and digested before stays. When the reason is gone, the same run again goes on from there."
    counted = "What is still missing: `starsearch status`; what failed for good: `starsearch dead-letters list`."
    return [f"# {title}: not done", _asked(request) if request else "", f"It ended with {reason}", go_on, counted]


async def _dead_letters(chosen: Callable[[DeadLetter], bool]) -> tuple[list[DeadLetter], str]:
    """Of the newest those that are meant, and the host of their items."""
    settings = read_settings()
    async with open_store(settings) as store:
        return [letter for letter in await find_dead_letters(store.pool, Choice(), limit=SHOWN) if chosen(letter)], settings.github_host


async def _publish(key: str, parts: Iterable[str]) -> None:
    with only_shown():
        await acreate_markdown_artifact(key=key, markdown="\n\n".join(part for part in parts if part), description="What happened")


def _asked(request: Request) -> str:
    kinds = " and ".join(KINDS[kind] for kind in request.kinds)
    if request.repositories:
        whose = f"{len(request.repositories):,} named repositories"
    else:
        whose = f"the top {request.top:,} of the followed list" if request.top else "all followed repositories"
    since, until = (f"{moment:%Y-%m-%d %H:%M}" for moment in (request.since, request.until))
    return f"Asked for: {kinds} of {whose}, updated since {since} and created before {until} UTC."


def _counted(counts: Counts, github: Usage | None) -> str:
    rows = {
        "items read": f"{counts.items:,}: {counts.inserted:,} new, {counts.updated:,} changed, {counts.unchanged:,} as they were",
        "summarized, embedded": f"{counts.summarized:,}, {counts.embedded:,}",
        "dead letters": f"{counts.dead_letters:,}",
        "requests to the chat engine": f"{counts.llm_requests:,}",
        "tokens": f"{counts.prompt_tokens:,} read, {counts.completion_tokens:,} written",
        "cost": dollars(counts.cost_usd),
    }
    if github:
        rows["GitHub"] = f"{github.requests:,} requests, {github.points:,} points"
    return table(rows)


def _not_read(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    shown = [f"- {inert(name)}: {inert(reason)}" for name, reason in list(failed.items())[:SHOWN]]
    more = [f"- and {len(failed) - SHOWN:,} more"] if len(failed) > SHOWN else []
    return "\n".join(["## Not read", "", *shown, *more, ""])


def _dead(letters: Sequence[DeadLetter], host: str) -> str:
    if not letters:
        return ""
    rows = [f"| {item_link(host, each.repo, each.number)} | {inert(each.stage)} | {inert(each.reason)} |" for each in letters]
    head = ["## Dead letters", "", "| item | stage | reason |", "|---|---|---|"]
    return "\n".join([*head, *rows, "", "The newest; all of them: `starsearch dead-letters list`."])


def table(rows: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def dollars(value: float | None) -> str:
    return "unknown: a model has no price, or nothing was digested yet" if value is None else f"${value:,.2f}"


def item_link(host: str, repo: str, number: int) -> str:
    """GitHub leads from an issue's address to a pull request of that number."""
    if not is_repository_name(repo):
        return inert(f"{repo}#{number}")
    return f"[`{repo}#{int(number)}`](https://{host}/{repo}/issues/{int(number)})"


def inert(text: object, longest: int = LONGEST) -> str:
    """As code, on one line, without what would end the code or a cell of a table."""
    line = " ".join(visible(str(text)).split()).replace("`", "'").replace("|", "¦")
    return f"`{line[:longest]}`" if line else "none"
