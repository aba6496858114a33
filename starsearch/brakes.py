"""What stops new work everywhere: a pause by hand, spent budgets, and more that is due than engines get done. Nothing is left half done.

Whoever is about to begin something asks first: for a batch of items, a request to an engine or to GitHub, a look at the shards. What has
been begun is finished. The answer is at most five seconds old, so all processes stop within ten.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from uuid import UUID

from psycopg import AsyncConnection

from starsearch.cost import Prices, bill, read_prices
from starsearch.errors import Backlog, Braked, BudgetSpent, Paused
from starsearch.models import Usage
from starsearch.store.database import Pool
from starsearch.store.leases import LIVE, exceeds_due
from starsearch.store.ledger import read_usage
from starsearch.store.pauses import paused, used_today
from starsearch.store.shards import runs_of

LOOK_SECONDS = 5.0
MOST_DUE = 200_000  # two days of the article's load; a first crawl of the whole list brings one

Spender = int | UUID  # a run, with the other shards of its parent; or the flow run of a parent
Look = Callable[[AsyncConnection], Awaitable[Braked | None]]


@dataclass(frozen=True)
class Budget:
    """None: as much as it takes. tokens: of both engines; requests: to the chat engine; usd: by the price table, which must have each."""

    tokens: int | None = None
    usd: float | None = None
    requests: int | None = None

    @property
    def limits(self) -> bool:
        return (self.tokens, self.usd, self.requests) != (None, None, None)


@dataclass(frozen=True)
class Bounds:
    """day: of all runs together, in UTC; run: of each, its shards included. most_due: items, above which nothing more is fetched."""

    day: Budget = Budget()
    run: Budget = Budget()
    prices: Path | None = None
    most_due: int = MOST_DUE


NO_BOUNDS = Bounds()


class Brakes:
    """Of one process. Nobody retries what they raise, and what is due stays due."""

    def __init__(self, pool: Pool, bounds: Bounds = NO_BOUNDS) -> None:
        self._pool = pool
        self._bounds = bounds
        self._found: dict[Hashable, tuple[float, Braked | None]] = {}
        self._looking = asyncio.Lock()

    async def check(self, spender: Spender | None = None) -> None:
        """Raises Paused or BudgetSpent; of a run's own budget where the spender is named."""

        async def look(connection: AsyncConnection) -> Braked | None:
            return await self._pause(connection) or await self._day(connection) or await self._run(connection, spender)

        await self._heed(spender, look)

    async def check_day(self) -> None:
        """For answers to people, which a pause does not stop. Raises BudgetSpent."""
        await self._heed("day", self._day)

    async def check_fetch(self, priority: int) -> None:
        """Before more is fetched that will be due at this priority. Raises Backlog too."""
        await self.check()

        async def look(connection: AsyncConnection) -> Braked | None:
            if not await exceeds_due(connection, self._bounds.most_due, priority=priority):
                return None
            waiting = "changed items" if priority == LIVE else "items"
            return Backlog(
                f"more than {self._bounds.most_due:,} {waiting} wait for the engines, so nothing more is fetched now. What was not read "
                "keeps its mark: once they are digested, the next crawl, or the same backfill again, reads it. More engines, or a larger "
                "STARSEARCH_MOST_DUE"
            )

        try:
            await self._heed(("fetch", priority), look)
        except Backlog:
            self._found.pop(("fetch", priority), None)  # whoever digests now and comes back is not told the old answer
            raise

    async def _heed(self, key: Hashable, look: Look) -> None:
        async with self._looking:
            looked, found = self._found.get(key, (-LOOK_SECONDS, None))
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                try:
                    async with self._pool.connection() as connection:
                        found = await look(connection)
                except BaseException:
                    self._found[key] = time.monotonic(), found  # whoever comes next does not wait for a silent database at once again
                    raise
                self._found[key] = looked, found
        if found:
            raise type(found)(*found.args)

    @staticmethod
    async def _pause(connection: AsyncConnection) -> Braked | None:
        pause = await paused(connection)
        return (
            Paused(f"work is paused since {pause[0]:%Y-%m-%d %H:%M} UTC ({pause[1]}): `starsearch resume` lets it go on") if pause else None
        )

    async def _day(self, connection: AsyncConnection) -> Braked | None:
        if not self._bounds.day.limits:
            return None
        return self._spent(self._bounds.day, await used_today(connection), "today's budget", "midnight UTC", "STARSEARCH_BUDGET")

    async def _run(self, connection: AsyncConnection, spender: Spender | None) -> Braked | None:
        if spender is None or not self._bounds.run.limits:
            return None
        used = await read_usage(connection, runs=await runs_of(connection, spender))
        return self._spent(self._bounds.run, used, "this run's budget", "the next run", "STARSEARCH_RUN_BUDGET")

    def _spent(self, budget: Budget, used: list[Usage], whose: str, until: str, setting: str) -> Braked | None:
        spent = bill(used, self._prices)
        tokens, dollars = spent["prompt_tokens"] + spent["completion_tokens"], spent["cost_usd"]
        if budget.usd is not None and dollars is None:
            return BudgetSpent(
                f"{setting}_USD is set, and a model that was used has no price ({', '.join(spent['unpriced'])}): STARSEARCH_PRICES may "
                "hold one, and `starsearch cost` shows them"
            )
        for name, most, amount in (
            ("TOKENS", budget.tokens, tokens),
            ("REQUESTS", budget.requests, spent["llm_requests"]),
            ("USD", budget.usd, dollars),
        ):
            if most is not None and amount >= most:
                told = f"${amount:,.2f} of ${most:,.2f}" if name == "USD" else f"{amount:,} of {most:,} {name.lower()}"
                return BudgetSpent(
                    f"{whose} is spent ({told}): nothing more is asked of the engines, and what is due stays due until {until}; or raise "
                    f"{setting}_{name}"
                )
        return None

    @cached_property
    def _prices(self) -> Prices:
        return read_prices(self._bounds.prices)
