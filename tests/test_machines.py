"""State machines beside small models: random histories of leases, crawls and index versions on a real PostgreSQL."""

import os
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, Phase, settings

from starsearch.store import digests, items, leases, turns
from tests.machines.leases import Leases
from tests.machines.place import Place, drive

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
MANY = 25
SEARCH = settings(
    max_examples=EXAMPLES * MANY // 150 or 1,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    print_blob=True,
)


@pytest.fixture
def place(dsn: str) -> Iterator[Place]:
    with Place(dsn).opened() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(digests, "RETRY_AFTER", timedelta(0))
    monkeypatch.setattr(turns, "POSTPONED", timedelta(0))


def test_leases(place):
    drive(Leases, place, SEARCH)


# each machine finds what would break the promise it is about


async def no_fence(connection, version_id, batch):
    ids = [item.id for item in batch.items]
    cursor = await connection.execute("SELECT item_id FROM due WHERE version_id = %s AND item_id = ANY (%s) FOR UPDATE", [version_id, ids])
    return {row[0] for row in await cursor.fetchall()}


async def done_whatever_the_text_is_now(connection, version_id, batch_of):
    ids = [digest.item.id for digest in batch_of]
    await connection.execute("DELETE FROM due WHERE version_id = %s AND item_id = ANY (%s)", [version_id, ids])


async def nothing_is_made_due(connection, ids, priority):
    pass


BROKEN_LEASES = [
    (digests, "_held", no_fence),
    (leases, "CLAIM", leases.CLAIM.replace("AND due_at <= now()", "")),  # what others hold
    (leases, "CLAIM", leases.CLAIM.replace("%(worker)s", "%(worker)s + 1")),  # in another's name
    (digests, "_end_lease", done_whatever_the_text_is_now),
    (items, "_make_due", nothing_is_made_due),
]


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN_LEASES)
def test_broken_leases_are_found(place, monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    finds(Leases, place)


def finds(machine, place):
    """Among as many examples as a run without a fault has."""
    with pytest.raises(AssertionError):
        drive(machine, place, settings(SEARCH, phases=[Phase.generate], max_examples=MANY, derandomize=True))
