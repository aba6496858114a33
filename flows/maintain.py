"""maintain: daily; prove that nothing is missing, that search still finds, and look again at what GitHub does not signal."""

import asyncio
from typing import Any

from prefect import flow

from tasks.stages import check_open_items, check_store, monitor_recall, prepared


@flow(name="maintain")
async def maintain(items: int = 150_000, questions: int = 20) -> dict[str, Any]:
    """Count every item, measure the recall of search, then check open items in rotation: the deleted leave search, changed ones are read.

    Needs a GitHub credential for the last part only, and does it last.

    Args:
        items: how many open items; 100 cost one point of GitHub's, and a million are seen within a week at the default.
        questions: how many are asked with and without the index; each compares every vector four times.
    """
    async with prepared():
        store = await check_store()
        recall = await monitor_recall(questions)
        return {"store": store, "recall": recall, **await check_open_items(items)}


if __name__ == "__main__":
    print(asyncio.run(maintain()))
