"""The crawl from end to end over real HTTP: nothing missed, nothing fetched twice, nobody buried alive."""

import asyncio
import math
import re
from datetime import UTC, datetime, timedelta
from functools import partial

import httpx2
import pytest

from starsearch import brakes, crawling
from starsearch.audit import read_status
from starsearch.brakes import Bounds
from starsearch.crawling import CrawlOptions, crawl
from starsearch.cycle import LONE_HOLES, PAGE_SIZES, Cycle
from starsearch.engines import Engines
from starsearch.errors import Backlog, NotStored, RateLimited, SourceUnavailable
from starsearch.fetching import Fetcher
from starsearch.github.client import open_github
from starsearch.github.credentials import AppInstallation, Credential
from starsearch.github.rest import open_source
from starsearch.inference.client import open_client, preflight
from starsearch.leftovers import fetch_leftovers
from starsearch.models import Filters, IndexVersion, SeenItem
from starsearch.pipeline import digest, recorded_run
from starsearch.progress import no_progress
from starsearch.storage import Store
from starsearch.store.dead_letters import Choice, find_dead_letters, retry_dead_letters
from starsearch.store.leases import worker
from starsearch.store.repository_leases import claim_repositories
from starsearch.store.search import search
from starsearch.store.sweeps import Reached, advance, record_seen
from starsearch.store.tallies import reconcile
from starsearch.store.unfetched import Scope
from starsearch.store.versions import ensure_version
from tests.crawls import HOST, LONG_AGO, crawl_now, follow, key_pair, opened, rows
from tests.standin.oracle import Comparison, compare, marks_ahead, stored_items
from tests.standin.server import StandIn
from tests.standin.world import World
from tests.stub_engine import StubEngine

VERSION = IndexVersion("stub", "", 384, "recipe", "stub", "v1")


pytestmark = pytest.mark.usefixtures("no_naps")


async def compared(store, world, **how):
    async with store.pool.connection() as connection:
        return await compare(connection, world.record(), **how)


async def ahead(store, world, since=LONG_AGO):
    async with store.pool.connection() as connection:
        return await marks_ahead(connection, world.record(), since=since)


def filled(world, issues, pulls=0, name="quillcap/marlframe"):
    """A repository whose items were updated a second after one another."""
    repository = world.add_repository(name)
    items = []
    for number in range(issues + pulls):
        items.append(world.add_item(repository, "issue" if number < issues else "pull_request", body=f"Column {number} is doubled."))
        world.advance(1)
    return repository, items


# what changed, and nothing else


async def test_a_first_crawl_stores_everything_and_the_same_hour_again_fetches_nothing(store, standin, world):
    await follow(store, world.populate(120, items_each=8, seed=3))
    first = await crawl_now(store, standin)
    assert await compared(store, world) == Comparison()
    assert (first.counts.items, first.counts.inserted, first.failed) == (960, 960, {})
    assert standin.counters.requests["Sweep"] == math.ceil(120 / 50) + first.usage.splits
    assert standin.counters.fetched_twice == {}

    again = await crawl_now(store, standin)
    assert (again.counts.items, again.usage.by_query["fetch"], standin.counters.fetched_twice) == (0, 0, {})


async def test_an_hour_of_updates_is_fetched_once(store, standin, world):
    await follow(store, world.populate(100, items_each=8, seed=4))
    await crawl_now(store, standin)
    for seed in range(3):
        standin.counters.reset()
        world.hour(400, seed=seed)
        crawled = await crawl_now(store, standin)
        assert await compared(store, world) == Comparison()
        assert standin.counters.requests["Sweep"] == 2
        assert standin.counters.fetched_twice == {}
        assert crawled.usage.points == standin.counters.all_points
        assert crawled.usage.requests == standin.counters.all_requests


async def test_where_engines_are_behind_it_holds_back_and_loses_nothing(store, standin, world, monkeypatch):
    """Each crawl stores some and fails saying why; what is digested in between is made room, and no mark is ahead of its items."""
    monkeypatch.setattr(brakes, "LOOK_SECONDS", 0.0)
    await follow(store, world.populate(80, items_each=10, seed=3))
    await ensure_version(store.pool, IndexVersion("stub", "", 384, "recipe", "stub", "v1"))
    held, crawls = Store(store.dsn, store.pool, Bounds(most_due=100)), 1
    while True:
        try:
            await crawl_now(held, standin)
            break
        except Backlog:
            crawls += 1
        assert await ahead(store, world) == []
        assert any("the last crawl failed: more than 100 changed items wait" in each for each in (await read_status(store.pool)).warnings)
        assert await rows(store, "SELECT FROM repository WHERE lease_token IS NOT NULL") == []
        assert len(await rows(store, "DELETE FROM due RETURNING item_id")) < 300
    assert crawls >= 3
    assert await compared(store, world) == Comparison()
    assert standin.counters.fetched_twice == {}


async def test_whoever_watches_sees_names_sweep_and_fetch_go_on(store, standin, world):
    await follow(store, world.populate(620, items_each=1, seed=14))
    seen = []
    await crawl_now(store, standin, progress=lambda *report: seen.append(report))
    swept = [(done, total) for stage, done, total in seen if stage == "sweep"]
    assert [done for done, _ in swept] == sorted(done for done, _ in swept)
    assert (len(swept), swept[0], swept[-1]) == (13, (50, 620), (620, 620))
    assert [report for report in seen if report[0] == "names"][:2] == [("names", 100, 620), ("names", 200, 620)]
    assert seen[-1] == ("fetch", 620, 620)


