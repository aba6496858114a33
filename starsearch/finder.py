"""Search as everybody calls it: a question in, hits out, embedded by the model that made the database's vectors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from starsearch.engines import probe_remote
from starsearch.errors import PreconditionMissing
from starsearch.inference.client import Engine
from starsearch.inference.embed import embed
from starsearch.models import Filters, Hit, IndexVersion
from starsearch.serving import open_version_embedding, sent_dimensions
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.database import Pool
from starsearch.store.identity import check_models
from starsearch.store.search import MAX_QUERY, NO_FILTERS, Mode, search
from starsearch.store.versions import active_version

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

    async def find(self, query: str, *, mode: Mode = "hybrid", filters: Filters = NO_FILTERS, limit: int = 10) -> list[Hit]:
        """The best hits, best first.

        Raises EngineUnavailable, DigestFailed where the engine cannot embed the query, VersionMismatch where it has another model now.
        """
        version = await self._serving()
        vector = None
        if mode != "text":
            engine = await self._engine(version)
            vectors, _ = await embed(engine, [query[:MAX_QUERY]], dimensions=sent_dimensions(version))
            vector = vectors[0]
        return await search(self.pool, version, query, vector, mode=mode, filters=filters, limit=limit)

    async def _serving(self) -> IndexVersion:
        if not self.pinned:
            self.version = await active_version(self.pool) or self.version
        return self.version

    async def _engine(self, version: IndexVersion) -> Engine:
        async with self._opening:
            if version.id not in self._opened:
                settings = self.settings.model_copy(update={"engine_patience_seconds": PATIENCE_SECONDS})
                engine = await self.engines.enter_async_context(open_version_embedding(settings, version))
                await check_models(self.pool, version, probe=await probe_remote(engine, sent_dimensions(version)))
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
