"""What another try cannot cure is said at once; the rest is tried again."""

import pytest
from prefect.states import Failed

from starsearch.errors import (
    AnswerUnusable,
    BudgetSpent,
    DatabaseUnavailable,
    EngineFailing,
    EngineUnavailable,
    Paused,
    PreconditionMissing,
    RateLimited,
    ShardsFailed,
    SourceUnavailable,
    TooMuch,
    VersionMismatch,
)
from tasks import digesting, reaping, stages
from tasks.retries import may_pass


@pytest.mark.parametrize(
    "error",
    [DatabaseUnavailable, EngineUnavailable, SourceUnavailable, AnswerUnusable, EngineFailing, RateLimited, OSError, None],
)
def test_what_may_pass_is_tried_again(error):
    assert may_pass(None, None, Failed(data=error and error("away")))


@pytest.mark.parametrize("error", [PreconditionMissing, Paused, BudgetSpent, VersionMismatch, TooMuch, ShardsFailed])
def test_what_lasts_is_not(error):
    assert not may_pass(None, None, Failed(data=error("nothing to read")))


def test_every_task_that_is_tried_again_asks_whether_that_makes_sense():
    found = [each for module in (stages, digesting, reaping) for each in vars(module).values() if getattr(each, "retries", 0)]
    assert len(found) > 8
    assert all(each.retry_condition_fn is may_pass for each in found)