async def test_lists_longer_than_a_sweep_shows_are_read_to_their_end(store, standin, world):
    filled(world, issues=230, pulls=120)
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()
    assert standin.counters.requests["ListIssues"] == 3  # the first page after the sweep's ten, and so on
    assert standin.counters.requests["ListPulls"] == 2


@pytest.mark.parametrize(("rule", "lost"), [("began", 0), ("ended", 3)])  # the naive rule, kept to show that ours is needed
async def test_items_that_move_while_their_pages_are_read_come_with_the_next_cycle(store, standin, world, monkeypatch, rule, lost):
    async def clock_at_the_end(self, connection, marks):
        await advance(connection, [Reached(mark.repository.id, mark.kind, mark.high_water, self._github.now) for mark in marks])

    if rule == "ended":
        monkeypatch.setattr(Cycle, "_advance", clock_at_the_end)
    _, items = filled(world, issues=250)
    world.tick_seconds = 200  # longer than the overlap of two cycles hides
    unread = iter(items[:3])

    def move():
        item = next(unread, None)
        if item:
            world.update_item(item, body="It moved to the front while its page was still to come.")

    world.after("Sweep", move)
    world.after("ListIssues", move)
    first = await crawl_now(store, standin, "quillcap/marlframe")
    assert first.counts.inserted == 247
    await crawl_now(store, standin, "quillcap/marlframe")
    found = await compared(store, world)
    assert len(found.missed) == lost
    assert len(await ahead(store, world)) == lost
    assert standin.counters.fetched_twice == {}


