"""rank: daily; which repositories are followed."""

import asyncio
import sys
from typing import Any

from prefect import flow

from tasks.stages import prepared, refresh_ranking


@flow(name="rank")
async def rank(top: int | None = None, file: str | None = None) -> dict[str, Any]:
    """Refresh the followed list; the next crawl sweeps those that came.

    Args:
        top: how many repositories to follow; none means STARSEARCH_TOP.
        file: a CSV file with the columns full_name and stars, instead of GitHub's search.
    """
    async with prepared():
        return await refresh_ranking(top, file)


if __name__ == "__main__":
    print(asyncio.run(rank(file=sys.argv[1] if sys.argv[1:] else None)))
