"""Which failures another try may cure: a database that restarts, an engine that is away. Whoever set something wrong hears it at once.

What ran out of time is not begun again either: it would take as long once more, and the next hourly run goes on where it stopped.
"""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.task_engine import TaskRunTimeoutError

from starsearch.errors import (
    DatabaseUnavailable,
    EngineUnavailable,
    GateRefused,
    NotStored,
    PreconditionMissing,
    QueryRefused,
    ShardsFailed,
    SourceUnavailable,
    TooMuch,
)

PASSING = (DatabaseUnavailable, EngineUnavailable, SourceUnavailable)  # of the preconditions
LASTING = (PreconditionMissing, TooMuch, NotStored, GateRefused, QueryRefused, ShardsFailed, TaskRunTimeoutError)


def may_pass(_task: "Task[..., Any]", _run: TaskRun, state: "State[Any]") -> bool:
    """Of a task that failed. For `retry_condition_fn`."""
    error = state.data
    return isinstance(error, PASSING) or not isinstance(error, LASTING)
