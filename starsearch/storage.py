"""The configured PostgreSQL, or the embedded one, opened and closed. Apart from engines.py so that commands start quickly.

Reads nothing from the environment itself; tasks/ and the command pass a Settings value.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starsearch.brakes import NO_BOUNDS, Bounds, Brakes, Budget
from starsearch.errors import PreconditionMissing
from starsearch.settings import Settings
from starsearch.store.database import Pool, connect, explained, open_database
from starsearch.store.migrate import migrate
from starsearch.store.reader import check_role, open_reader_pool


@dataclass(frozen=True)
class Store:
    """dsn: for sessions of their own, such as a worker's; pool: for everything else; brakes: to be asked before something new begins."""

    dsn: str
    pool: Pool
    bounds: Bounds = NO_BOUNDS
    brakes: Brakes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "brakes", Brakes(self.pool, self.bounds))


def bounds(settings: Settings) -> Bounds:
    return Bounds(
        Budget(settings.budget_tokens, settings.budget_usd, settings.budget_requests),
        Budget(settings.run_budget_tokens, settings.run_budget_usd, settings.run_budget_requests),
        settings.prices,
        settings.most_due,
    )


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The configured PostgreSQL, or the embedded one, started where it is down; its schema is up to date."""
    async with database_address(settings) as dsn:
        size = settings.workers + 3
        async with open_database(dsn, size=size, allow_old_pgvector=settings.allow_old_pgvector) as pool:
            yield Store(dsn, pool, bounds(settings))


@asynccontextmanager
async def database_address(settings: Settings) -> AsyncIterator[str]:
    """Where the database is. Raises PreconditionMissing in a cluster that does not say: a database inside a Job would end with the Job.

    What it refuses inside the block is raised as DatabaseUnavailable or DatabaseUnsuitable, with what to do.
    """
    if settings.database_url:
        dsn = settings.database_url.get_secret_value()
        with explained(dsn):
            yield dsn
        return
    if settings.kubernetes_namespace:
        raise PreconditionMissing(
            "STARSEARCH_DATABASE_URL is not set in this cluster, and a Job keeps nothing: put it into the secret pipeline-secrets of "
            f"namespace {settings.kubernetes_namespace}"
        )
    from starsearch.embedded import postgres

    server = await asyncio.to_thread(postgres.start, settings.home)
    try:
        with explained(server.dsn):
            yield server.dsn
    finally:
        server.close()


@asynccontextmanager
async def open_reader(settings: Settings, *, size: int) -> AsyncIterator[Pool]:
    """Connections that read, and add feedback, whatever they are told to do. Raises DatabaseUnsuitable where the role is missing."""
    async with database_address(settings) as dsn:
        async with await connect(dsn) as connection:
            await migrate(connection, allow_old_pgvector=settings.allow_old_pgvector)
            await check_role(connection)
        async with open_reader_pool(dsn, size=size) as pool:
            yield pool
