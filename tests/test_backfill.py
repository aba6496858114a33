"""History by hand, over real HTTP: the right items of a range, the price before, and no end but the right one after a kill."""

from datetime import UTC, datetime, timedelta

import pytest

from starsearch import brakes
from starsearch.backfill import Request, backfill, backfill_in_turns, parse_moment, price
from starsearch.brakes import Bounds
from starsearch.cost import read_prices
from starsearch.crawling import CrawlOptions
from starsearch.errors import Backlog, PreconditionMissing, SourceUnavailable
from starsearch.models import IndexVersion
from starsearch.pipeline import recorded_run
from starsearch.storage import Store
from starsearch.store.versions import ensure_version
from tests.crawls import Crawled, crawl_now, follow, opened, rows
from tests.standin.oracle import stored_items

NAME = "quillcap/marlframe"
OPTIONS = CrawlOptions()


pytestmark = pytest.mark.usefixtures("no_naps")


def day(number: int) -> datetime:
    """Of January 2026; the stand-in's clock begins on the tenth, at noon."""
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number - 1)


async def backfill_now(store, standin, request: Request) -> Crawled:
    async with opened(standin, backfill=True) as github, recorded_run(store, "backfill") as run:
        failed = await backfill(store, github, request, run, OPTIONS)
    return Crawled(run.counts, failed, github.usage)


async def stored(store):
    async with store.pool.connection() as connection:
        return {(item["repo"], item["number"]) for item in await stored_items(connection)}


async def followed(store, standin, world, repositories):
    """With ids, and without items: nothing has happened for an hour."""
    await follow(store, repositories)
    world.advance(3_600)
    await crawl_now(store, standin, since=world.now)
    standin.counters.reset()


@pytest.fixture
def range_of_days(world):
    """Items of either kind around the range from the fifth to the seventh."""
    repository = world.add_repository(NAME)
    given = {
        "before": (day(2), day(3)),
        "touched in it": (day(2), day(6)),
        "made in it": (day(6), day(6)),
        "touched in it and again after it": (day(6), day(9)),  # the trap: its update lies behind the range now
        "older, and touched only after it": (day(2), day(9)),  # may have been touched in it, too: GitHub does not tell
        "made after it": (day(9), day(9)),
    }
    for title, (created, updated) in given.items():
        for kind in ("issue", "pull_request"):
            world.add_item(repository, kind, title=title, created_at=created, updated_at=updated)
    return repository


async def test_a_range_takes_what_was_touched_since_and_made_until(store, standin, range_of_days):
    request = Request(day(5), day(8), (NAME,))
    crawled = await backfill_now(store, standin, request)
    titles = await rows(store, "SELECT title, count(*) FROM item WHERE stored_at IS NOT NULL GROUP BY 1")
    assert dict(titles) == dict.fromkeys(
        ["touched in it", "made in it", "touched in it and again after it", "older, and touched only after it"], 2
    )
    assert (crawled.counts.inserted, crawled.failed) == (8, {})


async def test_one_kind_alone_can_be_asked_for(store, standin, range_of_days):
    await backfill_now(store, standin, Request(day(5), day(8), (NAME,), kinds=("pull_request",)))
    assert await rows(store, "SELECT type, count(*) FROM item GROUP BY 1") == [("pull_request", 4)]


async def test_a_price_is_told_before_anything_is_read(store, standin, world):
    repositories = world.populate(60, items_each=30, seed=1)
    await followed(store, standin, world, repositories)
    request = Request(world.now - timedelta(days=400), world.now)
    standin.counters.reset()
    async with opened(standin) as github:
        told = await price(store, github, request, OPTIONS, read_prices())
    assert set(standin.counters.requests) == {"Ping", "Count"}
    since = request.since.timestamp()
    expected = sum(item.updated >= since for item in world.items())
    assert (told.repositories, told.counted, told.items) == (60, 60, expected)
    assert told.tokens is None  # nothing was digested here yet

    standin.counters.reset()
    crawled = await backfill_now(store, standin, request)
    assert crawled.counts.items == expected
    assert told.requests == pytest.approx(crawled.usage.requests, rel=0.05)
    assert told.points == pytest.approx(standin.counters.all_points, rel=0.05)


async def test_a_price_counts_to_the_second(store, standin, range_of_days):
    async with opened(standin) as github:
        told = await price(store, github, Request(day(5), day(8), (NAME,)), OPTIONS, read_prices())
    assert told.items == 8


async def test_of_many_repositories_a_price_counts_a_part(store, standin, world):
    await followed(store, standin, world, world.populate(1_000, items_each=2, seed=2))
    async with opened(standin) as github:
        told = await price(store, github, Request(datetime(2010, 1, 1, tzinfo=UTC), world.now), OPTIONS, read_prices())
    assert (told.repositories, told.counted) == (1_000, 334)
    assert told.items == pytest.approx(2_000, rel=0.1)


