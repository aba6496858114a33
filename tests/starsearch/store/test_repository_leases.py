"""Crawls at the same time share the followed list; what a dead one held is swept by another; nothing is swept twice."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from starsearch.store import repository_leases
from starsearch.store.leases import worker
from starsearch.store.repository_leases import (
    begin_sweep,
    claim_repositories,
    count_unswept,
    end_leases,
    give_back_repositories,
    release_dead_sweeps,
)

HOST = "github.com"
NOW = datetime(2026, 11, 24, tzinfo=UTC)


@pytest.fixture
async def followed(store):
    async with store.pool.connection() as connection:
        await connection.execute(
            "INSERT INTO repository (full_name, node_id, followed) SELECT 'owner/r' || n, 'R_' || n, true FROM generate_series(1, 40) AS n"
        )


async def begin(store, number, *, now=NOW):
    return await begin_sweep(store.pool, HOST, number, now=now, since=NOW - timedelta(days=1))


async def finish(store, repositories, *, at=NOW):
    async with store.pool.connection() as connection:
        return await end_leases(connection, repositories, at=at)


async def change(store, statement):
    async with store.pool.connection() as connection:
        await connection.execute(statement)


async def names(store, sweeper):
    return {each.full_name for each in await claim_repositories(store.pool, sweeper)}


async def test_crawls_at_the_same_time_share_the_list_and_a_later_one_sweeps_all_of_it(store, followed):
    async with worker(store.dsn) as one, worker(store.dsn) as two:
        first, second = await begin(store, one), await begin(store, two)
        ours = await claim_repositories(store.pool, first, size=25)
        theirs = await claim_repositories(store.pool, second, size=25)
        assert (len(ours), len(theirs)) == (25, 15)
        assert not {each.id for each in ours} & {each.id for each in theirs}
        assert await finish(store, ours) == 25
        assert await claim_repositories(store.pool, second) == []  # the other one swept them since this one began
        later = await begin(store, two)
        assert len(await claim_repositories(store.pool, later)) == 25  # the fifteen are still in other hands
        await give_back_repositories(store.pool, two)
        assert await count_unswept(store.pool, await begin(store, one)) == 40


async def test_repositories_of_a_dead_crawl_are_swept_by_a_living_one(store, followed):
    async with worker(store.dsn) as living:
        sweeper = await begin(store, living)
        async with worker(store.dsn) as dying:
            dead = await claim_repositories(store.pool, await begin(store, dying), size=30)
            assert len(await claim_repositories(store.pool, sweeper)) == 10
            assert await claim_repositories(store.pool, sweeper) == []
        taken = await claim_repositories(store.pool, sweeper)
        assert {each.id for each in taken} == {each.id for each in dead}
        assert await finish(store, dead) == 0  # a zombie ends nothing
        assert await finish(store, taken) == 30


async def test_what_somebody_locks_for_a_moment_is_waited_for(store, followed):
    """A ranking writes down new places as a crawl begins: what the crawl cannot lease yet is not left out."""
    async with worker(store.dsn) as number:
        sweeper = await begin(store, number)
        async with store.pool.connection() as ranking:
            await ranking.execute("UPDATE repository SET rank = id WHERE id <= 10")
            assert len(await claim_repositories(store.pool, sweeper)) == 30
            rest = asyncio.create_task(claim_repositories(store.pool, sweeper))
            await asyncio.sleep(0.5)
            assert not rest.done()
        assert len(await rest) == 10
        assert await claim_repositories(store.pool, sweeper) == []  # leased, and by somebody who lives


async def test_what_stays_locked_holds_up_no_crawl_for_long_and_is_said(store, followed, monkeypatch, caplog):
    monkeypatch.setattr(repository_leases, "LOCKED_SECONDS", 0.3)
    async with worker(store.dsn) as number, store.pool.connection() as forgotten:
        sweeper = await begin(store, number)
        await forgotten.execute("SELECT FROM repository WHERE id <= 10 FOR UPDATE")
        assert len(await claim_repositories(store.pool, sweeper)) == 30
        assert await claim_repositories(store.pool, sweeper) == []
    assert "10 repositories are locked by another transaction: they join the next crawl" in caplog.text


async def test_an_item_that_is_being_stored_does_not_hide_its_repository(store, followed):
    async with worker(store.dsn) as number, store.pool.connection() as storing:
        await storing.execute("SELECT FROM repository WHERE id <= 10 FOR KEY SHARE")
        assert len(await claim_repositories(store.pool, await begin(store, number))) == 40


async def test_a_lease_whose_time_has_passed_is_free(store, followed):
    async with worker(store.dsn) as number:
        await claim_repositories(store.pool, await begin(store, number))
        assert await release_dead_sweeps(store.pool) == 0
        await change(store, "UPDATE repository SET lease_until = now() - interval '1 s' WHERE id <= 5")
        assert await release_dead_sweeps(store.pool) == 5


async def test_who_waited_longest_comes_first(store, followed):
    async with worker(store.dsn) as number:
        await change(store, "UPDATE repository SET released_at = now() - id * interval '1 hour'")
        claimed = await claim_repositories(store.pool, await begin(store, number), size=3)
        assert {each.full_name for each in claimed} == {"owner/r40", "owner/r39", "owner/r38"}


async def test_archived_ones_come_weekly_gone_ones_daily_and_failed_ones_with_the_next_crawl(store, followed):
    async with worker(store.dsn) as number:
        await change(store, "UPDATE repository SET archived = true WHERE id = 1")
        await change(store, "UPDATE repository SET gone_at = now() WHERE id = 2")
        await change(store, "UPDATE repository SET archived = true, failure = 'x' WHERE id = 3")
        await finish(store, await claim_repositories(store.pool, await begin(store, number)))
        rare = {"owner/r1", "owner/r2"}
        for days, missing in ((0, rare), (1.1, {"owner/r1"}), (7.1, set())):
            found = await names(store, await begin(store, number, now=NOW + timedelta(days=days)))
            assert {f"owner/r{n}" for n in range(1, 41)} - found == missing
            await give_back_repositories(store.pool, number)


async def test_a_first_sweep_starts_where_it_was_told_and_that_is_kept(store, followed):
    async with worker(store.dsn) as number:
        (one, *_) = await claim_repositories(store.pool, await begin(store, number), size=1)
        assert set(one.starts.values()) == {NOW - timedelta(days=1)}
        await give_back_repositories(store.pool, number)
        later = await begin_sweep(store.pool, HOST, number, now=NOW, since=NOW)
        (again, *_) = await claim_repositories(store.pool, later, size=1)
        assert again.starts == one.starts
