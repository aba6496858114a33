"""Reads lists of changed items over GitHub's GraphQL API, fetches their text, and only then writes down how far it got.

What keeps this free of loss:
- a list is read newest update first, back to where the last complete sweep *began* (by GitHub's clock, minus an overlap for lagging
  replicas), so whatever changes while pages are read is newer than the mark and comes with the next cycle;
- an item is written down as known when a list tells of it, before its text is asked for;
- a mark moves in the transaction that stores the last of its items. Kill it anywhere: the next cycle reads again.

Workers take the most downstream work first (text, then further pages, then sweeps), so little is held in memory.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from psycopg import AsyncConnection

from starsearch.errors import PreconditionMissing, QueryTooHeavy, RateLimited, StarsearchError
from starsearch.fetching import Fetcher
from starsearch.github.batches import BATCH, Batches, Failed, Found, Missing
from starsearch.github.client import Answer, GitHub, Node
from starsearch.github.nodes import Page, read_facts, read_page
from starsearch.logs import about
from starsearch.models import ITEM_TYPES, Followed, ItemType, RepositoryFacts, SeenItem
from starsearch.progress import Progress
from starsearch.store.repositories import mark_failed, mark_gone, store_facts
from starsearch.store.repository_leases import end_leases
from starsearch.store.sweeps import Reached, advance, record_seen, unearth

NEWEST = 10  # of each kind in a sweep; more cost no points, but make larger answers
OVERLAP = timedelta(seconds=300)
LISTS: dict[ItemType, str] = {"issue": "list_issues", "pull_request": "list_pulls"}
LONE_HOLES = 10  # in a row: the rest of the list would be no better
PAGE_SIZES = (100, 25, 5, 1)  # one that GitHub does not fill is asked again with fewer items, down to the one that it does not tell
GONE = "not found, or private"
UNTOLD = Page((), None, holes=1)  # GitHub told of the repository and not of all of its newest items

log = logging.getLogger(__name__)
Job = Callable[[], Awaitable[None]]
T = TypeVar("T")


@dataclass(eq=False)
class Mark:
    """How far one kind of one repository will be complete: once its list is read back to `start` and nothing is `waiting`.

    until: only items created up to then are wanted.
    """

    repository: Followed
    kind: ItemType
    start: datetime
    until: datetime | None = None
    high_water: datetime | None = None  # the newest update on the first page
    waiting: set[str] = field(default_factory=set)
    listed: bool = False
    failed: bool = False
    lone_holes: int = 0  # one after the other

    def wants(self, item: SeenItem) -> bool:
        return self.until is None or item.created_at is None or item.created_at <= self.until

    def done_without(self, nodes: set[str]) -> bool:
        return self.listed and not self.failed and self.waiting <= nodes


Done = Callable[[AsyncConnection, Sequence[Mark]], Awaitable[None]]
Claim = Callable[[], Awaitable[list[Followed]]]


class Cycle:
    """Reads what it is given to its end. `done` writes down complete marks, in the transaction that completes them."""

    def __init__(
        self,
        github: GitHub,
        fetcher: Fetcher,
        progress: Progress,
        *,
        host: str,
        batch: int = BATCH,
        newest: int = NEWEST,
        done: Done | None = None,
    ) -> None:
        self.gone: list[str] = []  # repositories that GitHub does not find any more
        self.notes: dict[str, str] = {}  # by name: why only a part of a repository is read
        self.began = github.now
        self._github, self._fetcher, self._progress = github, fetcher, progress
        self._host, self._newest = host, newest
        self._done = done or self._advance
        self._sweeps = Batches(github, "sweep", size=batch)
        self._claim: Claim | None = None  # more to sweep; None: there is none, or somebody is just asking
        self._open: Counter[Followed] = Counter()  # marks of each repository that are not complete yet
        self._to_sweep: deque[Followed] = deque()
        self._pages: deque[tuple[Mark, str | None]] = deque()
        self._to_fetch: deque[str] = deque()
        self._owner: dict[str, Mark] = {}  # of each item waiting for its text
        self._failures: dict[Followed, str] = {}
        self._swept = self._total = 0
        self._upstream = 0  # sweeps and pages on their way, which may bring more to fetch
        self._busy = 0
        self._stopped: BaseException | None = None
        self._changed = asyncio.Condition()

    @property
    def failed(self) -> dict[str, str]:
        """Repositories that were not read to the end, by name, with the reason; they join the next cycle."""
        return {repository.full_name: reason for repository, reason in self._failures.items()}

    async def sweep(self, repositories: Sequence[Followed], *, claim: Claim | None = None, total: int = 0) -> None:
        """These, and then what `claim` leases until it gives none; `total` of all is expected.

        Raises RateLimited or SourceUnavailable after storing what had come; the rest joins the next cycle.
        """
        self._to_sweep.extend(repositories)
        self._claim = claim
        await self._run(total or len(repositories))
        async with self._fetcher.transaction() as connection:
            await mark_failed(connection, {repository.id: reason for repository, reason in self._failures.items()})
            await end_leases(connection, list(self._failures), at=self.began)
        self._raise()

    async def read(self, marks: Sequence[Mark]) -> None:
        """Read these lists page by page, without a sweep before it. Raises as `sweep` does."""
        self._pages.extend((mark, None) for mark in marks)
        await self._run(len(marks))
        self._raise()

    async def _run(self, total: int) -> None:
        self._total = total
        await asyncio.gather(*(self._work() for _ in range(self._github.width)))

    def _raise(self) -> None:
        if self._stopped:
            raise self._stopped

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
                self._stopped = self._stopped or error  # raised when the other workers have stored what they asked for
            async with self._changed:
                self._busy -= 1
                self._upstream -= upstream
                self._changed.notify_all()

    def _has_job(self) -> bool:
        return bool(self._to_sweep or self._claim or self._pages or self._fetch_ready())

    def _fetch_ready(self) -> bool:
        """A full batch, or the last one."""
        last = not (self._to_sweep or self._claim or self._pages or self._upstream)
        return len(self._to_fetch) >= self._fetcher.size or bool(self._to_fetch and last)

    def _next_job(self) -> tuple[Job, bool]:
        """The job, and whether it may bring more to fetch."""
        if self._fetch_ready():
            ids = _take(self._to_fetch, self._fetcher.size)
            return (lambda: self._fetch(ids)), False
        if self._pages:
            mark, after = self._pages.popleft()
            return (lambda: self._read_page(mark, after)), True
        if self._claim and not self._to_sweep:
            claim, self._claim = self._claim, None
            return (lambda: self._claim_more(claim)), True
        repositories = _take(self._to_sweep, self._sweeps.size)
        return (lambda: self._sweep(repositories)), True

    async def _claim_more(self, claim: Claim) -> None:
        claimed = await claim()
        self._to_sweep.extend(claimed)
        self._claim = claim if claimed else None

    async def _sweep(self, repositories: Sequence[Followed]) -> None:
        since = min(max(repository.starts.values()) for repository in repositories) - OVERLAP  # one that is far behind reads its list
        ids = [repository.node_id for repository in repositories]
        found = await self._sweeps.ask(ids, since=_iso(since), newest=self._newest)
        told = [_Told.of(repository, found[repository.node_id]) for repository in repositories]
        pages = [(_mark(each.repository, kind), page) for each in told for kind, page in each.pages.items()]
        self._open.update(mark.repository for mark, _ in pages)
        behind = {mark for mark, _ in pages if mark.kind == "issue" and mark.start < since}  # its issues were switched off
        apart = behind | {mark for mark, page in pages if page.holes}
        async with self._fetcher.transaction() as connection:
            await mark_gone(connection, self._host, [each.repository.node_id for each in told if each.gone], at=self.began)
            await store_facts(connection, self._host, [each.facts for each in told if each.facts])
            await unearth(connection, [mark.repository.id for mark in behind], ["issue"])
            await self._record(connection, [(mark, page) for mark, page in pages if mark not in apart])
            await end_leases(connection, [each.repository for each in told if not each.pages and not each.failure], at=self.began)
        self._pages.extend((mark, None) for mark in apart)  # their lists are read from the start, in pages of a size that GitHub fills
        self.gone += [each.repository.full_name for each in told if each.gone]
        self.notes |= {each.repository.full_name: each.note for each in told if each.note}
        for each in told:
            if each.failure:
                self._failed(each.repository, each.failure)
            if each.gone:
                _log_about(each.repository, logging.INFO, GONE)
        self._swept += len(repositories)
        self._progress("sweep", self._swept, self._total)

    async def _read_page(self, mark: Mark, after: str | None) -> None:
        try:
            with about(repository=mark.repository.full_name):
                page = await self._ask_page(mark, after)
        except (RateLimited, PreconditionMissing) as error:
            self._fail(mark, str(error))
            raise
        except StarsearchError as error:
            self._fail(mark, str(error))
            return
        mark.lone_holes = mark.lone_holes + 1 if page.holes else 0
        if page.holes:  # before the page is written down: the rest of the list is read, and all of it again by the next cycle
            self._fail(mark, "GitHub lists an item and tells nothing of it")
            page = page if mark.lone_holes < LONE_HOLES else replace(page, after=None)
        async with self._fetcher.transaction() as connection:
            await self._record(connection, [(mark, page)])

    async def _ask_page(self, mark: Mark, after: str | None) -> Page:
        """A page without holes, however small; or with one, where GitHub tells nothing of a single item. Raises as GitHub.ask does."""
        variables: dict[str, object] = {"id": mark.repository.node_id, "after": after}
        if mark.kind == "issue":
            variables["since"] = _iso(mark.start)
        for first in PAGE_SIZES:
            try:
                page = _page(await self._github.ask(LISTS[mark.kind], variables | {"first": first}), mark)
            except QueryTooHeavy:
                if first == PAGE_SIZES[-1]:
                    raise
                continue
            if not page.holes:
                break
            log.info("%d holes in a page of %d", page.holes, first)
        return page

    async def _record(self, connection: AsyncConnection, pages: Sequence[tuple[Mark, Page]]) -> None:
        """Write down what the pages tell; what needs its text is queued, and quiet lists are done already."""
        told = [(mark, page.after, [item for item in page.items if mark.wants(item)]) for mark, page in pages]
        wanted = await record_seen(connection, [(mark.repository.id, item) for mark, _, items in told for item in items])
        done = []
        for mark, after, items in told:
            ids = {item.node_id for item in items} & wanted - self._owner.keys()
            mark.high_water = mark.high_water or max((item.updated_at for item in items), default=None)
            mark.waiting |= ids
            self._owner |= dict.fromkeys(ids, mark)
            self._to_fetch.extend(sorted(ids))
            if after:
                self._pages.append((mark, after))
            else:
                mark.listed = True
                done += [mark] * mark.done_without(set())
        await self._complete(connection, done)

    async def _fetch(self, ids: Sequence[str]) -> None:
        wanted = {node_id: self._owner[node_id].repository for node_id in ids}

        async def settle(connection: AsyncConnection, settled: set[str]) -> None:
            """Within the transaction, and so before anybody else looks at these marks."""
            marks = {node_id: self._owner.pop(node_id) for node_id in ids}
            await self._complete(connection, [mark for mark in set(marks.values()) if mark.done_without(settled)])
            for node_id, mark in marks.items():
                mark.waiting.discard(node_id)
                if node_id not in settled:
                    self._fail(mark, "the text of an item could not be fetched")

        await self._fetcher.fetch({node: (repository.node_id, repository.id) for node, repository in wanted.items()}, settle)
        self._progress("fetch", self._fetcher.fetched, self._fetcher.fetched + len(self._to_fetch))

    async def _complete(self, connection: AsyncConnection, marks: Sequence[Mark]) -> None:
        """Write down that these are complete; with the last of its marks a repository's lease ends."""
        await self._done(connection, marks)
        self._open.subtract(mark.repository for mark in marks)
        swept = {mark.repository for mark in marks if not self._open[mark.repository]}
        await end_leases(connection, list(swept), at=self.began)

    async def _advance(self, connection: AsyncConnection, marks: Sequence[Mark]) -> None:
        await advance(connection, [Reached(mark.repository.id, mark.kind, mark.high_water, self.began) for mark in marks])

    def _fail(self, mark: Mark, reason: str) -> None:
        mark.failed = True
        self._failed(mark.repository, reason)

    def _failed(self, repository: Followed, reason: str) -> None:
        self._failures[repository] = reason
        _log_about(repository, logging.WARNING, reason)


