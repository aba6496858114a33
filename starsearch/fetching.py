"""The text of items that are known to exist: asked for in batches of any mix of repositories, stored with whatever depends on it.

Each id ends as a stored item, as a tombstone (GitHub does not have it any more), or as a counted failure; nothing else can happen.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

from starsearch.errors import Rejected
from starsearch.github.batches import Batches, Failed, Found, Missing
from starsearch.github.client import GitHub
from starsearch.github.nodes import has_holes, read_facts, read_item
from starsearch.logs import log_failure
from starsearch.models import Item, RepositoryFacts
from starsearch.pipeline import Run
from starsearch.storage import Store
from starsearch.store.items import store_rows
from starsearch.store.leases import LIVE
from starsearch.store.repositories import store_facts
from starsearch.store.sweeps import FailedFetch, FetchFailure, entomb, record_failures

log = logging.getLogger(__name__)

# what else belongs into the transaction, told the ids that are settled in it: stored, gone, or given up for good
Also = Callable[[AsyncConnection, set[str]], Awaitable[None]]


async def nothing_else(_connection: AsyncConnection, _settled: set[str]) -> None:
    """Nothing else belongs into the transaction."""


class Fetcher:
    """`tombstones`, `fetched` and `failed` count items; one transaction at a time, so that which of them completes something is certain."""

    def __init__(self, store: Store, github: GitHub, run: Run, *, host: str, comments: int, batch: int, priority: int = LIVE) -> None:
        self.fetched = self.tombstones = self.failed = 0
        self._store, self._run = store, run
        self._host, self._comments, self._priority = host, comments, priority
        self._batches = Batches(github, "fetch", size=batch)
        self._writing = asyncio.Lock()

    @property
    def size(self) -> int:
        """How many ids the next fetch should ask for."""
        return self._batches.size

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing, self._store.pool.connection() as connection:
            yield connection

    async def fetch(self, wanted: Mapping[str, tuple[str, int]], also: Also = nothing_else) -> None:
        """Fetch and store. `wanted`: by node id, the (node id, id) of the repository each was seen in."""
        found = await self._batches.ask(list(wanted), comments=max(self._comments, 1), withComments=self._comments > 0)
        items, failures = self._read(found)
        missing = [node_id for node_id, node in found.items() if isinstance(node, Missing) or _private(node)]
        async with self.transaction() as connection:
            self.tombstones += await entomb(connection, self._host, missing)
            await self._store_items(connection, items, dict(wanted.values()))
            failed = await record_failures(connection, self._host, failures)
            settled = wanted.keys() - {failure.node_id for failure in failures} | {failure.node_id for failure in failed if failure.dead}
            await also(connection, settled)
        _tell(failed)
        self.fetched += len(items)
        self.failed += len(failures)

    def _read(self, found: Mapping[str, Found]) -> tuple[list[tuple[Item, RepositoryFacts]], list[FetchFailure]]:
        items, failures = [], []
        for node_id, node in found.items():
            if isinstance(node, Failed):
                failures.append(FetchFailure(node_id, node.reason, node.detail))
            elif has_holes(node):
                failures.append(FetchFailure(node_id, "incomplete", "GitHub left out a label or a comment"))
            elif isinstance(node, dict) and not _private(node):
                try:
                    items.append((read_item(node, host=self._host), read_facts(node["repository"])))
                except Rejected as error:
                    failures.append(FetchFailure(node_id, "rejected", str(error), permanent=True))
        return items, failures

    async def _store_items(
        self, connection: AsyncConnection, items: Sequence[tuple[Item, RepositoryFacts]], seen_in: dict[str, int]
    ) -> None:
        """Items under the repositories they are in now, which is not where they were seen when they were transferred."""
        elsewhere = {facts.node_id: facts for _, facts in items if facts.node_id not in seen_in}
        ids = seen_in | await store_facts(connection, self._host, list(elsewhere.values()))
        rows = [(ids[facts.node_id], item) for item, facts in items]
        self._run.counts.add(await store_rows(connection, rows, (), name="github", run_id=self._run.id, priority=self._priority))


def _tell(failed: Sequence[FailedFetch]) -> None:
    for each in failed:
        reason = f"{each.reason}: {each.detail}"
        log_failure(log, "fetch", reason, repository=each.repository, item=each.number, attempt=each.attempts, dead=each.dead)


def _private(node: Found) -> bool:
    """Transferred into a repository that only our credential can see."""
    return isinstance(node, dict) and bool((node.get("repository") or {}).get("isPrivate"))
