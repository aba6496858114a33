"""Create what prefect.yaml refers to on a Prefect server: the two work pools. Safe to run again.

Usage: python deployments/set_up.py [--kubernetes], with PREFECT_API_URL set, before `prefect deploy --all` (or both: make deploy).
Pools of processes on this machine, or of Kubernetes Jobs made from work_pools/*.json; those are kept as the files say.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists

import tasks  # noqa: F401  its defaults must be set before Prefect is imported

POOLS = ("starsearch", "starsearch-shards")
TEMPLATES = Path(__file__).parent / "work_pools"


async def set_up(*, kubernetes: bool = False) -> list[str]:
    """What was done. Raises SystemExit where a pool of that name is of the other type: that would move its runs elsewhere."""
    done = []
    async with get_client() as client:
        for name in POOLS:
            template = json.loads((TEMPLATES / f"{name}.json").read_text("utf-8")) if kubernetes else None
            done += await _pool(client, name, "kubernetes" if kubernetes else "process", template)
    return done


async def _pool(client: PrefectClient, name: str, kind: str, template: dict[str, Any] | None) -> list[str]:
    wanted = {"base_job_template": template} if template else {}
    try:
        await client.create_work_pool(WorkPoolCreate(name=name, type=kind, **wanted))
    except ObjectAlreadyExists:
        existing = await client.read_work_pool(name)
        if existing.type != kind:
            sys.exit(f"work pool {name} is of type {existing.type}, not {kind}: delete it first (prefect work-pool delete {name})")
        if template is None or existing.base_job_template == template:
            return []
        await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))
        return [f"{name} updated"]
    return [f"{name} created"]


if __name__ == "__main__":
    if set(sys.argv[1:]) - {"--kubernetes"}:
        sys.exit("usage: python deployments/set_up.py [--kubernetes]")
    pools = asyncio.run(set_up(kubernetes="--kubernetes" in sys.argv))
    sys.stdout.write(f"work pools: {', '.join(pools) or 'as they should be'}\n")
