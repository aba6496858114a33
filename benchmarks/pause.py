"""How soon `starsearch pause` stops everything, that it leaves nothing half done, and that `resume` goes on without asking anything twice.

Two `starsearch digest` and a `starsearch crawl`, each looking at its brakes as seldom as it does by default. The engine takes a second for
a summary and a digest has 8 in flight, so that two batches of 64 would go on for 16 s; GitHub's stand-in takes half a second. Times are
the engine's and the stand-in's own: of the last request that came in, after the moment that the database has of the pause.
"""

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread

import psycopg

from benchmarks.inference_overhead import environment_of, fill, open_engine
from benchmarks.live import database_in
from benchmarks.measure import Figure, ask
from starsearch.settings import Settings
from starsearch.storage import open_store
from tests.standin.server import StandIn
from tests.standin.world import World

ITEMS, REPOSITORIES, ITEMS_EACH = 400, 100, 3
ENGINE_SECONDS, GITHUB_SECONDS = 1.0, 0.5
PATIENCE_SECONDS = 120.0
COMMAND = [sys.executable, "-m", "starsearch.cli"]
UNDER_WAY = (
    "SELECT (SELECT count(*) FROM due WHERE lease_token IS NOT NULL OR attempts > 0) + (SELECT count(*) FROM summary_lease) "
    "+ (SELECT count(*) FROM engine_call WHERE settled_at IS NULL) + (SELECT count(*) FROM repository WHERE lease_token IS NOT NULL) "
    "+ (SELECT count(*) FROM run WHERE finished_at IS NULL)"
)
SUMMARIES = "SELECT count(*) FROM summary"


@dataclass
class Asked:
    """The moment of GitHub's last request, in seconds since 1970."""

    last: float = 0.0


def pause_and_resume() -> list[Figure]:
    world = World()
    repositories = world.populate(REPOSITORIES, items_each=ITEMS_EACH, seed=1)
    with StandIn(world) as standin, open_engine(seconds=ENGINE_SECONDS, titles=True) as settings, database_in(settings.home) as dsn:
        environment = environment_of(settings) | {
            "STARSEARCH_GITHUB_GRAPHQL_URL": standin.graphql_url,
            "STARSEARCH_GITHUB_REST_URL": standin.url,
            "STARSEARCH_GITHUB_TOKENS": "token-a",
            "STARSEARCH_GITHUB_BATCH": "2",
            "STARSEARCH_SINCE": "2010-01-01",
        }
        _prepare(settings, environment, [(repository.full_name, repository.stars) for repository in repositories])
        standin.faults.add("slow", seconds=GITHUB_SECONDS, times=None)
        with _watched(standin) as github:
            working = [_start(environment, "crawl", "--no-digest")]
            while standin.counters.all_requests < 10 and working[0].poll() is None:
                time.sleep(0.1)
            working += [_start(environment | {"STARSEARCH_CONCURRENCY": "8"}, "digest") for _ in range(2)]
            _until(dsn, SUMMARIES, 60)
            _run(environment, "pause", "measured")
            ended = [process.wait(PATIENCE_SECONDS) for process in working]
            gone = time.time()
        paused = _moment_of_pause(dsn)
        begun = json.load(urllib.request.urlopen(f"{_engine(settings)}/begun", timeout=30))["last"]
        left, before = ask(dsn, UNDER_WAY), ask(dsn, SUMMARIES)
        halted = json.loads(_run(environment, "status", "--json"))
        standin.faults.clear()
        _run(environment, "resume")
        _run(environment | {"STARSEARCH_GITHUB_BATCH": "50", "STARSEARCH_CONCURRENCY": "64"}, "crawl")
        status = json.loads(_run(environment, "status", "--json"))
        asked = json.load(urllib.request.urlopen(f"{_engine(settings)}/requests", timeout=30))["chat"]
        twice = asked - ask(dsn, SUMMARIES)
    if ended != [3, 3, 3]:
        raise AssertionError(f"the commands did not end for the pause: exit codes {ended}")
    missing = ITEMS + REPOSITORIES * ITEMS_EACH - status["embedded"] + (not status["complete"])
    detail = f"s after the pause; GitHub's {github.last - paused:.1f}; all processes gone after {gone - paused:.1f}"
    consistent = halted["known"] == halted["embedded"] + halted["pending"] + halted["dead_letters"]
    return [
        Figure(
            "pause.last_request_seconds",
            round(max(begun, github.last) - paused, 1),
            f"{detail}; the engine's {begun - paused:.1f}",
            "<=",
            10,
        ),
        Figure("pause.left_open", left + (not consistent), f"leases, turns, calls, runs; {halted['embedded']:,} digested by then", "==", 0),
        Figure("pause.asked_twice", twice, f"of {asked:,} summaries, {before:,} before the pause", "==", 0),
        Figure("pause.missing_after_resume", missing, f"of {status['known']:,} items", "==", 0),
    ]


def _prepare(settings: Settings, environment: dict[str, str], followed: list[tuple[str, int]]) -> None:
    """A database with items to digest, and a list to crawl."""

    async def store_items() -> None:
        async with open_store(settings) as store:
            await fill(store, ITEMS, "'report ' || n")

    asyncio.run(store_items())
    file = settings.home / "list.csv"
    file.write_text("full_name,stars\n" + "".join(f"{name},{stars}\n" for name, stars in followed))
    _run(environment, "rank", "--from", str(file), "--top", str(len(followed)))


@contextmanager
def _watched(standin: StandIn) -> Iterator[Asked]:
    """When the stand-in's count of requests last grew, to a twentieth of a second."""
    asked, over = Asked(), Event()

    def watch() -> None:
        count = 0
        while not over.wait(0.05):
            if standin.counters.all_requests > count:
                count, asked.last = standin.counters.all_requests, time.time()

    thread = Thread(target=watch)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def _until(dsn: str, query: str, number: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while ask(dsn, query) < number:
        if time.monotonic() > deadline:
            raise AssertionError(f"{query}: not {number} within {PATIENCE_SECONDS:.0f} s")
        time.sleep(0.1)


def _moment_of_pause(dsn: str) -> float:
    with psycopg.connect(dsn) as connection:
        row = connection.execute("SELECT extract(epoch FROM since)::float8 FROM pause").fetchone()
    assert row is not None
    return float(row[0])


def _engine(settings: Settings) -> str:
    return str(settings.llm_base_url).removesuffix("/v1")


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=subprocess.DEVNULL)


def _run(environment: dict[str, str], *arguments: str) -> str:
    return subprocess.run([*COMMAND, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=600).stdout