@dataclass(frozen=True)
class _Told:
    """What a sweep told of one repository: gone, failed, or its facts and the first page of each kind; a note where one is missing."""

    repository: Followed
    gone: bool = False
    failure: str = ""
    facts: RepositoryFacts | None = None
    pages: dict[ItemType, Page] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, repository: Followed, node: Found) -> "_Told":
        failure = f"{node.reason}: {node.detail}" if isinstance(node, Failed) else ""
        told = node.node if isinstance(node, Failed) else node
        if isinstance(told, Missing) or (told and told.get("isPrivate")):
            return cls(repository, gone=True)
        if told is None:
            return cls(repository, failure=failure)
        try:
            pages = {kind: UNTOLD if failure else read_page(told, kind, _start(repository, kind)) for kind in _shown(told)}
            return cls(repository, facts=read_facts(told), pages=pages, note=_note(told))
        except (KeyError, TypeError, ValueError) as error:
            return cls(repository, failure=failure or f"unreadable answer: {type(error).__name__} {error}")


def _log_about(repository: Followed, level: int, reason: str) -> None:
    with about(repository=repository.full_name):
        log.log(level, "%s: %s", repository.full_name, reason)


def _shown(node: Node) -> list[ItemType]:
    """The kinds that GitHub shows: a list that cannot be read is not read to its end.

    None while it has locked the repository, no issues while they are switched off: their marks stay where they are until then.
    """
    if node["isDisabled"] or node["isLocked"]:
        return []
    return [kind for kind in ITEM_TYPES if kind != "issue" or node["hasIssuesEnabled"]]