async def test_marks_are_githubs_time_when_the_sweep_began_and_the_newest_update_of_the_first_page(store, standin, world):
    _, items = filled(world, issues=12)
    world.tick_seconds = 60
    began = world.now
    await crawl_now(store, standin, "quillcap/marlframe")
    marks = {kind: (high, swept) for kind, high, swept in await rows(store, "SELECT kind, high_water, swept_at FROM checkpoint")}
    assert marks["issue"][0] == items[-1].updated_at
    assert marks["pull_request"][0] is None
    assert {(swept - began).total_seconds() // 60 for _, swept in marks.values()} == {2}  # a ping and a name were asked before


# what only changes the row, and what makes it due


async def test_labels_update_the_row_and_ask_no_engine_while_a_new_text_does(store, standin, world):
    _, items = filled(world, issues=3)
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await asked_to_digest(store) == 3
    world.advance(60)
    world.update_item(items[0], labels=("bug", "regression"))
    crawled = await crawl_now(store, standin, "quillcap/marlframe")
    assert (crawled.counts.updated, await asked_to_digest(store)) == (1, 0)
    assert await compared(store, world) == Comparison()
    world.update_item(items[1], state="closed")
    world.update_item(items[2], title="Totals are right, the sums are wrong")
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await asked_to_digest(store) == 2
    assert (await read_status(store.pool)).complete


async def test_a_new_comment_makes_its_item_due(store, standin, world):
    _, items = filled(world, issues=2)
    await crawl_now(store, standin, "quillcap/marlframe", comments=5)
    assert await asked_to_digest(store) == 2
    world.advance(60)
    world.add_comment(items[1], "It also happens in spring.")
    await crawl_now(store, standin, "quillcap/marlframe", comments=5)
    assert await asked_to_digest(store) == 1
    assert await rows(store, "SELECT number, comments -> 0 ->> 'body', comments_count FROM item ORDER BY number") == [
        (1, None, 0),
        (2, "It also happens in spring.", 1),
    ]


# what is gone, and what only looks so


async def test_an_item_deleted_between_its_listing_and_its_fetch_leaves_search_at_once(store, standin, world):
    _, items = filled(world, issues=4)
    await crawl_now(store, standin, "quillcap/marlframe")
    await asked_to_digest(store)
    assert await numbers_found(store) == {1, 2, 3, 4}
    world.advance(60)
    world.update_item(items[2], body="Column 2 is doubled, please remove this.")
    world.after("Sweep", lambda: world.find(items[2].node_id) and world.delete_item(items[2]))
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()
    assert await numbers_found(store) == {1, 2, 4}
    assert (await read_status(store.pool)).complete


async def test_a_transferred_item_is_found_where_it_is_now(store, standin, world):
    _, items = filled(world, issues=3)
    target = world.add_repository("brindle/oat")
    await crawl_now(store, standin, "quillcap/marlframe", "brindle/oat")
    world.advance(60)
    world.update_item(items[0], body="Column 0 is doubled, and that is oat's fault.")
    world.after("Sweep", lambda: world.find(items[0].node_id) and world.transfer_item(items[0], target))
    for _ in range(2):
        await crawl_now(store, standin, "quillcap/marlframe", "brindle/oat")
    assert await compared(store, world) == Comparison()


async def test_an_issue_and_a_pull_request_with_one_database_id_are_both_stored(store, standin, world):
    filled(world, issues=3, pulls=3)
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()
    assert await rows(store, "SELECT count(*), count(DISTINCT database_id) FROM item") == [(6, 3)]


async def test_hosts_number_their_items_each_for_itself(store, world):
    worlds = {"github.com": world, "ghe.example": World()}
    items = {host: filled(worlds[host], issues=3, pulls=1)[1] for host in worlds}

    async def crawl_both():
        for host, its_world in worlds.items():
            with StandIn(its_world) as standin:
                async with opened(standin) as github, recorded_run(store, "crawl") as run:
                    await crawl(store, github, ["quillcap/marlframe"], run, CrawlOptions(since=LONG_AGO, host=host))

    await crawl_both()
    assert await rows(store, "SELECT count(*), count(DISTINCT node_id) FROM item WHERE tombstoned_at IS NULL") == [(8, 4)]
    other, doomed = worlds["ghe.example"], items["ghe.example"][1]
    other.advance(60)
    other.update_item(doomed, body="Please remove this.")
    other.after("Sweep", lambda: other.find(doomed.node_id) and other.delete_item(doomed))
    await crawl_both()
    living = "SELECT host, count(*) FROM item i JOIN repository r ON r.id = i.repository_id WHERE tombstoned_at IS NULL GROUP BY 1"
    assert dict(await rows(store, living)) == {"github.com": 4, "ghe.example": 3}


async def test_one_node_id_told_of_two_items_costs_one_of_them(store):
    await rows(store, "INSERT INTO repository (full_name) VALUES ('quillcap/marlframe') RETURNING id")
    moment = datetime(2026, 1, 10, tzinfo=UTC)
    async with store.pool.connection() as connection:
        wanted = await record_seen(connection, [(1, SeenItem("I_1", number, "issue", moment)) for number in (1, 2)])
    assert wanted == {"I_1"}
    assert await rows(store, "SELECT number, node_id FROM item") == [(2, "I_1")]


async def test_two_hundred_repositories_that_take_each_others_names_keep_their_items(store, standin, world):
    repositories = world.populate(200, items_each=3, seed=5)
    await follow(store, repositories)
    await crawl_now(store, standin)
    names = [repository.full_name for repository in repositories]
    world.advance(3_600)
    for repository, name in zip(repositories, names[1:] + names[:1], strict=True):
        world.rename_repository(repository, name)
        world.add_item(repository, "issue", title="The name is new")
    crawled = await crawl_now(store, standin)
    assert crawled.failed == {}
    assert await compared(store, world) == Comparison()
    assert await rows(store, "SELECT count(*) FILTER (WHERE gone_at IS NULL AND followed), count(*) FROM repository") == [(200, 200)]


async def test_a_repository_that_turns_private_leaves_search_and_comes_back_whole(store, standin, world):
    filled(world, issues=3)
    hidden, items = filled(world, issues=3, name="brindle/oat")
    await follow(store, world.visible_repositories())
    await crawl_now(store, standin)
    await asked_to_digest(store)
    world.make_private(hidden)
    world.advance(3_600)
    crawled = await crawl_now(store, standin)
    assert crawled.failed == {"brindle/oat": "not found, or private: its items left search"}
    assert await compared(store, world) == Comparison()
    assert await numbers_found(store, "brindle/oat") == set()

    world.change_repository(hidden, is_private=False)
    world.update_item(items[1], body="Column 1 is right again.")
    world.advance(3_600)
    assert (await crawl_now(store, standin)).usage.by_query["fetch"] == 0  # the gone are asked for once a day
    world.advance(23 * 3_600 + 60)
    await crawl_now(store, standin)
    await asked_to_digest(store)
    assert await compared(store, world) == Comparison()
    assert await numbers_found(store, "brindle/oat") == {1, 2, 3}


async def test_a_repository_gone_for_thirty_days_is_not_followed_any_more(store, standin, world):
    filled(world, issues=1)
    gone, _ = filled(world, issues=1, name="brindle/oat")
    await follow(store, world.visible_repositories())
    await crawl_now(store, standin)
    world.delete_repository(gone)
    for day in (0, 1, 31):
        world.advance(day * 86_400 + 60)
        await crawl_now(store, standin)
    assert await rows(store, "SELECT full_name FROM repository WHERE followed") == [("quillcap/marlframe",)]


async def test_an_archived_repository_is_swept_once_a_week(store, standin, world):
    repository, _ = filled(world, issues=1)
    await follow(store, [repository])
    world.archive(repository)
    await crawl_now(store, standin)
    swept = []
    for day in range(1, 9):
        world.advance(86_460)
        swept += [day] * (await crawl_now(store, standin)).usage.by_query["sweep"]
    assert swept == [7]


# a bad day at GitHub


FAULTS = [
    *[("502", {"operation": operation, "times": 2}) for operation in ("Sweep", "Fetch")],
    ("502", {"operation": "Sweep", "min_ids": 13, "times": 6}),  # too heavy until it is halved twice
    ("504", {"operation": "Fetch", "min_ids": 30, "times": 4}),
    ("500", {"operation": "ListIssues", "times": 2}),
    ("drop", {"operation": "Fetch", "times": 2}),
    ("html", {"operation": "Sweep", "times": 2}),
    ("401", {"operation": "Sweep"}),
    ("secondary_403", {"operation": "Fetch"}),
    ("secondary_200", {"operation": "Sweep"}),
    ("429", {"operation": "ListPulls"}),
    ("resource_limits", {"operation": "Sweep", "times": 2, "min_ids": 2}),
    ("resource_limits", {"operation": "Fetch", "times": 3, "min_ids": 2}),
    ("resource_limits", {"operation": "Resolve", "times": 2}),
    ("504", {"operation": "Resolve", "times": 2}),
    ("wrong_null", {"operation": "Sweep", "times": 2, "min_ids": 2}),
    ("wrong_null", {"operation": "Fetch", "times": 2, "min_ids": 2}),
    ("not_found", {"operation": "Sweep"}),  # denied once, and there when asked again
    ("not_found", {"operation": "Fetch"}),
]


@pytest.mark.parametrize(("kind", "options"), FAULTS)
async def test_a_fault_loses_nothing_and_buries_nobody(store, standin, world, kind, options):
    await follow(store, world.populate(60, items_each=4, seed=6))
    filled(world, issues=30, pulls=20)
    await follow(store, world.visible_repositories())
    standin.faults.add(kind, **options)
    crawled = await crawl_now(store, standin)
    assert await compared(store, world) == Comparison()
    assert (crawled.failed, await ahead(store, world)) == ({}, [])
    assert standin.faults.met[kind] >= min(options.get("times", 1), 2)


async def test_an_item_that_is_told_in_part_for_a_moment_is_fetched_again(store, standin, world):
    _, items = filled(world, issues=3)
    world.add_comment(items[1], "It is the same here.")
    standin.faults.add("holes", "Fetch", ids={items[1].node_id}, silent=True, times=1)
    assert (await crawl_now(store, standin, "quillcap/marlframe", comments=5)).failed == {
        "quillcap/marlframe": "the text of an item could not be fetched"
    }
    assert (await crawl_now(store, standin, "quillcap/marlframe", comments=5)).failed == {}
    assert await compared(store, world) == Comparison()
    assert await rows(store, "SELECT comments_count, comments->0->>'body' FROM item WHERE number = 2") == [(1, "It is the same here.")]


async def test_an_item_that_github_never_tells_costs_only_itself(store, standin, world):
    _, items = filled(world, issues=20)
    filled(world, issues=5, name="brindle/oat")
    standin.faults.add("forbidden", operation="Fetch", ids={items[7].node_id}, times=None)
    names = ("quillcap/marlframe", "brindle/oat")
    for _ in range(2):
        crawled = await crawl_now(store, standin, *names)
        assert crawled.failed == {"quillcap/marlframe": "the text of an item could not be fetched"}
        assert (await compared(store, world)).missed == [("quillcap/marlframe", 8)]
        assert await ahead(store, world) == []
        world.advance(3_600)
    assert (await crawl_now(store, standin, *names)).failed == {}
    await asked_to_digest(store)
    status = await read_status(store.pool)
    assert (status.complete, status.dead_letters, [gap.reason for gap in status.gaps]) == (True, 1, ["dead letter: FORBIDDEN"])
    standin.faults.clear()
    world.update_item(items[7], body="Column 7 is doubled, and everybody may know.")
    await crawl_now(store, standin, *names)
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize("longest", [0, 3, 30])
async def test_a_list_that_github_fills_with_nulls_is_read_in_smaller_pages(store, standin, world, longest):
    filled(world, issues=120, pulls=110)
    for operation in ("ListIssues", "ListPulls"):
        standin.faults.add("holes", operation, longest=longest, times=None)
    crawled = await crawl_now(store, standin, "quillcap/marlframe")
    if longest:
        assert crawled.failed == {}
    else:  # not even one alone
        assert crawled.failed == {"quillcap/marlframe": "GitHub lists an item and tells nothing of it"}
        assert await rows(store, "SELECT FROM checkpoint") == []
        standin.faults.clear()
        await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize("which", [7, 129])  # the ten newest come with the sweep
async def test_an_item_of_which_lists_tell_nothing_costs_only_itself_and_holds_the_mark(store, standin, world, which):
    _, items = filled(world, issues=130, pulls=2)
    standin.faults.add("holes", items={items[which].node_id}, times=None)
    for _ in range(2):
        crawled = await crawl_now(store, standin, "quillcap/marlframe")
        assert crawled.failed == {"quillcap/marlframe": "GitHub lists an item and tells nothing of it"}
        assert (await compared(store, world)).missed == [("quillcap/marlframe", which + 1)]
        assert await ahead(store, world) == []
        world.advance(3_600)
    standin.faults.clear()
    assert (await crawl_now(store, standin, "quillcap/marlframe")).failed == {}
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize("silent", [True, False])
async def test_a_hole_in_a_sweep_has_its_list_read(store, standin, world, silent):
    """The first items come with the sweep; GitHub may leave one out there, with its error or without."""
    _, items = filled(world, issues=4)
    await crawl_now(store, standin, "quillcap/marlframe")
    world.advance(3_600)
    world.update_item(items[2], body="Column 2 is right again.")
    standin.faults.add("holes", operation="Sweep", items={items[2].node_id}, silent=silent, times=None)
    assert (await crawl_now(store, standin, "quillcap/marlframe")).failed == {}
    assert await compared(store, world) == Comparison()
    assert standin.counters.requests["ListIssues"] == 1


async def test_switched_off_issues_do_not_have_others_tell_theirs_again(store, standin, world):
    """One request is of many repositories, and has one moment for all: not the one at which one of them stopped."""
    silent, _ = filled(world, issues=4)
    filled(world, issues=20, name="brindle/oat")
    await crawl_now(store, standin, "quillcap/marlframe", "brindle/oat")
    world.disable_issues(silent)
    for _ in range(3):
        world.advance(3_600)
        await crawl_now(store, standin, "quillcap/marlframe", "brindle/oat")
    since = [datetime.fromisoformat(request.variables["since"]) for request in standin.counters.log if request.operation == "Sweep"]
    assert since[-1] - since[-2] == timedelta(hours=1)
    assert ((await compared(store, world)).missed, standin.counters.fetched_twice) == ([], {})


async def test_a_page_that_github_cuts_short_altogether_is_asked_for_by_parts(store, standin, world):
    """No items and no list of them, but an error that says why."""
    filled(world, issues=0, pulls=60)
    standin.faults.add("resource_limits", "ListPulls", times=2)
    assert (await crawl_now(store, standin, "quillcap/marlframe")).failed == {}
    assert await compared(store, world) == Comparison()
    assert [request.variables["first"] for request in standin.counters.log if request.operation == "ListPulls"][:3] == [100, 25, 5]


async def test_a_list_of_nothing_but_holes_is_given_up(store, standin, world):
    filled(world, issues=0, pulls=60)
    standin.faults.add("holes", "ListPulls", times=None)
    await crawl_now(store, standin, "quillcap/marlframe")
    assert standin.counters.requests["ListPulls"] == LONE_HOLES * len(PAGE_SIZES)
    assert await rows(store, "SELECT FROM checkpoint WHERE kind = 'pull_request'") == []


async def test_what_changed_before_issues_were_switched_off_comes_when_they_are_back(store, standin, world):
    repository, items = filled(world, issues=4, pulls=2)
    await crawl_now(store, standin, "quillcap/marlframe")
    world.advance(3_600)
    world.update_item(items[1], body="Column 1 is right again.")
    world.change_repository(repository, has_issues=False)
    world.advance(3_600)
    await crawl_now(store, standin, "quillcap/marlframe")
    world.advance(3_600)
    world.change_repository(repository, has_issues=True)
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()
    assert await ahead(store, world) == []


async def dead_at_fetch(store, standin, world, item, *names):
    """Three crawls that GitHub does not tell this item's text, and then none of that any more."""
    standin.faults.add("forbidden", operation="Fetch", ids={item.node_id}, times=None)
    for _ in range(3):
        await crawl_now(store, standin, *names)
        world.advance(3_600)
    standin.faults.clear()
    assert [letter.number for letter in await find_dead_letters(store.pool, Choice())] == [item.number]


async def test_a_dead_letter_of_the_fetch_is_over_when_its_item_changes_and_is_fetched(store, standin, world):
    _, items = filled(world, issues=3)
    await dead_at_fetch(store, standin, world, items[1], "quillcap/marlframe")
    world.update_item(items[1], body="Column 1 is doubled, and everybody may know.")
    await crawl_now(store, standin, "quillcap/marlframe")
    await asked_to_digest(store)
    assert await find_dead_letters(store.pool, Choice()) == []
    assert await rows(store, "SELECT FROM fetch_failure") == []
    status = await read_status(store.pool)
    assert (status.complete, status.dead_letters, status.gaps) == (True, 0, [])
    assert (await reconcile(store.pool)).differences == []


@pytest.mark.parametrize(("stored", "reason"), [(True, "changed, new text not fetched yet"), (False, "known, text not fetched yet")])
async def test_an_update_after_a_dead_letter_is_missed_until_it_is_fetched(store, standin, world, stored, reason):
    _, items = filled(world, issues=3)
    if stored:
        await crawl_now(store, standin, "quillcap/marlframe")
        world.advance(3_600)
        world.update_item(items[1], body="Column 1 is a secret.")
    await dead_at_fetch(store, standin, world, items[1], "quillcap/marlframe")
    await asked_to_digest(store)
    status = await read_status(store.pool)
    dead = "changed, its new text is a dead letter: FORBIDDEN" if stored else "dead letter: FORBIDDEN"
    assert (status.complete, [(gap.reason, gap.count) for gap in status.gaps]) == (True, [(dead, 1)])

    world.update_item(items[1], body="Column 1 is no secret any more.")
    standin.faults.add("exhausted", operation="Fetch")  # the crawl ends between what it was told and its text
    with pytest.raises(RateLimited):
        await crawl_now(store, standin, "quillcap/marlframe")
    status = await read_status(store.pool)
    assert (status.complete, status.dead_letters, [(gap.reason, gap.count) for gap in status.gaps]) == (False, 0, [(reason, 1)])
    assert await find_dead_letters(store.pool, Choice()) == []
    assert (await reconcile(store.pool)).differences == []


async def test_attempts_do_not_add_up_over_successes(store, standin, world):
    """GitHub refuses every update of it once: no dead letter comes of that."""
    _, items = filled(world, issues=2)
    for hour in range(4):
        world.update_item(items[1], body=f"Column 1 was doubled {hour} times.")
        standin.faults.add("forbidden", operation="Fetch", ids={items[1].node_id})
        await crawl_now(store, standin, "quillcap/marlframe")
        assert await rows(store, "SELECT attempts, dead FROM fetch_failure") == [(1, False)]
        world.advance(3_600)
        await crawl_now(store, standin, "quillcap/marlframe")
        assert await rows(store, "SELECT attempts, dead FROM fetch_failure") == []
        world.advance(3_600)
    assert await compared(store, world) == Comparison()


async def test_a_repository_that_github_will_not_tell_is_swept_next_time(store, standin, world):
    repositories = world.populate(30, items_each=4, seed=7)
    await follow(store, repositories)
    await crawl_now(store, standin)
    world.hour(120, seed=1)
    standin.faults.add("forbidden", operation="Sweep", ids={repositories[0].node_id}, times=None)
    crawled = await crawl_now(store, standin)
    assert list(crawled.failed) == [repositories[0].full_name]
    assert "SAML" in crawled.failed[repositories[0].full_name]
    assert {repo for repo, _ in (await compared(store, world)).missed} <= {repositories[0].full_name}
    assert [(gap.stage, gap.count) for gap in (await read_status(store.pool)).gaps if gap.stage == "sweep"] == [("sweep", 1)]
    standin.faults.clear()
    world.advance(3_600)
    assert (await crawl_now(store, standin)).failed == {}
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize(("kind", "patience"), [("resource_limits", 3_600), ("forbidden", 3_600), ("not_found", 86_500)])
async def test_names_that_github_does_not_tell_wait_an_hour_and_those_that_it_does_not_know_a_day(store, standin, world, kind, patience):
    await follow(store, world.populate(3, items_each=2, seed=7))
    standin.faults.add(kind, operation="Resolve", times=None)
    assert len((await crawl_now(store, standin)).failed) == 3
    standin.faults.clear()
    world.advance(patience - 3_600)
    assert await rows(store, "SELECT FROM item") == []
    world.advance(3_600)
    assert (await crawl_now(store, standin)).failed == {}
    assert await compared(store, world) == Comparison()


async def test_a_used_up_quota_stops_the_crawl_and_the_next_one_goes_on(store, standin, world):
    await follow(store, world.populate(150, items_each=4, seed=8))
    standin.faults.add("exhausted", after=6)
    with pytest.raises(RateLimited, match=r"GitHub's limit is reached for \d+ minutes") as caught:
        await crawl_now(store, standin)
    assert caught.value.resets_at is not None
    assert await ahead(store, world) == []
    assert 0 < len(await rows(store, "SELECT FROM item WHERE stored_at IS NOT NULL")) < 600
    world.advance(3_600)
    await crawl_now(store, standin)
    assert await compared(store, world) == Comparison()
    assert standin.counters.fetched_twice == {}


async def test_requests_in_flight_never_exceed_the_limit_of_each_credential(store, standin, world):
    await follow(store, world.populate(400, items_each=3, seed=9))
    standin.service.latency_seconds = 0.02
    await crawl_now(store, standin, tokens=("token-a", "token-b"), in_flight=3, batch=10)
    assert await compared(store, world) == Comparison()
    peaks = standin.counters.peak_by_credential
    assert (max(peaks.values()), set(peaks)) == (3, {"token-a", "token-b"})
    assert 3 < standin.counters.peak_in_flight <= 6


# bad input


async def test_names_that_lead_nowhere_are_named_and_the_rest_is_crawled(store, standin, world):
    filled(world, issues=2)
    world.make_private(filled(world, issues=2, name="brindle/oat")[0])
    renamed, _ = filled(world, issues=2, name="brindle/old")
    world.rename_repository(renamed, "brindle/new")
    crawled = await crawl_now(store, standin, "quillcap/marlframe", "no/such", "brindle/oat", "brindle/old")
    assert crawled.failed == {"no/such": "not found, or private", "brindle/oat": "not found, or private"}
    assert await compared(store, world) == Comparison()


async def test_switched_off_issues_leave_the_pull_requests(store, standin, world, caplog):
    repository, _ = filled(world, issues=4, pulls=4)
    world.disable_issues(repository)
    crawled = await crawl_now(store, standin, "quillcap/marlframe")
    assert crawled.failed == {}
    assert await compared(store, world) == Comparison()
    assert "quillcap/marlframe: its issues are switched off, so only its pull requests are crawled" in caplog.text


@pytest.mark.parametrize("flag", ["is_locked", "is_disabled"])
async def test_a_repository_that_github_has_locked_keeps_what_is_stored_of_it(store, standin, world, caplog, flag):
    repository, items = filled(world, issues=4)
    await crawl_now(store, standin, "quillcap/marlframe")
    world.change_repository(repository, **{flag: True})
    world.advance(3_600)
    world.update_item(items[0], body="Column 0 is right again.")
    await crawl_now(store, standin, "quillcap/marlframe")
    assert "quillcap/marlframe: GitHub has locked or disabled it, so it stays as it is" in caplog.text
    assert (await compared(store, world)).missed == [("quillcap/marlframe", 1)]
    assert await ahead(store, world) == []
    world.change_repository(repository, **{flag: False})
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()


async def test_unusual_items_are_stored_as_they_are(store, standin, world):
    repository, _ = filled(world, issues=1)
    world.add_item(repository, "issue", author=None, body="The account is gone.")
    world.add_item(repository, "pull_request", body="x\u2028\U0001f9ea " * 45_000)  # 225 KB of UTF-8 and more
    world.add_item(repository, "issue", title="No body at all", body="")
    await crawl_now(store, standin, "quillcap/marlframe")
    assert await compared(store, world) == Comparison()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("html", "with text/html, not with GitHub's JSON: is there a proxy?"),
        ("insufficient_scopes", "token 1 of 1 may not read this: Your token has not been granted the scopes"),
        ("forbidden_403", "token 1 of 1 is forbidden to ask"),
        ("401", "GitHub refuses token 1 of 1: replace it"),
        ("drop", "the connection broke"),
    ],
)
async def test_when_nobody_answers_any_more_the_crawl_says_why_and_goes_on_another_time(store, standin, world, fault, message):
    await follow(store, world.populate(150, items_each=4, seed=10))
    standin.faults.add(fault, after=5, times=None)
    with pytest.raises(SourceUnavailable, match=re.escape(message)):
        await crawl_now(store, standin)
    assert await ahead(store, world) == []
    status = await read_status(store.pool)
    assert (status.freshness_seconds, message in status.warnings[0]) == (None, True)  # a crawl that failed makes nothing fresh
    standin.faults.clear()
    await crawl_now(store, standin)
    assert await compared(store, world) == Comparison()
    status = await read_status(store.pool)
    assert (status.freshness_seconds is None, status.warnings) == (False, [])


