"""rank, crawl, backfill and status as a person runs them, against GitHub's stand-in; and kill -9 in the middle."""

import asyncio
import csv
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.crawls import LONG_AGO, key_pair, rows
from tests.standin.oracle import Comparison, compare, marks_ahead

COMMAND = [sys.executable, "-m", "starsearch.cli"]
KILLS = 3


@pytest.fixture
def setting(environment, standin):
    """The environment of a command that knows the stand-in and one of its tokens."""
    return environment | {
        "STARSEARCH_GITHUB_GRAPHQL_URL": standin.graphql_url,
        "STARSEARCH_GITHUB_REST_URL": standin.url,
        "STARSEARCH_GITHUB_TOKENS": "token-a",
        "STARSEARCH_SINCE": "2010-01-01",
    }


@pytest.fixture
def starsearch(setting):
    def run(*arguments, **extra):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], env=setting | extra, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def a_list(path, *entries):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("full_name", "stars"), *entries])
    return path


async def compared(store, world):
    async with store.pool.connection() as connection:
        return await compare(connection, world.record())


# rank


async def test_the_followed_list_by_search_is_versioned_and_holds_at_its_edge(starsearch, store, world):
    repositories = world.populate(300, items_each=1)
    done = starsearch("rank", "--top", "100", "--json")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["repositories"], counts["came"], counts["went"]) == (100, 100, 0)
    assert counts["requests"] == counts["points"] <= 20
    assert re.search(r"GitHub: \d+ points, \d+ requests, 0 splits, 0 retries", done.stderr)
    in_order = await rows(store, "SELECT full_name FROM repository WHERE followed ORDER BY rank")
    assert [name for (name,) in in_order] == [repository.full_name for repository in repositories[:100]]

    falling, rising, deleted = repositories[99], repositories[200], repositories[50]
    world.change_repository(rising, stars=repositories[10].stars)
    world.change_repository(falling, stars=repositories[102].stars)  # past 100, and not past 105
    world.delete_repository(deleted)
    again = json.loads(starsearch("rank", "--top", "100", "--json").stdout)
    assert (again["repositories"], again["came"], again["went"]) == (101, 2, 1)
    changes = await rows(store, "SELECT ranking_id, change, full_name FROM ranking_change JOIN repository ON id = repository_id")
    came = {("came", rising.full_name), ("came", repositories[100].full_name)}  # whose rank is a hundred now
    assert {row[1:] for row in changes if row[0] == 2} == came | {("went", deleted.full_name)}
    assert await rows(store, "SELECT source, repositories, came, went FROM ranking ORDER BY id") == [
        ("search", 100, 100, 0),
        ("search", 101, 2, 1),
    ]
    assert (falling.full_name,) in await rows(store, "SELECT full_name FROM repository WHERE followed")


async def test_a_list_of_ones_own_is_followed_and_its_bad_rows_are_named(starsearch, store, world, tmp_path):
    world.populate(60, items_each=2, seed=1)
    gone, private, renamed = (world.add_repository(f"quillcap/{name}") for name in ("gone", "private", "renamed"))
    world.add_item(renamed, "issue")
    entries = [(repository.full_name, repository.stars) for repository in world.repositories.values()]
    world.delete_repository(gone)
    world.make_private(private)
    world.rename_repository(renamed, "quillcap/new")
    path = a_list(tmp_path / "list.csv", *entries, ("no-slash", 5), ("a/b", "many"), ("never/was", 3))
    done = starsearch("rank", "--from", path)
    assert done.returncode == 0
    assert "64 repositories followed: 64 came, 0 went; 2 rejected" in done.stdout
    assert "rejected list.csv:65: 'no-slash' is not owner/name" in done.stderr

    crawled = starsearch("crawl", "--no-digest")
    assert crawled.returncode == 1  # everything else is done
    message = "3 repositories were not crawled, and join the next crawl"
    assert message in crawled.stderr
    for name in ("quillcap/gone", "quillcap/private", "never/was"):
        assert f"{name}: not found, or private" in crawled.stderr
    assert await compared(store, world) == Comparison()
    again = starsearch("crawl", "--no-digest")
    assert (again.returncode, message in again.stderr) == (0, False)  # those three are asked for again in a day


async def test_the_real_list_is_followed_and_resolved(starsearch, store, world, shared_data):
    path = shared_data / "top_repositories.csv.gz"
    counts = json.loads(starsearch("rank", "--from", path, "--json").stdout)
    assert (counts["repositories"], counts["came"], counts["requests"]) == (40_000, 40_000, 0)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        by_stars = sorted(csv.DictReader(file), key=lambda row: -int(row["stars"]))
    stars = await rows(store, "SELECT stars FROM repository WHERE followed ORDER BY rank")
    assert [number for (number,) in stars] == [int(row["stars"]) for row in by_stars[:40_000]]
    again = json.loads(starsearch("rank", "--from", path, "--json").stdout)
    assert (again["came"], again["went"]) == (0, 0)


# crawl


