"""The web process: what its pages, its API and its tools share, opened and closed together."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from starsearch.audit import Status, read_status
from starsearch.cost import Comparison, Prices, compare, read_prices
from starsearch.settings import Settings
from starsearch.storage import open_reader
from starsearch.store.database import Pool
from starsearch.store.ledger import read_usage
from starsearch.store.reading import Hour, read_hours
from starsearch.web.metrics import Metrics
from starsearch.web.searching import AT_ONCE, Searching

STATUS_SECONDS = 5.0
HOURS = 48
ITEMS_PER_DAY = 100_000  # what the top 40,000 repositories write; the break-even is shown for it
Value = TypeVar("Value")


class Shared(Generic[Value]):
    """Something that costs a query and is the same for everybody: read once for all who ask within some seconds."""

    def __init__(self, read: Callable[[], Awaitable[Value]], seconds: float) -> None:
        self._read = read
        self._seconds = seconds
        self._lock = asyncio.Lock()
        self._value: tuple[float, Value] | None = None

    async def get(self) -> Value:
        async with self._lock:
            if self._value is None or time.monotonic() - self._value[0] >= self._seconds:
                self._value = (time.monotonic(), await self._read())
            return self._value[1]


@dataclass(frozen=True)
class History:
    """hours: oldest first, the current one last. comparison: None before anything was summarized."""

    hours: list[Hour]
    comparison: Comparison | None


@dataclass(frozen=True)
class Site:
    """pool: of the reader role."""

    settings: Settings
    pool: Pool
    searching: Searching
    metrics: Metrics
    status: Shared[Status]
    history: Shared[History]


@asynccontextmanager
async def open_site(settings: Settings) -> AsyncIterator[Site]:
    """Raises PreconditionMissing where the database is missing; the engine may come later."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(open_reader(settings, size=AT_ONCE + 4))
        metrics = Metrics()
        searching = Searching(settings, pool, stack, metrics)
        prices = read_prices(settings.prices)
        status = Shared(lambda: read_status(pool, prices), STATUS_SECONDS)
        history = Shared(lambda: _read_history(pool, prices), STATUS_SECONDS)
        yield Site(settings, pool, searching, metrics, status, history)


async def _read_history(pool: Pool, prices: Prices) -> History:
    async with pool.connection() as connection:
        usages = await read_usage(connection)
    return History(await read_hours(pool, HOURS), compare(usages, prices, items_per_day=ITEMS_PER_DAY))
