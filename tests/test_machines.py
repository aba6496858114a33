"""State machines beside small models: random histories of leases, crawls and index versions on a real PostgreSQL."""

import os
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, settings

from starsearch import activation, crawling, cycle, fetching
from starsearch.store import digests, items, leases, repository_leases, sweeps, turns, versions
from tests.machines.crawls import Crawls
from tests.machines.leases import Leases
from tests.machines.place import Place, drive
from tests.machines.versions import StandIns, Versions

MANY = 25  # examples; a broken machine gets no more
FUZZED = int(os.environ.get("FUZZ_EXAMPLES", "0")) // 50  # an example is 25 steps on PostgreSQL
SEARCH = settings(
    max_examples=FUZZED or MANY,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize=not FUZZED,
    print_blob=True,
)
FEWER = settings(SEARCH, max_examples=(FUZZED or MANY) * 2 // 5)  # where a step is a crawl, or an index


@pytest.fixture
def place(dsn: str) -> Iterator[Place]:
    with Place(dsn).opened() as opened:
        yield opened


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(leases, "PING_SECONDS", 86_400.0)  # who lost its session comes back when a rule says so
    monkeypatch.setattr(digests, "RETRY_AFTER", timedelta(0))
    monkeypatch.setattr(turns, "POSTPONED", timedelta(0))


@pytest.fixture
def small_pages(monkeypatch, no_naps):
    monkeypatch.setattr(crawling, "Cycle", partial(cycle.Cycle, newest=2))
    monkeypatch.setattr(cycle, "PAGE_SIZES", (2, 1))


@pytest.fixture
def no_engines(monkeypatch):
    for name in ("open_version", "digest_lanes", "drain", "choose_questions", "measure"):
        monkeypatch.setattr(activation, name, getattr(StandIns, name))


def test_leases(place):
    drive(Leases, place, SEARCH)


def test_crawls(place, small_pages):
    drive(Crawls, place, FEWER)


def test_versions(place, no_engines):
    drive(Versions, place, FEWER)


def test_what_is_found_by_an_older_text_is_waited_for_as_well(place, no_engines):
    """Fuzzing found it: no longer dead there, not digested as it is here; search lost it until it was digested."""
    history = Versions(place)
    history.begin({1, 2})
    history.spoil(0, 0)  # the new version's engine cannot digest the text that both items have
    history.spoil(1, 3)  # nor the serving one's what the first item's becomes meanwhile
    history.activate(0, True, {1})
    assert history.model.serving == 1
    assert history.model.digests.keys() >= {(1, 1)}


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


async def everybodys_leases(pool):
    async with pool.connection() as connection:
        return (await connection.execute("UPDATE repository SET lease_token = NULL WHERE lease_token IS NOT NULL")).rowcount


async def end_anybodys(connection, repositories, *, at):
    ids = [each.id for each in repositories]
    await connection.execute("UPDATE repository SET lease_token = NULL, released_at = now() WHERE id = ANY (%s)", [ids])
    return len(ids)


async def advance_to_the_end(self, connection, marks):
    reached = [sweeps.Reached(mark.repository.id, mark.kind, mark.high_water, self._github.now) for mark in marks]
    await sweeps.advance(connection, reached)


async def no_failure(connection, host, failures):
    return [sweeps.FailedFetch(failure.node_id, "a/b", 1, 1, True, failure.reason, failure.detail) for failure in failures]


BROKEN_CRAWLS = [
    (cycle.Mark, "done_without", lambda mark, nodes: mark.listed),  # before the text of its items is stored
    (cycle.Cycle, "_advance", advance_to_the_end),  # to when the list was read, not to when reading began
    (fetching, "record_failures", no_failure),  # a fetch that failed, taken for one that is over
    (repository_leases, "release_dead_sweeps", everybodys_leases),
    (repository_leases, "end_leases", end_anybodys),
]


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN_CRAWLS)
def test_broken_crawls_are_found(place, small_pages, monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    finds(Crawls, place)


async def nothing_lags(pool, version, serving):
    return 0, 0


async def only_retired(pool, version):
    async with pool.connection() as connection:
        await connection.execute("UPDATE index_version SET status = 'retired' WHERE id = %s", [version.id])


async def both_serve_in_turn(connection, version, serving, gate):
    """As if the swap were two transactions, and the second one failed."""
    await connection.execute("UPDATE index_version SET status = 'shadow' WHERE id = %s", [serving.id])


async def due_where_it_serves(connection, ids, priority):
    await connection.execute(
        "INSERT INTO due (version_id, item_id) SELECT v.id, i FROM index_version v, unnest(%s::bigint[]) AS i WHERE status = 'active' "
        "ON CONFLICT DO NOTHING",
        [ids],
    )


BROKEN_VERSIONS = [
    (activation, "lagging", nothing_lags),  # the swap does not wait for what came while the gate measured
    (activation, "swap", both_serve_in_turn),
    (items, "_make_due", due_where_it_serves),  # so that whoever rolls back finds old texts
    (versions, "drop_version", only_retired),
]


@pytest.mark.parametrize(("module", "name", "broken"), BROKEN_VERSIONS)
def test_broken_versions_are_found(place, no_engines, monkeypatch, module, name, broken):
    monkeypatch.setattr(module, name, broken)
    finds(Versions, place)


def finds(machine, place):
    """Among as many examples as a run without a fault has."""
    with pytest.raises(AssertionError):
        drive(machine, place, settings(SEARCH, phases=[Phase.generate], max_examples=MANY, derandomize=True, report_multiple_bugs=False))
