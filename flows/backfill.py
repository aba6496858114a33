"""backfill: by hand, from the form in Prefect's UI; a range of history, priced or read."""

import asyncio
import sys
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from starsearch.backfill import Limits, read_request
from starsearch.github.client import Usage
from starsearch.models import ItemType
from tasks.digesting import digest_due
from tasks.explanations import explain_backfill, failure_explained
from tasks.stages import agree, prepared, price_range, read_range, report

# What Prefect's form shows of a parameter is its line under Args; what a Field says of it is dropped.
Day = Annotated[str, Field(pattern=r"^(\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?|\d{1,5}d)$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}$")]
BOTH: list[ItemType] = ["issue", "pull_request"]


@flow(name="backfill")
async def backfill(
    since: Day,
    until: Day = "0d",
    repositories: Annotated[list[Name] | None, Field(min_length=1, max_length=1_000)] = None,
    top: Annotated[int | None, Field(ge=1, le=1_000_000)] = None,
    dry_run: bool = False,
    kinds: Annotated[list[ItemType], Field(min_length=1)] = BOTH,
    stages: Literal["store and digest", "store only"] = "store and digest",
    max_items: Annotated[int | None, Field(ge=1)] = None,
    max_usd: Annotated[float | None, Field(ge=0)] = None,
    confirmed: bool = False,
) -> dict[str, Any]:
    """Read a range of history, for the first time or again, and digest it after the live work. The same run again goes on.

    Args:
        since: updated on this day or later: 2026-03-01, or days back: 7d.
        until: created up to this day (its end): 2026-03-31, or days back; 0d is now.
        repositories: owner/name of each. None: the followed list, or the top of it.
        top: the first so many of the followed list, by stars; not together with repositories.
        dry_run: only tell what it would cost; nothing is read.
        kinds: issues, pull requests, or both.
        stages: store only leaves it to a later backfill, or digest/shard, to summarize and embed what this one stores.
        max_items: do not begin where more items than this are expected.
        max_usd: do not begin where digesting is expected to cost more dollars.
        confirmed: a range of more than a year begins only with this; without it, it is priced and refused.
    """
    began, request = datetime.now(UTC), read_request(since, until, repositories or (), top, kinds)
    digested = stages == "store and digest"
    async with prepared(), failure_explained("backfill-explained", "Backfill", request):
        if dry_run:
            return await price_range(request)
        await agree(request, Limits(max_items, max_usd, confirmed), digested=digested)
        parts, github, whole = [], Usage(), False
        while not whole:
            (fetched, failed, charged), whole = await read_range(request, in_turns=digested)
            parts += [fetched, await digest_due(backfill=True)] if digested else [fetched]
            github.add(charged)
        counts = await report("backfill-counts", parts, failed, github)
        await explain_backfill(request, counts, failed, github, since=began, digested=digested)
        return counts.as_dict()


if __name__ == "__main__":
    print(asyncio.run(backfill(sys.argv[1], repositories=sys.argv[2:] or None)))
