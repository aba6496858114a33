"""Crawls of the followed list, beside the stand-in's own record: how far the marks say that everything is stored, and whether it is.

The real crawl asks the stand-in without a network between them, in small pages and batches and one request at a time, so that an example is
the same each time. Items change between crawls and within them; GitHub fails; a crawl is killed at any of its requests; others hold
repositories, die, and come back as zombies; repositories leave the list and join it again.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime

import httpx2
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from starsearch.crawling import CrawlOptions, crawl
from starsearch.errors import StarsearchError
from starsearch.github.client import open_github
from starsearch.github.credentials import Credential, Token
from starsearch.models import Followed
from starsearch.pipeline import recorded_run
from starsearch.storage import Store
from starsearch.store import repository_leases
from starsearch.store.database import open_pool
from starsearch.store.dead_letters import Choice, retry_dead_letters
from starsearch.store.leases import worker
from starsearch.store.repository_leases import begin_sweep, claim_repositories
from tests.crawls import HOST, LONG_AGO, follow
from tests.machines.place import Machine, Place
from tests.standin.oracle import compare, marks_ahead
from tests.standin.service import Service
from tests.standin.things import Item
from tests.standin.world import World

TICK_SECONDS = 400.0  # of GitHub's clock, by each request: longer than the overlap of two crawls hides
REPOSITORIES, ITEMS = 3, 9
BATCH = 2
OPERATIONS = ("Sweep", "Fetch", "ListIssues", "ListPulls")
FAULTS = ("502", "500", "html", "401", "exhausted", "resource_limits", "forbidden", "wrong_null", "holes")

some = st.integers(0, 7)


@dataclass
class Stalled:
    """A crawl that holds repositories and does nothing."""

    number: int
    session: contextlib.AbstractAsyncContextManager[int]
    repositories: list[Followed]
    lives: bool = True


class Crawls(Machine):
    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.world = World(tick_seconds=TICK_SECONDS)
        self.service = Service(self.world)
        self.listed: set[int] = set()  # database ids
        self.items: list[Item] = []
        self.told: dict[tuple[int, int], list[str]] = {}  # by repository and number every body that it had, oldest first
        self.stored: dict[tuple[int, int], int] = {}  # which of them is stored
        self.marks: dict[tuple[int, str], datetime] = {}
        self.stalled: list[Stalled] = []

    @initialize(items=st.lists(st.tuples(some, st.booleans()), min_size=4, max_size=7))
    def begin(self, items: list[tuple[int, bool]]) -> None:
        for _ in range(2):
            self.add_repository()
        for which, issue in items:
            self.add_item(which, issue)
        self.crawl_list(set(), 0, None)

    def teardown(self) -> None:
        """Left alone, everything comes in."""
        try:
            if self.listed:
                self.service.faults.clear()
                for each in self.stalled:
                    self._die(each)
                self.retry_dead_letters()
                self.world.advance(2 * 86_400)
                self._crawl()
                self._is_complete()
        finally:
            for each in self.stalled:
                self.place.run(each.session.__aexit__(None, None, None))

    # what happens on GitHub

    @precondition(lambda self: len(self.world.repositories) < REPOSITORIES)
    @rule()
    def add_repository(self) -> None:
        repository = self.world.add_repository(f"quillcap/number-{len(self.world.repositories)}")
        self._list(self.listed | {repository.database_id})

    @precondition(lambda self: len(self.items) < ITEMS)
    @rule(which=some, issue=st.booleans())
    def add_item(self, which: int, issue: bool) -> None:
        repository = self._one(list(self.world.repositories.values()), which)
        item = self.world.add_item(repository, "issue" if issue else "pull_request", body=f"It is wrong since {self.world.seconds}.")
        self._tell(item)

    @precondition(lambda self: self.items)
    @rule(which=some)
    def change_item(self, which: int) -> None:
        self._change(self._one(self.items, which))

    @precondition(lambda self: self.items)
    @rule(which=some, where=st.none() | some)
    def take_item_away(self, which: int, where: int | None) -> None:
        """Deleted, or transferred."""
        item = self._one(self.items, which)
        self.items.remove(item)
        others = [each for each in self.world.repositories.values() if each is not item.repository]
        if where is None or not others:
            self.world.delete_item(item)
        else:
            self._tell(self.world.transfer_item(item, self._one(others, where)))

    @rule(which=some)
    def rename_repository(self, which: int) -> None:
        repository = self._one(list(self.world.repositories.values()), which)
        self.world.rename_repository(repository, f"quillcap/renamed-{self.world.seconds}")
        self.world.advance(1)

    @rule(seconds=st.sampled_from([1, 299, 301, 3_600, 86_400]))
    def wait(self, seconds: int) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: len(self.service.faults.rules) < 3)
    @rule(kind=st.sampled_from(FAULTS), operation=st.sampled_from(OPERATIONS), times=st.integers(1, 4), after=st.integers(0, 2))
    def fail(self, kind: str, operation: str, times: int, after: int) -> None:
        self.service.faults.add(kind, operation, times=times, after=after, silent=times % 2 == 0)

    @precondition(lambda self: self.items)
    @rule(which=some, kind=st.sampled_from(["forbidden", "wrong_null", "resource_limits"]), times=st.sampled_from([1, 4]))
    def spoil_item(self, which: int, kind: str, times: int) -> None:
        item = self._one(self.items, which)
        self._change(item)
        self.service.faults.add(kind, "Fetch", ids={item.node_id}, times=times)

    # the list, and who reads it

    @rule(which=st.sets(some, min_size=1, max_size=3))
    def list_some(self, which: set[int]) -> None:
        repositories = list(self.world.repositories.values())
        self._list({self._one(repositories, each).database_id for each in which})

    @rule(changed=st.sets(some, max_size=3), which=some, operation=st.none() | st.sampled_from(OPERATIONS))
    def crawl_list(self, changed: set[int], which: int, operation: str | None) -> None:
        """Some items have changed; another one does once the operation has been answered."""
        for each in changed if self.items else ():
            self._change(self._one(self.items, each))
        quiet = not self.service.faults.rules and not any(each.lives for each in self.stalled)
        if operation and self.items:
            quiet = False
            self._change_after(operation, self._one(self.items, which))
        failed = self._crawl()
        self.world._hooks.clear()
        if quiet:
            assert failed == {}
            self._is_complete()

    @rule(which=some)
    def crawl_one(self, which: int) -> None:
        self._crawl(self._one(list(self.world.repositories.values()), which).full_name)

    @rule(requests=st.integers(1, 6))
    def kill_a_crawl(self, requests: int) -> None:
        """At the given request, whatever of its own it has in its hands by then."""
        self.place.run(self._killed(requests))

    @precondition(lambda self: len(self.stalled) < 2)
    @rule(size=st.integers(1, 2))
    def stall(self, size: int) -> None:
        session = worker(self.place.dsn)
        number = self.place.run(session.__aenter__())
        sweeper = self.place.run(begin_sweep(self.store.pool, HOST, number, now=self.world.now, since=LONG_AGO))
        mine = self.place.run(claim_repositories(self.store.pool, sweeper, size=size))
        others = {each.id for other in self.stalled if other.lives for each in other.repositories}
        self.stalled.append(Stalled(number, session, mine))
        assert not {each.id for each in mine} & others, "two hold one repository"

    @precondition(lambda self: any(each.lives for each in self.stalled))
    @rule(which=some)
    def die(self, which: int) -> None:
        self._die(self._one([each for each in self.stalled if each.lives], which))

    @precondition(lambda self: self.stalled)
    @rule(which=some, late=st.booleans())
    def end_what_was_held(self, which: int, late: bool) -> None:
        """`late`: after its session is gone, and another one has them."""
        stalled = self._one(self.stalled, which)
        if late:
            self._die(stalled)
            self.stall(REPOSITORIES)
        before = dict(self.place.rows("SELECT id, lease_token FROM repository"))
        ended = self.place.run(self._end(stalled))
        after = dict(self.place.rows("SELECT id, lease_token FROM repository"))
        ours = {each.id for each in stalled.repositories if before.get(each.id) == each.lease}
        assert ended == len(ours)
        assert after == before | dict.fromkeys(ours)
        stalled.repositories = []

    @rule()
    def retry_dead_letters(self) -> None:
        self.place.run(retry_dead_letters(self.store.pool, Choice()))

    # what must hold

    @invariant()
    def no_mark_is_ahead_of_its_items(self) -> None:
        ahead = self.place.run(self._ahead())
        assert ahead <= self._given_up()

    @invariant()
    def no_mark_goes_back(self) -> None:
        marks = {
            (repository, kind): swept_at
            for repository, kind, swept_at in self.place.rows("SELECT repository_id, kind, swept_at FROM checkpoint")
        }
        assert all(marks.get(key, moment) >= moment for key, moment in self.marks.items())
        self.marks |= marks

    @invariant()
    def a_stored_text_is_one_that_was_told_and_never_an_older_one_again(self) -> None:
        query = "SELECT r.database_id, number, body FROM item i JOIN repository r ON r.id = repository_id WHERE stored_at IS NOT NULL"
        for repository, number, body in self.place.rows(query):
            version = self.told[repository, number].index(body)
            assert version >= self.stored.get((repository, number), 0)
            self.stored[repository, number] = version

    @invariant()
    def who_ended_holds_nothing(self) -> None:
        holders = {number for (number,) in self.place.rows("SELECT DISTINCT lease_worker FROM repository WHERE lease_token IS NOT NULL")}
        living = {number for (number,) in self.place.rows("SELECT worker FROM living_worker")}
        assert holders & living <= {each.number for each in self.stalled if each.lives}

    @invariant()
    def nothing_is_lost_and_kept_counts_are_right(self) -> None:
        assert self.place.rows("SELECT FROM lost_item") == []
        self.place.check_counts()

    # how

    def _one(self, those, which):
        return those[-1 - which % len(those)]

    def _tell(self, item: Item) -> None:
        self.items.append(item)
        self.told[item.repository.database_id, item.number] = [item.body]

    def _change(self, item: Item) -> None:
        self.world.advance(1)
        body = f"It is wrong since {self.world.seconds}."
        self.told[item.repository.database_id, item.number].append(body)
        self.world.update_item(item, body=body)

    def _change_after(self, operation: str, item: Item) -> None:
        def change() -> None:
            self.world._hooks.clear()
            self._change(item)

        self.world.after(operation, change)

    def _list(self, listed: set[int]) -> None:
        self.listed = listed
        self.place.run(follow(self.store, [self.world.repositories[each] for each in sorted(listed)]))

    def _die(self, stalled: Stalled) -> None:
        if stalled.lives:
            self.place.kill(stalled.number)
            stalled.lives = False

    async def _end(self, stalled: Stalled) -> int:
        async with self.store.pool.connection() as connection:
            return await repository_leases.end_leases(connection, stalled.repositories, at=self.world.now)

    async def _ahead(self) -> set[tuple[str, int]]:
        async with self.store.pool.connection() as connection:
            return set(await marks_ahead(connection, self.world.record(), since=LONG_AGO))

    def _given_up(self) -> set[tuple[str, int]]:
        """Dead letters of the fetch: known to be missing, and counted so."""
        query = (
            "SELECT full_name, number FROM fetch_failure JOIN item i ON i.id = item_id JOIN repository r ON r.id = repository_id WHERE dead"
        )
        return set(self.place.rows(query))

    def _is_complete(self) -> None:
        names = {self.world.repositories[each].full_name for each in self.listed}
        found = self.place.run(self._compared([row for row in self.world.record() if row["repo"] in names]))
        assert found.false_tombstones == []
        assert set(found.missed) <= self._given_up()

    async def _compared(self, record):
        async with self.store.pool.connection() as connection:
            return await compare(connection, record, whole=False)

    def _crawl(self, *names: str) -> dict[str, str]:
        try:
            return self.place.run(self._crawl_with(self.store, self.service, names))
        except StarsearchError as error:
            return {"": str(error)}

    async def _crawl_with(self, store: Store, service, names: tuple[str, ...] = ()) -> dict[str, str]:
        credentials = [Credential(Token("token", "token-a"), 1)]
        transport = httpx2.ASGITransport(app=service)
        async with (
            open_github("http://standin.test/graphql", credentials, transport=transport) as github,
            recorded_run(store, "crawl") as run,
        ):
            return await crawl(store, github, names, run, CrawlOptions(since=LONG_AGO, comments=0, batch=BATCH))

    async def _killed(self, requests: int) -> None:
        """Its process is gone: no session of its own is left, and nothing that it still does reaches the database."""
        doomed = asyncio.Event()
        left = requests

        async def service(scope, receive, send) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                doomed.set()
                await asyncio.Event().wait()
            await self.service(scope, receive, send)

        async with open_pool(self.place.dsn, size=4) as pool:
            crawling = asyncio.create_task(self._crawl_with(Store(self.place.dsn, pool), service))
            killing = asyncio.create_task(doomed.wait())
            await asyncio.wait([crawling, killing], return_when=asyncio.FIRST_COMPLETED)
            if not crawling.done():
                await self.place.kill_others()
                for each in self.stalled:
                    each.lives = False
                await pool.close()
            for task in (crawling, killing):
                task.cancel()
            await asyncio.gather(crawling, killing, return_exceptions=True)