async def test_killed_in_mid_cycle_it_misses_nothing_and_no_mark_is_ahead(starsearch, store, world, standin, setting):
    """kill -9, wherever it happens to be; then the same command again."""
    world.populate(300, items_each=8, seed=2)
    starsearch("rank", "--top", "300")
    standin.service.latency_seconds = 0.1
    randomness = random.Random(20261124)
    for kill in range(1, KILLS + 1):
        process = subprocess.Popen([*COMMAND, "crawl", "--no-digest"], env=setting, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while await stored(store) < kill * 250 and process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await asyncio.sleep(randomness.uniform(0, 0.3))
        assert process.poll() is None, "killed too late to prove anything"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        async with store.pool.connection() as connection:
            assert await marks_ahead(connection, world.record(), since=LONG_AGO) == []
        world.hour(200, seed=kill)
    standin.service.latency_seconds = 0
    assert starsearch("crawl", "--no-digest").returncode == 0
    assert await compared(store, world) == Comparison()
    standin.counters.reset()
    again = json.loads(starsearch("crawl", "--no-digest", "--json").stdout)
    assert (again["items"], standin.counters.requests["Fetch"]) == (0, 0)


async def stored(store):
    [(number,)] = await rows(store, "SELECT count(*) FROM item WHERE stored_at IS NOT NULL")
    return number


async def test_what_a_crawl_cost_is_printed_and_kept(starsearch, world, standin):
    world.populate(60, items_each=4, seed=3)
    starsearch("rank", "--top", "60")
    standin.counters.reset()
    standin.faults.add("502", operation="Sweep", times=2)
    standin.faults.add("secondary_403", operation="Fetch")
    done = starsearch("crawl", "--no-digest", "--json")
    assert done.returncode == 0, done.stderr
    spent = json.loads(done.stdout)["github"]
    assert spent["points"] == standin.counters.all_points - 4  # a timeout is charged, and GitHub does not say so in its answer
    assert (spent["requests"], spent["splits"], spent["waits"]) == (standin.counters.all_requests, 2, 1)
    assert spent["by_query"]["sweep"] == standin.counters.requests["Sweep"]
    told = f"{spent['points']:,} points, {spent['requests']:,} requests"
    assert f"GitHub: {told}, 2 splits" in done.stderr
    status = json.loads(starsearch("status", "--json").stdout)
    assert {name: status["github"][name] for name in ("points", "requests", "splits", "waits")} == {
        name: spent[name] for name in ("points", "requests", "splits", "waits")
    }
    assert status["github"]["kind"] == "crawl"
    assert f"60 followed; the last crawl cost {told} to GitHub, 2 splits, 1 waits of 1 s" in starsearch("status").stdout


@pytest.mark.parametrize(
    ("settings", "fault", "message"),
    [
        ({"STARSEARCH_GITHUB_TOKENS": "expired"}, None, "GitHub refuses token 1 of 1: replace it"),
        ({}, "html", "is there a proxy?"),
    ],
)
def test_what_is_missing_is_a_clear_line_and_exit_code_3(starsearch, standin, settings, fault, message):
    if fault:
        standin.faults.add(fault, times=None)
    done = starsearch("crawl", "--repo", "quillcap/marlframe", "--no-digest", **settings)
    assert done.returncode == 3, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_app_whose_key_was_deleted_is_refused_with_what_to_do(starsearch, world, standin):
    world.populate(3, items_each=2)
    (ours, _), (_, theirs) = key_pair(), key_pair()
    standin.limits.register_app("4711", theirs, ["77"])
    app = {"STARSEARCH_GITHUB_APP_ID": "4711", "STARSEARCH_GITHUB_APP_PRIVATE_KEY": ours, "STARSEARCH_GITHUB_APP_INSTALLATION_ID": "77"}
    done = starsearch("crawl", "--repo", "owner-1/repository-1", "--no-digest", STARSEARCH_GITHUB_TOKENS="", **app)
    assert done.returncode == 3
    assert "make a new private key in the App's settings" in done.stderr
    assert "PRIVATE KEY-----" not in done.stderr
    both = starsearch("crawl", "--repo", "owner-1/repository-1", "--no-digest", **app)
    assert both.returncode == 0, both.stderr  # the token does the work


# backfill


def test_a_backfill_is_priced_and_then_done(starsearch, world, standin):
    repository = world.add_repository("quillcap/marlframe")
    for number in range(1, 31):
        world.add_item(repository, "issue" if number % 2 else "pull_request", created_at="2025-12-01", updated_at="2026-01-05")
    request = ("--repo", "quillcap/marlframe", "--since", "2026-01-01", "--until", "2026-01-07")
    told = starsearch("backfill", *request, "--dry-run")
    assert told.returncode == 0, told.stderr
    assert re.search(r"items\s+30\n", told.stdout)
    assert re.search(r"requests\s+3\n", told.stdout)
    assert standin.counters.requests["Fetch"] == 0
    done = json.loads(starsearch("backfill", *request, "--no-digest", "--json").stdout)
    assert (done["items"], done["inserted"]) == (30, 30)


def test_a_range_that_is_none_is_wrong_usage(starsearch):
    done = starsearch("backfill", "--since", "2026-01-02", "--until", "2026-01-01")
    assert done.returncode == 2
    assert "since is not before until" in done.stderr