async def test_a_token_that_is_refused_leaves_the_work_to_the_others(store, standin, world):
    await follow(store, world.populate(120, items_each=4, seed=11))
    standin.faults.add("insufficient_scopes", credential="token-b", times=None)
    await crawl_now(store, standin, tokens=("token-b", "token-a"))
    assert await compared(store, world) == Comparison()
    assert standin.counters.requests_by_credential["token-b"] <= 2


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_an_hour_off_changes_nothing(store, world, hours):
    """Ours, that is: GitHub's is right by definition. An App must sign its proofs with the time as GitHub has it."""
    world.now = datetime.now(UTC) + timedelta(hours=hours)
    private_key, public_key = key_pair()
    with StandIn(world) as standin:
        standin.limits.register_app("4711", public_key, ["77"])
        await follow(store, world.populate(60, items_each=4, seed=12))
        app = Credential(AppInstallation("4711", "77", private_key, standin.url))
        for updates in (1, 60, 60):
            world.hour(updates, seed=updates)
            async with open_github(standin.graphql_url, [app]) as github, recorded_run(store, "crawl") as run:
                await crawl(store, github, (), run, CrawlOptions(since=LONG_AGO))
            assert await compared(store, world) == Comparison()
        assert standin.counters.fetched_twice == {}
        assert standin.counters.tokens_issued == 3  # they live for an hour, and an hour passes each time


