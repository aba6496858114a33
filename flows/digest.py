"""digest: summarize, embed and store what is due. One shard; any number may run side by side."""

import asyncio
from typing import Any

from prefect import flow

from tasks.stages import digest_due, prepare, report


@flow(name="digest")
async def digest() -> dict[str, Any]:
    """Summarize and embed the items that it leases, until nothing is due. Safe to run again, to kill, and to run twice."""
    await prepare()
    counts = await digest_due()
    return (await report("digest-counts", [counts], {})).as_dict()


if __name__ == "__main__":
    print(asyncio.run(digest()))
