"""reprocess: by hand, from the form in Prefect's UI; another model, prompt or vector length, built beside the version that serves."""

import asyncio
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from starsearch.backfill import Limits
from starsearch.models import GATE_MARGIN
from tasks.explanations import explain_reprocess, failure_explained
from tasks.stages import activate_version, agree_to_version, build_version, prepared, price_version, report


@flow(name="reprocess")
async def reprocess(
    dry_run: bool = False,
    activate: bool = False,
    questions: Annotated[str | None, Field(pattern=r"\.jsonl$")] = None,
    margin: Annotated[float, Field(ge=0, le=1)] = GATE_MARGIN,
    max_items: Annotated[int | None, Field(ge=1)] = None,
    max_usd: Annotated[float | None, Field(ge=0)] = None,
) -> dict[str, Any]:
    """Build the version that the worker's settings describe. Killed or cancelled, the next run goes on with what is due.

    Args:
        dry_run: only tell what it would cost; nothing is built.
        activate: let it serve when it is built, if the gate does not object; the version before is kept for a rollback.
        questions: a JSON Lines file (question, url) that the worker can read, for the gate; none means titles of stored items.
        margin: by how much recall@10 may fall before the gate objects.
        max_items: do not begin where more items than this need a new vector.
        max_usd: do not begin where it is expected to cost more dollars.
    """
    async with prepared(), failure_explained("reprocess-explained", "Reprocess"):
        if dry_run:
            return await price_version()
        await agree_to_version(Limits(max_items, max_usd))
        counts, version = await build_version()
        counts = await report("reprocess-counts", [counts], {})
        swap = await activate_version(version, questions, margin) if activate else None
        await explain_reprocess(counts, version, swap)
        return counts.as_dict() | {"index_version": version} | ({"swap": swap} if swap else {})


if __name__ == "__main__":
    print(asyncio.run(reprocess()))
