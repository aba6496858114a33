"""One crawl over GitHub's GraphQL API: sweep which items changed, fetch their text, and only then move the checkpoints.

The loop that keeps this free of loss:
- a repository's list is read newest update first, from where its last complete sweep *began* (by GitHub's clock, minus an
  overlap for lagging replicas), so whatever changes while pages are read is newer than the mark and comes with the next cycle;
- an item is written down as known when a sweep tells of it, before its text is asked for;
- the checkpoint moves in the transaction that stores the last of its items. Kill it anywhere: the next cycle reads again.

Workers take the most downstream work first (text, then further pages, then sweeps), so little is held in memory.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from starsearch.errors import Rejected, StarsearchError
from starsearch.github.batches import BATCH, Batches, Failed, Found, Missing
from starsearch.github.client import GitHub, Node
from starsearch.github.nodes import Page, read_facts, read_item, read_page
from starsearch.models import ITEM_TYPES, Followed, Item, ItemType, RepositoryFacts, SeenItem
from starsearch.store.items import LIVE, store_rows
from starsearch.store.repositories import mark_failed, mark_gone, store_facts
from starsearch.store.sweeps import FetchFailure, Reached, advance, entomb, record_failures, record_seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from psycopg import AsyncConnection

    from starsearch.pipeline import Run
    from starsearch.storage import Store

NEWEST = 10  # of each kind in a sweep; more cost no points, but make larger answers
OVERLAP = timedelta(seconds=300)
LISTS: dict[ItemType, str] = {"issue": "list_issues", "pull_request": "list_pulls"}

log = logging.getLogger(__name__)
Job = Callable[[], Awaitable[None]]
T = TypeVar("T")


@dataclass
class Mark:
    """A checkpoint on its way: it moves once the list is read back to `start` and nothing is `waiting` for its text."""

    repository: Followed
    kind: ItemType
    start: datetime
    high_water: datetime | None
    waiting: set[str] = field(default_factory=set)
    listed: bool = False
    failed: bool = False

    def done_without(self, nodes: set[str]) -> bool:
        return self.listed and not self.failed and self.waiting <= nodes


class Cycle:
    """Sweeps the given repositories once. `gone`: those that GitHub does not find any more."""

    def __init__(
        self, store: "Store", github: GitHub, run: "Run", *, host: str, comments: int = 0, batch: int = BATCH, newest: int = NEWEST
    ) -> None:
        self.gone: list[str] = []
        self._failures: dict[Followed, str] = {}
        self.fetched = self.tombstones = 0
        self._store, self._github, self._run = store, github, run
        self._host, self._comments, self._newest = host, comments, newest
        self._sweeps = Batches(github, "sweep", size=batch)
        self._fetches = Batches(github, "fetch", size=batch)
        self._to_sweep: deque[Followed] = deque()
        self._pages: deque[tuple[Mark, str]] = deque()
        self._to_fetch: deque[str] = deque()
        self._owner: dict[str, Mark] = {}  # of each item waiting for its text
        self._upstream = 0  # sweeps and pages on their way, which may bring more to fetch
        self._busy = 0
        self._stopped: BaseException | None = None
        self._changed = asyncio.Condition()
        self._writing = asyncio.Lock()  # one transaction at a time: which of them completes a mark must be certain

    async def sweep(self, repositories: Sequence[Followed]) -> None:
        """Raises RateLimited or SourceUnavailable after storing what had come; the rest joins the next cycle."""
        self._began = self._github.now
        self._total = len(repositories)
        self._to_sweep.extend(repositories)
        await asyncio.gather(*(self._work() for _ in range(self._github.width)))
        async with self._transaction() as connection:
            await mark_failed(connection, {repository.id: reason for repository, reason in self._failures.items()}, at=self._began)
        if self._stopped:
            raise self._stopped

    @property
    def failed(self) -> dict[str, str]:
        """Repositories that were not swept to the end, by name, with the reason; they join the next cycle."""
        return {repository.full_name: reason for repository, reason in self._failures.items()}

    async def _work(self) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._stopped or self._has_job() or not self._busy)
                if self._stopped or not self._has_job():
                    self._changed.notify_all()
                    return
                job, upstream = self._next_job()
                self._busy += 1
                self._upstream += upstream
            try:
                await job()
            except BaseException as error:
                self._stopped = self._stopped or error
            async with self._changed:
                self._busy -= 1
                self._upstream -= upstream
                self._changed.notify_all()

    def _has_job(self) -> bool:
        return bool(self._to_sweep or self._pages or self._fetch_ready())

    def _fetch_ready(self) -> bool:
        """A full batch, or the last one."""
        return len(self._to_fetch) >= self._fetches.size or bool(self._to_fetch and not (self._to_sweep or self._pages or self._upstream))

    def _next_job(self) -> tuple[Job, bool]:
        """The job, and whether it may bring more to fetch."""
        if self._fetch_ready():
            ids = _take(self._to_fetch, self._fetches.size)
            return (lambda: self._fetch(ids)), False
        if self._pages:
            mark, after = self._pages.popleft()
            return (lambda: self._read_page(mark, after)), True
        repositories = _take(self._to_sweep, self._sweeps.size)
        return (lambda: self._sweep(repositories)), True

    async def _sweep(self, repositories: Sequence[Followed]) -> None:
        since = min(repository.starts["issue"] for repository in repositories) - OVERLAP
        ids = [repository.node_id for repository in repositories]
        found = await self._sweeps.ask(ids, since=_iso(since), newest=self._newest)
        told = [_Told.of(repository, found[repository.node_id]) for repository in repositories]
        async with self._transaction() as connection:
            await mark_gone(connection, self._host, [each.repository.node_id for each in told if each.gone], at=self._began)
            await store_facts(connection, self._host, [each.facts for each in told if each.facts])
            await self._record(
                connection, [(self._mark(each.repository, kind, page), page) for each in told for kind, page in each.pages.items()]
            )
        self.gone += [each.repository.full_name for each in told if each.gone]
        self._failures |= {each.repository: each.failure for each in told if each.failure}
        self._run.progress("sweep", self._total - len(self._to_sweep), self._total)

    def _mark(self, repository: Followed, kind: ItemType, page: Page) -> Mark:
        start = repository.starts[kind] - OVERLAP
        return Mark(repository, kind, start, max((item.updated_at for item in page.items if item.updated_at >= start), default=None))

    async def _read_page(self, mark: Mark, after: str) -> None:
        variables: dict[str, object] = {"id": mark.repository.node_id, "after": after}
        if mark.kind == "issue":
            variables["since"] = _iso(mark.start)
        try:
            answer = await self._github.ask(LISTS[mark.kind], variables)
            page = read_page(answer.data["node"] or {}, mark.kind)
        except (KeyError, TypeError, ValueError) as error:
            self._fail(mark, f"a page of its {mark.kind} list is not readable: {type(error).__name__}")
            return
        except StarsearchError as error:
            self._fail(mark, str(error))
            if error.exit_code == 3 or hasattr(error, "resets_at"):
                raise
            return
        async with self._transaction() as connection:
            await self._record(connection, [(mark, page)])

    async def _record(self, connection: "AsyncConnection", pages: Sequence[tuple[Mark, Page]]) -> None:
        """Write down what the pages tell; what needs its text is queued, and quiet repositories are done already."""
        rows: list[tuple[int, SeenItem]] = []
        changed: list[tuple[Mark, list[SeenItem], Page]] = []
        for mark, page in pages:
            items = [item for item in page.items if item.updated_at >= mark.start]
            rows += [(mark.repository.id, item) for item in items]
            changed.append((mark, items, page))
        wanted = await record_seen(connection, rows)
        done = []
        for mark, items, page in changed:
            ids = {item.node_id for item in items} & wanted - self._owner.keys()
            reaches_back = page.after is not None and len(items) == len(page.items)
            mark.listed = not reaches_back
            mark.waiting |= ids
            self._owner |= dict.fromkeys(ids, mark)
            self._to_fetch.extend(sorted(ids))
            if reaches_back and page.after:
                self._pages.append((mark, page.after))
            elif mark.done_without(set()):
                done.append(mark)
        await advance(connection, [self._reached(mark) for mark in done])

    async def _fetch(self, ids: Sequence[str]) -> None:
        found = await self._fetches.ask(ids, comments=max(self._comments, 1), withComments=self._comments > 0)
        items, failures = self._read_items(found)
        missing = [node_id for node_id, node in found.items() if isinstance(node, Missing) or _private(node)]
        async with self._transaction() as connection:
            self.tombstones += await entomb(connection, missing)
            await self._store_items(connection, items)
            dead = await record_failures(connection, failures)
            settled = set(ids) - {failure.node_id for failure in failures} | dead
            marks = {id(mark): mark for node_id in ids if (mark := self._owner.get(node_id))}.values()
            await advance(connection, [self._reached(mark) for mark in marks if mark.done_without(settled)])
        for node_id in ids:
            mark = self._owner.pop(node_id)
            mark.waiting.discard(node_id)
            if node_id not in settled:
                mark.failed = True
                self._failures[mark.repository] = "the text of an item could not be fetched"
        self.fetched += len(items)
        self._run.progress("fetch", self.fetched, self.fetched + len(self._to_fetch))

    def _read_items(self, found: dict[str, Found]) -> tuple[list[tuple[Item, RepositoryFacts]], list[FetchFailure]]:
        items, failures = [], []
        for node_id, node in found.items():
            if isinstance(node, Failed):
                failures.append(FetchFailure(node_id, node.reason, node.detail))
            elif isinstance(node, dict) and not _private(node):
                try:
                    items.append((read_item(node, host=self._host), read_facts(node["repository"])))
                except Rejected as error:
                    failures.append(FetchFailure(node_id, "rejected", str(error), permanent=True))
        return items, failures

    async def _store_items(self, connection: "AsyncConnection", items: Sequence[tuple[Item, RepositoryFacts]]) -> None:
        """Items under the repositories they are in now, which is not where they were seen when they were transferred."""
        ids = {self._owner[item.node_id].repository.node_id: self._owner[item.node_id].repository.id for item, _ in items if item.node_id}
        elsewhere = {facts.node_id: facts for _, facts in items if facts.node_id not in ids}
        ids |= await store_facts(connection, self._host, list(elsewhere.values()))
        rows = [(ids[facts.node_id], item) for item, facts in items]
        counts = await store_rows(connection, rows, (), name="github", run_id=self._run.id, priority=LIVE)
        self._run.counts.add(counts)

    def _reached(self, mark: Mark) -> Reached:
        return Reached(mark.repository.id, mark.kind, mark.high_water, self._began)

    def _fail(self, mark: Mark, reason: str) -> None:
        mark.failed = True
        self._failures[mark.repository] = reason
        log.warning("%s: %s", mark.repository.full_name, reason)

    @asynccontextmanager
    async def _transaction(self) -> "AsyncIterator[AsyncConnection]":
        async with self._writing, self._store.pool.connection() as connection:
            yield connection


@dataclass(frozen=True)
class _Told:
    """What a sweep told of one repository: gone, failed, or its facts and the first page of each kind."""

    repository: Followed
    gone: bool = False
    failure: str = ""
    facts: RepositoryFacts | None = None
    pages: dict[ItemType, Page] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Followed, node: Found) -> "_Told":
        if isinstance(node, Missing) or (isinstance(node, dict) and node.get("isPrivate")):
            return cls(repository, gone=True)
        if isinstance(node, Failed):
            return cls(repository, failure=f"{node.reason}: {node.detail}")
        try:
            return cls(repository, facts=read_facts(node), pages=_pages(node))
        except (KeyError, TypeError, ValueError) as error:
            return cls(repository, failure=f"GitHub's answer is not readable: {type(error).__name__} {error}")


def _pages(node: Node) -> dict[ItemType, Page]:
    """The first page of each kind; empty ones where issues are switched off, none while GitHub has locked the repository."""
    if node["isDisabled"] or node["isLocked"]:
        return {}
    return {kind: Page((), None) if kind == "issue" and not node["hasIssuesEnabled"] else read_page(node, kind) for kind in ITEM_TYPES}


def _private(node: Found) -> bool:
    """Transferred into a repository that only our credential can see."""
    return isinstance(node, dict) and bool((node.get("repository") or {}).get("isPrivate"))


def _take(queue: deque[T], number: int) -> list[T]:
    return [queue.popleft() for _ in range(min(number, len(queue)))]


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
