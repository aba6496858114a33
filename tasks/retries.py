"""Which failures another try may cure: a database that restarts, an engine that is away. Whoever set something wrong hears it at once.

What ran out of time is not begun again either: it would take as long once more, and the next hourly run goes on where it stopped.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun

from starsearch.errors import (
    DatabaseUnavailable,
    EngineUnavailable,
    GateRefused,
    NotStored,
    OutOfTime,
    PreconditionMissing,
    QueryRefused,
    ShardsFailed,
    SourceUnavailable,
    TooMuch,
)

PASSING = (DatabaseUnavailable, EngineUnavailable, SourceUnavailable)  # of the preconditions
LASTING = (PreconditionMissing, TooMuch, NotStored, GateRefused, QueryRefused, ShardsFailed, OutOfTime)


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Raises OutOfTime where it takes longer: once, so that what cleans up can still wait.

    Prefect's own timeout_seconds cancels whatever is waited for from then on, the end of the run and of its leases too.
    """
    try:
        async with asyncio.timeout(seconds) as timer:
            yield
    except TimeoutError as error:
        if timer.expired():
            raise OutOfTime(f"not done within {seconds:,.0f} s: the next run goes on where this one stopped") from error
        raise


def may_pass(_task: "Task[..., Any]", _run: TaskRun, state: "State[Any]") -> bool:
    """Of a task that failed. For `retry_condition_fn`."""
    error = state.data
    return isinstance(error, PASSING) or not isinstance(error, LASTING)
