"""Search as everybody calls it: a question in, hits out, embedded by the model that made the database's vectors."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from starsearch.engines import open_embedding
from starsearch.errors import PreconditionMissing
from starsearch.inference.client import Engine
from starsearch.inference.embed import embed
from starsearch.models import Filters, Hit, IndexVersion
from starsearch.settings import Settings
from starsearch.storage import open_store
from starsearch.store.database import Pool
from starsearch.store.search import MAX_QUERY, NO_FILTERS, Mode, search
from starsearch.store.versions import active_version


@dataclass(frozen=True)
class Finder:
    pool: Pool
    version: IndexVersion
    engine: Engine
    dimensions: int | None

    async def find(self, query: str, *, mode: Mode = "hybrid", filters: Filters = NO_FILTERS, limit: int = 10) -> list[Hit]:
        """The best hits, best first. Raises EngineUnavailable, or DigestFailed where the engine cannot embed the query."""
        vector = None
        if mode != "text":
            vectors, _ = await embed(self.engine, [query[:MAX_QUERY]], dimensions=self.dimensions)
            vector = vectors[0]
        return await search(self.pool, self.version, query, vector, mode=mode, filters=filters, limit=limit)


@asynccontextmanager
async def open_finder(settings: Settings) -> AsyncIterator[Finder]:
    """Raises PreconditionMissing in a database without digests."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(settings))
        version = await active_version(store.pool)
        if version is None:
            raise PreconditionMissing("nothing to search yet: `starsearch crawl --repo owner/name` or `starsearch ingest FILE` first")
        engine = await stack.enter_async_context(open_embedding(settings, version))
        yield Finder(store.pool, version, engine, settings.embedding_dimensions)
