"""crawl: hourly; fetch what changed, then digest it."""

import asyncio
import logging
import sys
from typing import Any

from prefect import flow

from starsearch.errors import Backlog, OutOfTime, RateLimited, SourceUnavailable, StarsearchError
from tasks.digesting import digest_due
from tasks.stages import fetch, prepared, report

log = logging.getLogger(__name__)


@flow(name="crawl")
async def crawl(repositories: list[str] | None = None, newest: int | None = None) -> dict[str, Any]:
    """Crawl now, and summarize and embed what changed.

    Args:
        repositories: owner/name of each; none means those of STARSEARCH_REPOSITORIES, else the followed list.
        newest: take only the newest so many items of each, whatever their age, instead of all since the last crawl.
    """
    async with prepared():
        try:
            fetched, failed, github = await fetch(repositories, newest)
        except (OutOfTime, RateLimited, SourceUnavailable, Backlog):
            try:
                await digest_due()  # what came in time, and what was left over; the next run fetches the rest
            except StarsearchError as error:
                log.warning("what is due could not be digested either: %s", error)
            raise
        digested = await digest_due()
        return (await report("crawl-counts", [fetched, digested], failed, github)).as_dict()


if __name__ == "__main__":
    print(asyncio.run(crawl(sys.argv[1:] or None)))
