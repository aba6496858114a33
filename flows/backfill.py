"""backfill: by hand; a range of history, priced or read."""

import asyncio
import sys
from typing import Any

from prefect import flow

from starsearch.backfill import read_request
from tasks.digesting import digest_due
from tasks.stages import prepared, price_range, read_range, report


@flow(name="backfill")
async def backfill(
    since: str, until: str = "0d", repositories: list[str] | None = None, top: int | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Read a range of history, for the first time or again, and digest it after the live work. The same run again goes on.

    Args:
        since: updated on this day or later: 2026-03-01, or days back: 7d.
        until: created up to this day (its end); 0d is now.
        repositories: owner/name of each; none means the followed list.
        top: only the first so many of the followed list.
        dry_run: only tell what it would cost.
    """
    request = read_request(since, until, repositories or (), top)
    async with prepared():
        if dry_run:
            return await price_range(request)
        fetched, failed, github = await read_range(request)
        digested = await digest_due(backfill=True)
        return (await report("backfill-counts", [fetched, digested], failed, github)).as_dict()


if __name__ == "__main__":
    print(asyncio.run(backfill(sys.argv[1], repositories=sys.argv[2:] or None)))
