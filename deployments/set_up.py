"""Create what prefect.yaml refers to on a Prefect server: the two work pools. Safe to run again.

Usage: python deployments/set_up.py, with PREFECT_API_URL set, before `prefect deploy --all` (or both: make deploy).
"""

import asyncio
import sys

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists

import tasks  # noqa: F401  its defaults must be set before Prefect is imported

POOLS = ("starsearch", "starsearch-shards")


async def set_up() -> list[str]:
    """The pools created now; those that exist are left as they are."""
    created = []
    async with get_client() as client:
        for name in POOLS:
            try:
                await client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            except ObjectAlreadyExists:
                continue
            created.append(name)
    return created


if __name__ == "__main__":
    pools = asyncio.run(set_up())
    sys.stdout.write(f"work pools created: {', '.join(pools) or 'none, they exist'}\n")