# another source


async def test_rest_and_graphql_tell_the_same_items(store, standin, world):
    repositories = world.populate(8, items_each=30, seed=13)
    filled(world, issues=120, pulls=90)
    world.hour(60, seed=1)
    names = [*(repository.full_name for repository in repositories), "quillcap/marlframe"]
    await crawl_now(store, standin, *names)
    by_graphql = await told(store)
    await rows(store, "DELETE FROM repository RETURNING id")
    async with open_source(standin.url, "token-a") as source, recorded_run(store, "crawl") as run:
        failed = await crawl(store, source, names, run, CrawlOptions(since=LONG_AGO))
    assert failed == {}
    assert len(by_graphql) == len(world.record())
    assert await told(store) == by_graphql


async def test_a_private_repository_fails_alone_over_rest_and_nothing_of_it_is_stored(store):
    """Its token may read it: GitHub tells all."""

    def github(request):
        name = request.url.path.removeprefix("/repos/").removesuffix("/issues")
        if not request.url.path.endswith("/issues"):
            return httpx2.Response(200, json={"private": name == "quillcap/secret"})
        url = f"https://github.com/{name}/issues/1"
        fields = {"number": 1, "title": "Totals", "state": "open", "html_url": url, "updated_at": "2026-01-10T12:00:00Z"}
        return httpx2.Response(200, json=[fields])

    names = ["quillcap/secret", "quillcap/marlframe"]
    transport = httpx2.MockTransport(github)
    async with open_source("https://api.github.com", "token", transport=transport) as source, recorded_run(store, "crawl") as run:
        failed = await crawl(store, source, names, run, CrawlOptions(newest=30))
    assert failed == {"quillcap/secret": "it is private, and private repositories are not followed: nothing of it was read"}
    stored = "SELECT full_name, number FROM item JOIN repository ON repository.id = repository_id"
    assert await rows(store, stored) == [("quillcap/marlframe", 1)]


