"""The end of a crawl: the text of items that are known and that no list tells of any more.

A mark moves past an item that is a dead letter of the fetch, and a repository that is not followed any more is not swept: lists begin at
the mark and would never bring these items back. So what is still without its text is asked for by its id, once in a crawl.
"""

import logging

from starsearch.fetching import Fetcher
from starsearch.progress import Progress
from starsearch.storage import Store
from starsearch.store.database import connect
from starsearch.store.locks import polled_lock
from starsearch.store.unfetched import Scope, blocks_with_unfetched, find_unfetched

BLOCKS = 50  # looked into at a time: where an item is left here and there, that makes one fetch
LOCK = 78_275  # an advisory lock: crawls at the same time take turns, so that each finds fetched what another one fetched

log = logging.getLogger(__name__)


async def fetch_leftovers(store: Store, fetcher: Fetcher, scope: Scope, progress: Progress) -> None:
    """What fails has spent an attempt, as in a sweep. Raises RateLimited or SourceUnavailable after storing what had come."""
    blocks, failed = await blocks_with_unfetched(store.pool), fetcher.failed
    if not blocks:
        return
    async with await connect(store.dsn) as session:
        for start in range(0, len(blocks), BLOCKS):
            async with polled_lock(session, LOCK, 0):
                await _fetch(store, fetcher, scope, blocks[start : start + BLOCKS], progress)
    if fetcher.failed > failed:
        log.warning("the text of %d items that were left could not be fetched: see `starsearch status`", fetcher.failed - failed)


async def _fetch(store: Store, fetcher: Fetcher, scope: Scope, blocks: list[int], progress: Progress) -> None:
    left = await find_unfetched(store.pool, blocks, scope)
    while left:
        batch, left = left[: fetcher.size], left[fetcher.size :]
        await fetcher.fetch({node_id: (repository_node, repository) for node_id, repository_node, repository in batch})
        progress("fetch", fetcher.fetched, fetcher.fetched + len(left))