async def test_stopped_in_the_middle_the_same_request_goes_on(store, standin, world):
    repositories = world.populate(40, items_each=20, seed=3)
    await followed(store, standin, world, repositories)
    request = Request(datetime(2010, 1, 1, tzinfo=UTC), world.now, spelled=("5000d", "0d"))
    standin.faults.add("html", after=60, times=None)
    with pytest.raises(SourceUnavailable):
        await backfill_now(store, standin, request)
    done = len(await rows(store, "SELECT FROM backfill_part WHERE done_at IS NOT NULL"))
    assert 0 < done < 80
    [(since, until)] = await rows(store, "SELECT since, until FROM backfill")
    standin.faults.clear()
    standin.counters.reset()
    world.advance(86_400)
    later = Request(request.since + timedelta(days=1), world.now, spelled=("5000d", "0d"))  # the same words a day later
    await backfill_now(store, standin, later)
    assert standin.counters.requests["ListIssues"] + standin.counters.requests["ListPulls"] == 80 - done
    assert len(await stored(store)) == 800
    assert await rows(store, "SELECT since, until, finished_at IS NOT NULL FROM backfill") == [(since, until, True)]

    standin.counters.reset()
    await backfill_now(store, standin, later)  # finished, so this one begins anew, and finds everything stored
    assert standin.counters.requests["Fetch"] == 0
    assert len(await rows(store, "SELECT FROM backfill WHERE finished_at IS NOT NULL")) == 2


async def test_where_engines_are_behind_it_lets_them_go_first_and_goes_on(store, standin, world, monkeypatch):
    monkeypatch.setattr(brakes, "LOOK_SECONDS", 0.0)
    await followed(store, standin, world, world.populate(40, items_each=10, seed=7))
    await ensure_version(store.pool, IndexVersion("stub", "", 384, "recipe", "stub", "v1"))
    held, request = Store(store.dsn, store.pool, Bounds(most_due=100)), Request(datetime(2010, 1, 1, tzinfo=UTC), world.now)
    with pytest.raises(Backlog, match=r"more than 100 items wait .* STARSEARCH_MOST_DUE"):
        await backfill_now(held, standin, request)
    [(due,)] = await rows(store, "SELECT count(*) FROM due")
    assert 100 < due < 300
    assert await rows(store, "SELECT FROM backfill WHERE finished_at IS NOT NULL") == []
    world.hour(30, seed=1)
    assert (await crawl_now(held, standin)).counts.items > 0  # history does not hold back what is live

    turns = []

    async def digested():
        turns.append(await rows(store, "DELETE FROM due RETURNING item_id"))

    async with opened(standin, backfill=True) as github, recorded_run(held, "backfill") as run:
        assert await backfill_in_turns(held, github, request, run, OPTIONS, digested) == {}
    assert len(turns) >= 2
    assert len(await stored(store)) == len(list(world.items()))
    assert standin.counters.fetched_twice == {}


async def test_a_backfill_moves_no_checkpoint_of_the_crawl_and_is_digested_last(store, standin, world):
    await followed(store, standin, world, world.populate(5, items_each=10, seed=4))
    marks = await rows(store, "SELECT * FROM checkpoint ORDER BY repository_id, kind")
    await ensure_version(store.pool, IndexVersion("stub", "", 384, "recipe", "stub", "v1"))
    await backfill_now(store, standin, Request(datetime(2010, 1, 1, tzinfo=UTC), world.now))
    assert await rows(store, "SELECT * FROM checkpoint ORDER BY repository_id, kind") == marks
    assert {priority for (priority,) in await rows(store, "SELECT priority FROM due")} == {1}


async def test_the_top_of_the_list_and_names_choose_the_repositories(store, standin, world):
    repositories = world.populate(20, items_each=2, seed=5)
    await followed(store, standin, world, repositories)
    everything = datetime(2010, 1, 1, tzinfo=UTC)
    await backfill_now(store, standin, Request(everything, world.now, top=3))
    assert {name for name, _ in await stored(store)} == {repository.full_name for repository in repositories[:3]}
    crawled = await backfill_now(store, standin, Request(everything, world.now, (repositories[9].full_name, "no/such")))
    assert crawled.failed == {"no/such": "not found, or private"}
    assert len(await stored(store)) == 8


async def test_a_backfill_leaves_the_crawl_its_points(store, standin, world):
    """It begins to wait where a crawl would go on."""
    standin.limits.points = 100
    await followed(store, standin, world, world.populate(80, items_each=2, seed=6))
    standin.limits.window("token-a").used = 55
    async with opened(standin, backfill=True) as github:
        github._patience = 0
        with pytest.raises(Exception, match="GitHub's limit is reached"):
            async with recorded_run(store, "backfill") as run:
                await backfill(store, github, Request(datetime(2010, 1, 1, tzinfo=UTC), world.now), run, OPTIONS)
    assert 60 <= standin.limits.window("token-a").used <= 63
    crawled = await crawl_now(store, standin, since=world.now)
    assert crawled.failed == {}


async def test_without_a_list_and_without_names_it_says_what_to_do(store, standin, world):
    with pytest.raises(PreconditionMissing, match="starsearch rank"):
        await backfill_now(store, standin, Request(day(1), day(2)))


@pytest.mark.parametrize(
    ("text", "end", "moment"),
    [
        ("7d", False, datetime(2026, 3, 3, 12, 30, tzinfo=UTC)),
        ("0d", True, datetime(2026, 3, 10, 12, 30, tzinfo=UTC)),
        ("2026-03-01", False, datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01", True, datetime(2026, 3, 2, tzinfo=UTC)),
        ("2026-03-01T08:00+02:00", True, datetime(2026, 3, 1, 6, tzinfo=UTC)),
    ],
)
def test_days_are_whole_and_spans_count_back(text, end, moment):
    assert parse_moment(text, now=datetime(2026, 3, 10, 12, 30, tzinfo=UTC), end=end) == moment
