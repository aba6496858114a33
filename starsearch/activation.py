"""Let another index version serve: the gate, the swap, and the way back.

The gate refuses what would lose items or find less. The swap is one transaction: every question is answered by one version or the
other, and none waits. The version that served stays, and what is stored goes to both until it is dropped, so a rollback loses nothing.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from starsearch.compare import Measured, Questions, choose_questions, measure
from starsearch.engines import Engines
from starsearch.errors import GateRefused, PreconditionMissing, StarsearchError
from starsearch.models import GATE_MARGIN, IndexVersion
from starsearch.pipeline import Lane, Run, digest_lanes, drain
from starsearch.serving import open_version
from starsearch.settings import Settings
from starsearch.storage import Store
from starsearch.store.swap import WAITING, held, lagging, missing, swap
from starsearch.store.versions import active_version, build_index, find_version, newest_shadow, served_before

ANN_FLOOR = 0.95
HOLD_SECONDS = 60.0  # how long batches of the serving version may wait for the new one to catch up
HOLDS = 3


@dataclass(frozen=True)
class Swap:
    """What an activation or a rollback did."""

    before: dict[str, Any]
    after: dict[str, Any]
    questions: str  # where they are from; none for a rollback
    asked: int
    objections: list[str]  # that it was forced against

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def objections(before: Measured, after: Measured, *, margin: float) -> list[str]:
    """Every reason why `after` should not serve instead of `before`; none: it may."""
    reasons = [f"{count:,} items would leave search ({reason})" for reason, count in _lost(after.missing).items()]
    reasons += [
        f"recall@10 by {mode} search falls from {recall:.2f} to {after.recall_at_10[mode]:.2f}, more than {margin:.2f}"
        for mode, recall in before.recall_at_10.items()
        if after.recall_at_10[mode] < recall - margin
    ]
    if after.ann_recall < ANN_FLOOR:
        reasons.append(f"its index finds {after.ann_recall:.2f} of the nearest vectors, less than {ANN_FLOOR}")
    return reasons


def _lost(missing: Mapping[str, int]) -> dict[str, int]:
    """What is waiting arrived a moment ago; the swap does not happen before it is digested."""
    return {reason: count for reason, count in missing.items() if reason != WAITING}


async def activate(
    settings: Settings,
    store: Store,
    run: Run,
    *,
    name: str | None = None,
    questions: Path | None = None,
    margin: float = GATE_MARGIN,
    force: bool = False,
) -> Swap:
    """Let the version `name` (its first characters; None: the newest that never served) serve. The gate asks `questions`.

    Raises GateRefused with every reason, and changes nothing then.
    """
    version = await (find_version(store.pool, name) if name else newest_shadow(store.pool))
    serving = await _serving(store, version)
    async with open_version(settings, version) as target:
        await _complete(settings, store, target, run)
        asked = await choose_questions(store, questions)
        after = await measure(settings, store, target, serving, asked)
        told, reasons = await _measure_serving(settings, store, serving, after, asked, margin=margin)
        if reasons and not force:
            raise GateRefused(f"index version {version.short} does not serve: {'; '.join(reasons)}")
        done = Swap(told, after.as_dict(), asked.source, len(asked.asked), reasons)
        await _swap(settings, store, target, serving, run, done, lost=sum(_lost(after.missing).values()))
    return done


async def roll_back(settings: Settings, store: Store, run: Run) -> Swap:
    """Let the version that served before serve again, whatever it finds: it catches up first."""
    version = await served_before(store.pool)
    serving = await _serving(store, version)
    async with open_version(settings, version) as target:
        await _complete(settings, store, target, run)
        lost = _lost(await missing(store.pool, version, serving))
        reasons = [f"{count:,} items left search ({reason})" for reason, count in lost.items()]
        done = Swap({"version": serving.short}, {"version": version.short, "missing": lost}, "", 0, reasons)
        await _swap(settings, store, target, serving, run, done, lost=sum(lost.values()))
    return done


async def _serving(store: Store, version: IndexVersion) -> IndexVersion:
    serving = await active_version(store.pool)
    if serving is None or serving.id == version.id:
        raise StarsearchError(f"index version {version.short} serves already")
    return serving


async def _measure_serving(
    settings: Settings, store: Store, serving: IndexVersion, after: Measured, asked: Questions, *, margin: float
) -> tuple[dict[str, Any], list[str]]:
    """What the serving version finds, and the gate's objections to the other one."""
    try:
        async with open_version(settings, serving) as engines:
            before = await measure(settings, store, engines, serving, asked)
    except PreconditionMissing as error:
        return {"version": serving.short}, [f"the version that serves cannot be measured beside it ({error})"]
    return before.as_dict(), objections(before, after, margin=margin)


async def _complete(settings: Settings, store: Store, target: Engines, run: Run) -> None:
    """Digest everything that is due in a version, bulk work included, and have its index."""
    await digest_lanes(store, [Lane(target)], run, workers=settings.workers, concurrency=settings.concurrency)
    await build_index(store.dsn, target.version)


async def _swap(settings: Settings, store: Store, target: Engines, serving: IndexVersion, run: Run, done: Swap, *, lost: int) -> None:
    """Hold the serving version still, let the other one catch up with the last items, and swap. `lost`: what may be missing."""
    for _ in range(HOLDS):
        try:
            async with asyncio.timeout(HOLD_SECONDS), held(store.pool, serving) as connection:
                while (lag := await lagging(store.pool, target.version, serving))[0]:
                    await drain(store, [Lane(target)], run, workers=settings.workers, concurrency=settings.concurrency)
                if lag[1] > lost:
                    raise GateRefused(f"{lag[1] - lost:,} items became dead letters of index version {target.version.short} meanwhile")
                await swap(connection, target.version, serving, done.as_dict())
                return
        except TimeoutError:
            continue
    raise StarsearchError("what is stored comes faster than it is digested: try again when less is due; nothing was changed")
