"""What a person sees of a run in the Prefect UI: one progress bar per shard, one table of counts per run.

The work is in the database whether it is shown or not, so a server that does not answer fails nothing here.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact

from starsearch.github.client import Usage
from starsearch.models import Counts
from starsearch.progress import Progress

Row = dict[str, Any]
UPDATE_SECONDS = 15.0  # an update costs the server 16 ms, so they are few, and one that tells nothing new is left out

log = logging.getLogger(__name__)


@contextmanager
def only_shown() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        log.warning("Prefect's server does not answer, so what this run did is not shown: %s", error or type(error).__name__)


@asynccontextmanager
async def progress_artifact(key: str, description: str) -> AsyncIterator[Progress]:
    """A progress callback whose last report appears as an artifact, every few seconds where it has changed, and at the end."""
    latest = {"percent": 0.0}
    shown: dict[str, UUID] = {}

    def report(_stage: str, done: int, total: int | None) -> None:
        latest["percent"] = min(100.0, 100 * done / total) if total else 0.0

    async def show() -> None:
        with only_shown():
            if key in shown:
                await aupdate_progress_artifact(shown[key], latest["percent"])
            else:
                shown[key] = await acreate_progress_artifact(progress=latest["percent"], key=key, description=description)

    async def publish() -> None:
        told = 0.0
        while True:
            await asyncio.sleep(UPDATE_SECONDS)
            if latest["percent"] != told:
                told = latest["percent"]
                await show()

    await show()
    publishing = asyncio.create_task(publish())
    try:
        yield report
        latest["percent"] = 100.0
    finally:
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing
        await show()


async def counts_table(key: str, counts: Counts, failed: Mapping[str, str], github: Usage | None = None) -> None:
    """`failed`: repositories that were not crawled, with the reason. `github`: what GitHub charged, where it was asked over GraphQL."""
    values: dict[str, Any] = counts.as_dict()
    if counts.cost_usd is None:
        values["cost_usd"] = "unknown: a model has no price"
    elif counts.embedded:
        values["usd_per_million_items"] = round(counts.cost_usd / counts.embedded * 1_000_000, 2)
    await _table(key, [*_rows(values), *_charged(github), *(_row(f"not crawled: {repo}", reason) for repo, reason in failed.items())])


async def values_table(key: str, values: Mapping[str, object], github: Usage | None) -> None:
    """What a stage did that is not about items, and what GitHub charged for it."""
    await _table(key, [*_rows(values), *_charged(github)])


def _charged(github: Usage | None) -> list[Row]:
    spent = github.as_dict() if github else {}
    queries = spent.pop("by_query", {})
    told = {f"GitHub: {name}": value for name, value in spent.items()}
    return _rows(told | {f"GitHub: requests of {query}": number for query, number in queries.items()})


def _rows(values: Mapping[str, object]) -> list[Row]:
    return [_row(name.replace("_", " "), value) for name, value in values.items()]


def _row(name: str, value: object) -> Row:
    return {"count": name, "value": value}


async def _table(key: str, rows: list[Row]) -> None:
    with only_shown():
        await acreate_table_artifact(table=rows, key=key, description="What this run did")
