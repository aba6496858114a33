"""The gate on summaries of real items: what benchmarks/gate.py measures holds."""

import pytest

from benchmarks import gate


@pytest.fixture(autouse=True)
def real_items(shared_data):
    return shared_data


def test_the_gate_catches_corrupted_summaries_and_lets_faithful_ones_through():
    figures = gate.figures()
    assert {figure.name for figure in figures} >= {"inference.gate.caught", "inference.gate.refused"}
    assert not [figure for figure in figures if not figure.holds]


def test_every_summary_has_its_item_and_two_hundred_are_corrupted_in_many_ways():
    assert gate.read_items().keys() == gate.read_summaries().keys()
    made = gate.corruptions()
    assert len(made) == len({wrong for _, _, wrong in made}) == gate.CORRUPTED
    assert min(sum(each == kind for _, each, _ in made) for kind in ("version", "number", "issue", "identifier", "invented")) >= 30
