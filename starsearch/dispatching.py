"""Work through what is due by shards: cut, start, watch the database, start again what did not finish.

Who starts a shard, and who looks up whether it still will begin, is handed in: Prefect, in tasks/digesting.py.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from starsearch.errors import ShardsFailed
from starsearch.logs import about
from starsearch.progress import Progress
from starsearch.storage import Store
from starsearch.store.shards import NOT_STARTED, Outlook, Shard, give_up, look, plan, told, waiting

LOOK_SECONDS = 2.0  # at the database
ASK_EVERY = 5  # looks: how seldom Prefect's server is asked after shards that have not begun
REPORT_SECONDS = 30.0
WARN_SECONDS = 60.0  # shards that were started and have not begun

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prospect:
    """What is said of a shard that has not begun. lost: it will not begin any more."""

    said: str
    lost: bool


@dataclass(frozen=True)
class Starter:
    """start: starts a shard, or finds the flow run that was started with its key; None where Prefect does not answer now.

    prospects: of these flow runs, as far as anything is known.
    """

    start: Callable[[Shard], Awaitable[UUID | None]]
    prospects: Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, Prospect]]]


@dataclass(frozen=True)
class Cut:
    """How the work is cut: items a shard leases, shards at work at once, and the priority of what is waited for."""

    size: int
    most: int
    priority: int


async def digest_by_shards(
    store: Store, starter: Starter, parent: UUID, version_id: int, cut: Cut, *, seconds: float | None, progress: Progress
) -> None:
    """Until nothing of that priority, or more urgent, is due or waits for another try.

    Raises ShardsFailed where shards fail again and again, or `seconds` are over; shards at work go on, and the next run counts on them.
    """
    began, most_due, warned, said = time.monotonic(), 0, False, ""
    for looks in itertools.count(1):
        await store.brakes.check(parent)
        for shard in await plan(store.pool, parent, version_id, priority=cut.priority, size=cut.size, most=cut.most):
            flow_run = await starter.start(shard)
            if flow_run is None:
                break
            await told(store.pool, shard, flow_run)
            with about(shard=shard.id):
                log.info("shard %d of up to %d items, attempt %d: flow run %s", shard.number, shard.size, shard.attempt, flow_run)
        seen = await look(store.pool, parent, version_id, priority=cut.priority)
        if not seen.due and not seen.retry_at:
            await _wait_for_reports(store, parent, version_id, cut)
            return
        most_due = max(most_due, seen.due)
        progress("digest", most_due - seen.due, most_due)
        _raise_where_it_ends(seen, seconds and seconds - (time.monotonic() - began), said)
        if not warned and seen.open and not seen.begun and time.monotonic() - began > WARN_SECONDS:
            warned = True
            log.warning(
                "%d shards were started and none has begun (Prefect says: %s): does a worker poll their pool (prefect worker start --pool "
                "starsearch-shards)? Does the cluster have room for their Jobs?", seen.open, said or "nothing"
            )  # fmt: skip
        await asyncio.sleep(_nap(seen))
        if looks % ASK_EVERY == 0:
            said = await _ask_after_those_that_wait(store, starter, parent) or said


async def _ask_after_those_that_wait(store: Store, starter: Starter, parent: UUID) -> str:
    """Give up those that will not begin; returns what is said of the others."""
    not_begun = await waiting(store.pool, parent)
    prospects = await starter.prospects(list(not_begun))
    for flow_run, prospect in prospects.items():
        if prospect.lost:
            with about(shard=not_begun[flow_run]):
                log.warning("a shard will not begin (flow run %s): %s", flow_run, prospect.said)
            await give_up(store.pool, not_begun[flow_run], prospect.said)
    return "; ".join(sorted({prospect.said for prospect in prospects.values() if not prospect.lost}))


async def _wait_for_reports(store: Store, parent: UUID, version_id: int, cut: Cut) -> None:
    """So that the parent's counts are whole. A shard that goes on in another version's lane is not waited for."""
    for _ in range(int(REPORT_SECONDS / LOOK_SECONDS)):
        if not (await look(store.pool, parent, version_id, priority=cut.priority)).reporting:
            return
        await asyncio.sleep(LOOK_SECONDS)


def _raise_where_it_ends(seen: Outlook, seconds_left: float | None, said: str) -> None:
    """`said`: of the last that waited in vain."""
    failures = "; ".join(
        f"{failure}; Prefect said: {said}" if failure == NOT_STARTED and said else failure
        for failure in dict.fromkeys(seen.worn_out or seen.failures)
    )
    if seen.worn_out and not seen.open:
        raise ShardsFailed(f"shards failed again and again ({failures}): {seen.due} items stay due, and the next run goes on")
    if seconds_left is not None and seconds_left <= 0:
        reason = f", others failed ({failures})" if failures else ""
        raise ShardsFailed(
            f"the time is over: {seen.due} items are still due, {seen.open} shards go on{reason}; the next run takes the rest"
        )


def _nap(seen: Outlook) -> float:
    if seen.due or not seen.retry_at:
        return LOOK_SECONDS
    return max(LOOK_SECONDS, min(30.0, (seen.retry_at - datetime.now(UTC)).total_seconds()))
