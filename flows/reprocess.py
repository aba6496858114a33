"""reprocess: by hand; another model, prompt or vector length, built beside the version that serves."""

import asyncio
from typing import Any

from prefect import flow

from starsearch.models import GATE_MARGIN
from tasks.stages import activate_version, build_version, prepared, price_version, report


@flow(name="reprocess")
async def reprocess(
    dry_run: bool = False, activate: bool = False, questions: str | None = None, margin: float = GATE_MARGIN
) -> dict[str, Any]:
    """Build the version that the worker's settings describe. Killed or cancelled, the next run goes on with what is due.

    Args:
        dry_run: tell only what it would cost.
        activate: let it serve when it is built, if the gate does not object; the version before is kept for a rollback.
        questions: a JSON Lines file (question, url) for the gate; none means titles of stored items.
        margin: by how much recall@10 may fall.
    """
    async with prepared():
        if dry_run:
            return await price_version()
        counts, version = await build_version()
        done = (await report("reprocess-counts", [counts], {})).as_dict() | {"index_version": version}
        if activate:
            done["swap"] = await activate_version(version, questions, margin)
        return done


if __name__ == "__main__":
    print(asyncio.run(reprocess()))
