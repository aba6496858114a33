"""digest: summarize, embed and store what is due. One shard; any number may run side by side."""

import asyncio
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from tasks.digesting import digest_here, digest_shard
from tasks.stages import prepared, report


@flow(name="digest")
async def digest(
    items: Annotated[int | None, Field(ge=1, description="At most so many; none means all that is due.")] = None,
    shard: Annotated[int | None, Field(description="Which of its parent's shards this is; none for a run by hand.")] = None,
) -> dict[str, Any]:
    """Summarize and embed the items that it leases. Safe to run again, to kill, and to run twice."""
    if items:
        return (await digest_shard(shard, items)).as_dict()
    async with prepared():
        return (await report("digest-counts", [await digest_here()], {})).as_dict()


if __name__ == "__main__":
    print(asyncio.run(digest()))
