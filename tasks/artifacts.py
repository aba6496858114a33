"""What a person sees of a run in the Prefect UI: one progress bar per shard, one table of counts per run."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect.artifacts import acreate_progress_artifact, acreate_table_artifact, aupdate_progress_artifact

from starsearch.models import Counts
from starsearch.progress import Progress

UPDATE_SECONDS = 3.0  # an update costs the server 16 ms


@asynccontextmanager
async def progress_artifact(key: str, description: str) -> AsyncIterator[Progress]:
    """A progress callback whose last report appears as an artifact every few seconds, and at the end."""
    latest = {"percent": 0.0}
    artifact = await acreate_progress_artifact(progress=0.0, key=key, description=description)

    def report(_stage: str, done: int, total: int | None) -> None:
        latest["percent"] = min(100.0, 100 * done / total) if total else 0.0

    async def publish() -> None:
        while True:
            await asyncio.sleep(UPDATE_SECONDS)
            await aupdate_progress_artifact(artifact, latest["percent"])

    publishing = asyncio.create_task(publish())
    try:
        yield report
        latest["percent"] = 100.0
    finally:
        publishing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await publishing
        await aupdate_progress_artifact(artifact, latest["percent"])


async def counts_table(key: str, counts: Counts, failed: dict[str, str]) -> None:
    values: dict[str, Any] = counts.as_dict()
    if counts.cost_usd is None:
        values["cost_usd"] = "unknown: a model has no price"
    elif counts.embedded:
        values["usd_per_million_items"] = round(counts.cost_usd / counts.embedded * 1_000_000, 2)
    rows = [{"count": name.replace("_", " "), "value": value} for name, value in values.items()]
    rows += [{"count": f"not crawled: {repo}", "value": reason} for repo, reason in failed.items()]
    await acreate_table_artifact(table=rows, key=key, description="What this run did")
