"""Another model, prompt or vector length: a shadow version of every digest, built beside the one that serves.

Where nothing but the embedding changes, no text is summarized again. Killed anywhere, the same command goes on with what is due.
What is stored meanwhile becomes due in both versions, and the one that serves comes first. See activation.py for what follows.
"""

import math
from dataclasses import dataclass, replace

from starsearch.cost import estimate
from starsearch.engines import open_engines
from starsearch.errors import PreconditionMissing
from starsearch.models import IndexVersion
from starsearch.pipeline import Lane, Run, digest_lanes
from starsearch.serving import open_reachable
from starsearch.settings import Settings
from starsearch.storage import Store
from starsearch.store.leases import BACKFILL, BATCH
from starsearch.store.ledger import read_usage
from starsearch.store.versions import active_version, begin_shadow, build_index, count_reusable, live_versions


async def reprocess(settings: Settings, store: Store, run: Run) -> IndexVersion:
    """Build the version that the settings describe; it serves nothing yet. Raises PreconditionMissing where it serves already."""
    await store.brakes.check(run.id)  # opening asks the engines for something, too
    async with open_engines(settings) as engines:
        await refuse_active(store, engines.version)
        version = await begin_shadow(store.pool, engines.version)
        target = Lane(replace(engines, version=version))
        others = [other for other in await live_versions(store.pool) if other.id != version.id]
        async with open_reachable(settings, others) as live:
            lanes = [*(Lane(each, BACKFILL, required=False) for each in live), target]
            await digest_lanes(store, lanes, run, workers=settings.workers, concurrency=settings.concurrency)
    await build_index(store.dsn, version)
    return version


@dataclass(frozen=True)
class Price:
    """An estimate, like what was digested here before; None where that does not tell.

    `items` need a new vector, `done` have it already. `requests` go to the chat engine: none where only the embedding changes.
    """

    index_version: str
    items: int
    done: int
    requests: int
    embedding_requests: int
    tokens: int | None
    digest_hours: float | None
    engine_hours: float | None
    cost_usd: float | None
    usd_per_million_items: float | None


async def price(settings: Settings, store: Store) -> Price:
    """What reprocessing with these settings would cost. Asks the engines for nothing but the length of a vector."""
    async with open_engines(settings) as engines:
        await refuse_active(store, engines.version)
        stored, done, summarized = await count_reusable(store.pool, engines.version)
        items, summaries = stored - done, stored - max(done, summarized)
        async with store.pool.connection() as connection:
            usages = await read_usage(connection)
        models = (engines.llm.model, engines.embedding.model)
        found = estimate(items, usages, models, engines.prices, summaries=summaries)
        return Price(engines.version.short, items, done, summaries, math.ceil(items / BATCH), **vars(found))


async def refuse_active(store: Store, wanted: IndexVersion) -> None:
    active = await active_version(store.pool)
    if active is None:
        raise PreconditionMissing("nothing is digested yet, so there is nothing to reprocess: `starsearch digest` uses these settings")
    if active.fingerprint == wanted.fingerprint:
        raise PreconditionMissing(
            f"the settings describe index version {active.name}, which serves already: name another model or vector length first, "
            "such as STARSEARCH_EMBEDDING_MODEL"
        )
