"""maintain: daily; look again at what GitHub does not signal."""

import asyncio
from typing import Any

from prefect import flow

from tasks.stages import check_open_items, prepare


@flow(name="maintain")
async def maintain(items: int = 150_000) -> dict[str, Any]:
    """Check the next open items in rotation: the deleted leave search, changed comments are read again.

    Args:
        items: how many; 100 cost one point of GitHub's, and a million are seen within a week at the default.
    """
    await prepare()
    return await check_open_items(items)


if __name__ == "__main__":
    print(asyncio.run(maintain()))
