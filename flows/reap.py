"""reap: every ten minutes; end what looks alive and is dead, apart from every other flow, so that nothing else can stop it."""

import asyncio

from prefect import flow

from tasks.reaping import reap_jobs, reap_leases, reap_runs, report_reaped
from tasks.stages import prepared


@flow(name="reap")
async def reap() -> dict[str, int]:
    """End flow runs whose process is gone, free what dead workers leased, delete Jobs that nobody waits for. Safe at any time."""
    async with prepared():
        leases = await reap_leases()
        reaped = {"runs": await reap_runs(), "jobs": await reap_jobs(), **leases}
        await report_reaped(reaped)
        return reaped


if __name__ == "__main__":
    print(asyncio.run(reap()))
