"""What GitHub does not signal, over real HTTP: the sentinel finds it, in rotation, and buries nobody alive."""

import pytest

from starsearch.crawling import CrawlOptions
from starsearch.errors import SourceUnavailable
from starsearch.pipeline import recorded_run
from starsearch.sentinel import check_items
from starsearch.store.dead_letters import Choice, find_dead_letters
from tests.crawls import crawl_now, opened, rows
from tests.standin.oracle import Comparison, compare

NAME = "quillcap/marlframe"


pytestmark = pytest.mark.usefixtures("no_naps")


@pytest.fixture
def repository(world):
    """Thirty open items of each kind, and two that are closed."""
    repository = world.add_repository(NAME)
    for number in range(1, 63):
        kind = "issue" if number % 2 else "pull_request"
        world.add_item(repository, kind, body=f"Column {number} is doubled.", state="open" if number <= 60 else "closed")
        world.advance(1)
    return repository


async def check(store, standin, *, items=1_000, comments=0):
    options = CrawlOptions(comments=comments)
    async with opened(standin, backfill=True) as github, recorded_run(store, "maintain") as run:
        return await check_items(store, github, run, options, items=items)


async def compared(store, world):
    async with store.pool.connection() as connection:
        return await compare(connection, world.record())


@pytest.mark.parametrize("number", [7, 8])  # an issue, a pull request
async def test_a_deleted_item_becomes_a_tombstone(store, standin, world, repository, number):
    await crawl_now(store, standin, NAME)
    world.delete_item(repository.item(number))
    await crawl_now(store, standin, NAME)
    assert (await compared(store, world)).left == [(NAME, number)]  # no list tells of it
    checks = await check(store, standin)
    assert (checks.checked, checks.tombstones, checks.fetched, checks.failed) == (60, 1, 0, 0)
    assert await compared(store, world) == Comparison()


async def test_a_transferred_item_is_a_tombstone_where_it_was(store, standin, world, repository):
    target = world.add_repository("brindle/oat")
    await crawl_now(store, standin, NAME, "brindle/oat")
    world.transfer_item(repository.item(7), target)
    await crawl_now(store, standin, NAME, "brindle/oat")
    assert (await compared(store, world)).left == [(NAME, 7)]
    assert (await check(store, standin)).tombstones == 1
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize("number", [9, 10])
async def test_a_deleted_comment_is_taken_out_of_its_item(store, standin, world, repository, number):
    comment = world.add_comment(repository.item(number), "Please forget what I said.")
    await crawl_now(store, standin, NAME, comments=5)
    world.delete_comment(repository.item(number), comment)
    await crawl_now(store, standin, NAME, comments=5)
    query = "SELECT comments_count, jsonb_array_length(comments), encode(content_hash, 'hex') FROM item WHERE number = %s"
    [(count, held, before)] = await rows(store, query, number)
    assert (count, held) == (1, 1)
    checks = await check(store, standin, comments=5)
    assert (checks.tombstones, checks.fetched) == (0, 1)
    [(count, held, after)] = await rows(store, query, number)
    assert (count, held) == (0, 0)
    assert after != before


async def test_an_update_that_a_crawl_has_not_come_to_yet_is_fetched(store, standin, world, repository):
    await crawl_now(store, standin, NAME)
    world.advance(60)
    world.update_item(repository.item(5), title="Totals are right again")
    assert (await check(store, standin)).fetched == 1
    assert await compared(store, world) == Comparison()


async def test_a_part_each_time_until_all_were_seen_and_then_from_the_start(store, standin, world, repository):
    await crawl_now(store, standin, NAME)
    assert [(await check(store, standin, items=25)).checked for _ in range(4)] == [25, 25, 10, 25]
    world.delete_item(repository.item(1))
    for _ in range(3):
        await check(store, standin, items=25)
    assert await compared(store, world) == Comparison()


async def test_a_hundred_items_cost_one_point_where_nothing_changed(store, standin, world):
    for each in world.populate(30, items_each=20, seed=1):
        world.add_item(each, "issue")
    names = [each.full_name for each in world.visible_repositories()]
    await crawl_now(store, standin, *names)
    standin.counters.reset()
    checks = await check(store, standin)
    assert checks.checked > 200
    assert standin.counters.points["Check"] == 1 + checks.checked // 100
    assert standin.counters.requests["Fetch"] == 0


@pytest.mark.parametrize(
    ("hide", "show", "buried"), [({"has_issues": False}, {"has_issues": True}, 30), ({"is_private": True}, {"is_private": False}, 60)]
)
async def test_what_was_out_of_sight_for_a_while_comes_back(store, standin, world, repository, hide, show, buried):
    """GitHub denies each item meanwhile; no list tells of those again that did not change."""
    await crawl_now(store, standin, NAME)
    world.advance(3_600)
    world.change_repository(repository, **hide)
    assert (await check(store, standin)).tombstones == buried
    await crawl_now(store, standin, NAME)
    world.advance(3_600)
    world.change_repository(repository, **show)
    world.update_item(repository.item(1), title="Totals are right again")
    world.delete_item(repository.item(3))
    await crawl_now(store, standin, NAME)
    assert await compared(store, world) == Comparison(left=[(NAME, 3)])
    assert (await check(store, standin)).tombstones == 1
    assert await compared(store, world) == Comparison()


async def test_an_item_that_came_back_and_is_not_told_is_counted(store, standin, world, repository):
    await crawl_now(store, standin, NAME)
    node = repository.item(7).node_id
    for operation in ("Check", "Fetch"):
        standin.faults.add("not_found", operation, ids={node}, times=2)
    assert (await check(store, standin)).tombstones == 1
    standin.faults.clear()
    world.advance(3_600)
    world.update_item(repository.item(7), title="Totals are right again")
    standin.faults.add("forbidden", "Fetch", ids={node}, times=None)
    for _ in range(3):
        await crawl_now(store, standin, NAME)
    assert [(letter.number, letter.reason) for letter in await find_dead_letters(store.pool, Choice())] == [(7, "FORBIDDEN")]


@pytest.mark.parametrize("kind", ["resource_limits", "wrong_null", "forbidden", "502"])
async def test_a_bad_answer_buries_nobody(store, standin, world, repository, kind):
    await crawl_now(store, standin, NAME)
    standin.faults.add(kind, operation="Check", times=4)
    checks = await check(store, standin)
    assert (checks.checked, checks.tombstones) == (60, 0)
    assert await compared(store, world) == Comparison()


async def test_stopped_in_the_middle_it_goes_on_behind_the_last_batch(store, standin, world):
    for each in world.populate(30, items_each=20, seed=1):
        world.add_item(each, "issue")
    names = [each.full_name for each in world.visible_repositories()]
    await crawl_now(store, standin, *names)
    standin.faults.add("401", operation="Check", after=1, times=None)
    with pytest.raises(SourceUnavailable, match="refuses"):
        await check(store, standin)
    standin.faults.clear()
    standin.counters.reset()
    checks = await check(store, standin)
    asked = sum(len(request.variables["ids"]) for request in standin.counters.log if request.operation == "Check")
    open_items = sum(item.state == "open" for item in world.items())
    assert asked == checks.checked == open_items - 100