def _note(node: Node) -> str:
    if node["isDisabled"] or node["isLocked"]:
        return "GitHub has locked or disabled it, so it stays as it is"
    return "" if node["hasIssuesEnabled"] else "its issues are switched off, so only its pull requests are crawled"


def _page(answer: Answer, mark: Mark) -> Page:
    if any(error.type == "NOT_FOUND" for error in answer.errors):
        raise StarsearchError(GONE)
    try:
        page = read_page(answer.data["node"], mark.kind, mark.start)
    except (KeyError, TypeError, ValueError) as error:
        told = answer.errors[0].message if answer.errors else f"{type(error).__name__} {error}"
        raise _of_a_page(answer, f"unreadable answer: {told}") from error
    if answer.errors and not page.holes:
        raise _of_a_page(answer, f"incomplete answer: {answer.errors[0].message}")
    return page


def _of_a_page(answer: Answer, reason: str) -> StarsearchError:
    """A smaller page may be told in full where GitHub ran out of resources."""
    heavy = any(error.type == "RESOURCE_LIMITS_EXCEEDED" for error in answer.errors)
    return QueryTooHeavy(reason) if heavy else StarsearchError(reason)


def _mark(repository: Followed, kind: ItemType) -> Mark:
    return Mark(repository, kind, _start(repository, kind))


def _start(repository: Followed, kind: ItemType) -> datetime:
    return repository.starts[kind] - OVERLAP


def _take(queue: deque[T], number: int) -> list[T]:
    return [queue.popleft() for _ in range(min(number, len(queue)))]


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