async def told(store):
    """What both sources tell. REST has its own database ids for pull requests, and counts comments without being asked to."""
    async with store.pool.connection() as connection:
        items = await stored_items(connection)
    return [{name: value for name, value in item.items() if name not in {"database_id", "comments_count"}} for item in items]


async def asked_to_digest(store):
    """Digest what is due; returns how many texts the engine was asked to summarize."""
    stub = StubEngine()
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(stub)) as client:
        engine = await preflight(client, "stub", purpose="LLM")
        async with recorded_run(store, "digest") as run:
            await digest(store, Engines(engine, engine, VERSION, None), run)
    return run.counts.llm_requests


async def numbers_found(store, repo="quillcap/marlframe"):
    version = await ensure_version(store.pool, VERSION)
    try:
        found = await search(store.pool, version, "totals doubled column", None, mode="text", filters=Filters((repo,)), limit=100)
    except NotStored:
        return set()
    return {hit.number for hit in found.hits}


# what no list tells of any more


@pytest.mark.parametrize("followed", [True, False])
@pytest.mark.parametrize("stored", [True, False])  # an earlier text of it
async def test_a_dead_letter_that_is_retried_is_fetched_by_the_next_crawl_and_digested(store, standin, world, stored, followed):
    repository, items = filled(world, issues=3)
    names = () if followed else ("quillcap/marlframe",)
    await follow(store, [repository] if followed else [])
    if stored:
        await crawl_now(store, standin, *names)
        world.advance(3_600)
        world.update_item(items[1], body="Column 1 is a secret.")
    await dead_at_fetch(store, standin, world, items[1], *names)
    await crawl_now(store, standin, *names)  # its mark is behind it by now, and nobody asked to try again
    assert standin.counters.requests["Fetch"] == (4 if stored else 3)
    assert await asked_to_digest(store) == (3 if stored else 2)
    assert await retry_dead_letters(store.pool, Choice()) == {"digest": 0, "fetch": 1}
    assert not (await read_status(store.pool)).complete
    world.advance(3_600)
    crawled = await crawl_now(store, standin, *names)
    assert (crawled.counts.items, await asked_to_digest(store)) == (1, 1)
    assert await compared(store, world) == Comparison()
    status = await read_status(store.pool)
    assert (status.complete, status.gaps) == (True, [])


