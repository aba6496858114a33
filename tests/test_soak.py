"""What `make soak` says of its rounds: each figure that grows is told, and a pool that renews its connections is not a leak."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.soak import WATCHED, Round, verdicts

FLAT = Round(
    digested=0,
    seconds=20.0,
    runner_cpu=7.0,
    runner_mb=220.0,
    runner_files=44,
    server_mb=138.0,
    server_files=11,
    connections=4,
    database_mb=0.0,
    search_ms=40.0,
    searches=20,
    failed=0,
)
ROUNDS = [replace(FLAT, digested=5_000 * number, database_mb=28.0 * number) for number in range(1, 101)]


def missed(rounds: Sequence[Round]) -> list[str]:
    return [what for what, holds in verdicts(rounds).items() if not holds]


def test_flat_rounds_hold() -> None:
    assert missed(ROUNDS) == []


@pytest.mark.parametrize("figure", [*WATCHED, "database_mb"])
def test_what_grows_is_told(figure: str) -> None:
    grown = [replace(each, **{figure: getattr(each, figure) * (1 + number / 100)}) for number, each in enumerate(ROUNDS)]
    (told,) = missed(grown)
    assert told.split(":")[0] in (figure, figure.removesuffix("_mb"))


def test_connections_that_come_back_are_no_leak() -> None:
    renewed = [replace(each, connections=6) if 85 <= number < 98 else each for number, each in enumerate(ROUNDS)]
    assert missed(renewed) == []


def test_one_failed_question_is_told() -> None:
    assert missed([*ROUNDS[:-1], replace(ROUNDS[-1], failed=1)]) == ["2,000 questions answered, 1 failed"]


def test_a_few_rounds_tell_nothing_of_growth() -> None:
    (told,) = missed(ROUNDS[:9])
    assert told.startswith("9 rounds")
