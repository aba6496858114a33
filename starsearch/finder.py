"""Search as everybody calls it: a question in, hits out, embedded by the model that made the database's vectors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from starsearch.engines import probe_remote
from starsearch.errors import NotStored, PreconditionMissing, QueryUnusable
from starsearch.explain import parse_address
from starsearch.inference.client import Engine
from starsearch.inference.embed import embed
from starsearch.models import Filters, Found, IndexVersion
from starsearch.serving import open_version_embedding, sent_dimensions
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.database import Pool
from starsearch.store.identity import check_models
from starsearch.store.nearest import NO_FILTERS
from starsearch.store.search import MAX_LIMIT, check_limit, clean_query, depth_of, search, stored_vector
from starsearch.store.versions import active_version
from starsearch.store.words import Mode, find_worded

PATIENCE_SECONDS = 5.0  # somebody waits for the answer


@dataclass
class Finder:
    """Each question goes to the version that is active when it is asked, so a swap is noticed; with `pinned`, always to that one.

    `version` is the one that answered last. Engines stay open: questions in flight during a swap finish with the one they began with.
    """

    pool: Pool
    settings: Settings
    version: IndexVersion
    engines: AsyncExitStack
    pinned: bool = False
    _opened: dict[int, Engine] = field(default_factory=dict)
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def find(self, query: str, *, mode: Mode = "hybrid", filters: Filters = NO_FILTERS, limit: int = 10, places: int = 0) -> Found:
        """The best hits, best first, and where those after them stand, down to `places` in all.

        Raises QueryUnusable and NotStored for what cannot be searched for, EngineUnavailable, DigestFailed where the engine cannot embed
        the query, VersionMismatch where it has another model now.
        """
        check_limit(limit)
        query = clean_query(query)
        version = await self._serving()
        by_words = find_worded(self.pool, version, query, mode=mode, filters=filters, count=depth_of(max(limit, places)))
        worded, vector = await asyncio.gather(by_words, self._embed(version, query, mode))
        return await search(self.pool, version, query, vector, mode=mode, filters=filters, limit=limit, places=places, worded=worded)

    async def _embed(self, version: IndexVersion, query: str, mode: Mode) -> NDArray[Any] | None:
        if mode == "text":
            return None
        vectors, _ = await embed(await self._engine(version), [query], dimensions=sent_dimensions(version), width=version.dimensions)
        vector: NDArray[Any] = vectors[0]
        return vector

    async def engine(self) -> Engine:
        """The engine that embeds for the version that serves now."""
        return await self._engine(await self._serving())

    async def like(self, address: str, *, filters: Filters = NO_FILTERS, limit: int = 10) -> Found:
        """The items nearest to one of ours (its GitHub URL, or owner/name#number), itself left out. Raises QueryUnusable, NotStored."""
        check_limit(limit)
        item = parse_address(address, host=self.settings.github_host)
        if item is None:
            raise QueryUnusable(f"{address!r} is not a GitHub issue or pull request URL, nor owner/name#number")
        version = await self._serving()
        own = await stored_vector(self.pool, version, **item)
        if own is None:
            raise NotStored(f"{item['repo']}#{item['number']} has no digest here: `starsearch crawl --repo {item['repo']}` makes one")
        found = await search(self.pool, version, address, own.vector, mode="vector", filters=filters, limit=min(limit + 1, MAX_LIMIT))
        others = [hit for hit in found.hits if (hit.repo, hit.number) != (own.repo, own.number)]
        return Found(others[:limit], found.explanation)

    async def _serving(self) -> IndexVersion:
        if not self.pinned:
            self.version = await active_version(self.pool) or self.version
        return self.version

    async def _engine(self, version: IndexVersion) -> Engine:
        async with self._opening:
            if version.id not in self._opened:
                settings = self.settings.model_copy(update={"engine_patience_seconds": PATIENCE_SECONDS})
                async with AsyncExitStack() as opening:  # closed again where it is not the version's model, or does not say
                    engine = await opening.enter_async_context(open_version_embedding(settings, version))
                    await check_models(self.pool, version, probe=await probe_remote(engine, sent_dimensions(version)))
                    self.engines.push_async_exit(opening.pop_all())
                self._opened[version.id] = engine
            return self._opened[version.id]


@asynccontextmanager
async def open_finder(settings: Settings) -> AsyncIterator[Finder]:
    """Raises PreconditionMissing in a database without digests."""
    async with open_store(settings) as store:
        version = await active_version(store.pool)
        if version is None:
            raise PreconditionMissing("nothing to search yet: `starsearch crawl --repo owner/name` or `starsearch ingest FILE` first")
        async with AsyncExitStack() as engines:
            yield Finder(store.pool, settings, version, engines)