async def test_what_is_left_of_a_repository_that_is_not_followed_any_more_is_fetched_until_its_attempts_are_spent(store, standin, world):
    kept, _ = filled(world, issues=1)
    left, items = filled(world, issues=4, name="brindle/oat")
    await follow(store, [kept, left])
    standin.faults.add("forbidden", operation="Fetch", ids={items[0].node_id, items[1].node_id})
    await crawl_now(store, standin)
    await follow(store, [kept])
    standin.faults.add("forbidden", operation="Fetch", ids={items[1].node_id}, times=None)
    attempts = partial(rows, store, "SELECT number, attempts, dead FROM fetch_failure JOIN item ON id = item_id ORDER BY number")
    for tried in ([(2, 2, False)], [(2, 3, True)], [(2, 3, True)]):
        before = await attempts()
        world.advance(3_600)
        await crawl_now(store, standin, "quillcap/marlframe")  # another repository alone
        assert await attempts() == before
        await crawl_now(store, standin)
        assert await attempts() == tried
    assert standin.counters.requests["Fetch"] == 3
    assert (await compared(store, world)).missed == [("brindle/oat", 2)]


LEASED = "UPDATE repository SET lease_token = 1, lease_worker = %s, lease_until = now() + interval '1 hour'"
BACKFILL_RUN = "INSERT INTO run (kind, started_at, finished_at) VALUES ('backfill', now() - %s::interval, %s::timestamptz)"
BACKFILL_PART = (
    "WITH b AS (INSERT INTO backfill (request, since, until) VALUES ('{}', now(), now()) RETURNING id) "
    "INSERT INTO backfill_part (backfill_id, repository_id, kind, done_at) SELECT b.id, r.id, 'issue', %s::timestamptz FROM b, repository r"
)
AT_WORK = (BACKFILL_RUN, "1 hour", None)


@pytest.mark.parametrize(
    ("statements", "fetched"),
    [
        ([], 2),
        ([(LEASED, "living")], 0),  # a crawl at work has it in hand
        ([(LEASED, "dead")], 2),
        ([AT_WORK, (BACKFILL_PART, None)], 1),  # a backfill reads the issues; the other is a pull request
        ([AT_WORK, (BACKFILL_PART, "2026-01-01")], 2),  # and is done with them
        ([(BACKFILL_RUN, "1 hour", "2026-01-01"), (BACKFILL_PART, None)], 2),  # and ended without them
        ([(BACKFILL_RUN, "3 days", None), (BACKFILL_PART, None)], 1),
        ([(BACKFILL_RUN, "8 days", None), (BACKFILL_PART, None)], 2),  # and was killed
        ([("INSERT INTO purge (host, repository) SELECT host, full_name FROM repository",)], 0),
        ([("INSERT INTO purge (host, repository, number) SELECT host, full_name, 1 FROM repository",)], 1),
        ([("UPDATE item SET tombstoned_at = now() WHERE number = 2",)], 1),
        ([("UPDATE repository SET gone_at = now()",)], 0),
        ([("UPDATE repository SET host = 'ghe.example.com'",)], 0),
        ([("UPDATE item SET node_id = NULL WHERE number = 1",)], 1),  # of a file
    ],
)
async def test_what_others_have_in_hand_and_what_is_gone_or_purged_is_not_fetched(store, standin, world, statements, fetched):
    filled(world, issues=1, pulls=1)
    await crawl_now(store, standin, "quillcap/marlframe")
    await rows(store, "UPDATE item SET stored_at = NULL RETURNING id")
    async with worker(store.dsn) as living, opened(standin) as github, recorded_run(store, "crawl") as run:
        workers = {"living": living, "dead": living + 1}
        for query, *parameters in statements:
            await rows(store, f"{query} RETURNING 1", *(workers.get(parameter, parameter) for parameter in parameters))
        fetcher = Fetcher(store, github, run, host=HOST, comments=0, batch=50)
        await fetch_leftovers(store, fetcher, Scope(HOST, None, run.id), no_progress)
    assert fetcher.fetched == fetched


# several crawls at the same time


async def test_two_crawls_at_once_share_the_list_and_ask_for_nothing_twice(store, standin, world, monkeypatch):
    repositories = world.populate(240, items_each=2, seed=4)
    await follow(store, repositories)
    await crawl_now(store, standin)
    world.advance(3_600)
    for repository in repositories[::2]:
        world.add_item(repository, "issue", title="It is back")
    before = standin.counters.requests["Sweep"]
    monkeypatch.setattr(crawling, "claim_repositories", partial(claim_repositories, size=40))
    standin.service.latency_seconds = 0.1  # long beside the moment by which one begins before the other
    await asyncio.gather(*(crawl_now(store, standin, tokens=(token,), batch=20) for token in ("token-a", "token-b")))
    assert await compared(store, world) == Comparison()
    assert standin.counters.fetched_twice == {}
    alone = 240 / 20
    assert alone <= standin.counters.requests["Sweep"] - before < 1.7 * alone
    assert await rows(store, "SELECT count(*) FROM repository WHERE lease_token IS NOT NULL") == [(0,)]


async def test_two_crawls_at_once_fetch_once_what_is_left_and_each_ends_when_all_of_it_is_fetched(store, standin, world):
    kept, _ = filled(world, issues=1)
    filled(world, issues=150, name="brindle/oat")
    await follow(store, [kept])
    await crawl_now(store, standin, "quillcap/marlframe", "brindle/oat")
    await rows(store, "UPDATE item SET stored_at = NULL WHERE number > 1 RETURNING id")
    world.advance(3_600)
    standin.counters.reset()
    standin.service.latency_seconds = 0.1

    async def crawl_to_the_end(token):
        await crawl_now(store, standin, tokens=(token,), batch=20)
        assert await compared(store, world) == Comparison()

    await asyncio.gather(crawl_to_the_end("token-a"), crawl_to_the_end("token-b"))
    assert (standin.counters.fetched_twice, standin.counters.served.total()) == ({}, 149)
