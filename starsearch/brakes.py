"""What stops new work everywhere: a pause by hand, and the day's budgets. What is under way is finished; nothing is left half done.

Whoever is about to begin something asks `Brakes.check`: a batch of items, a request to GitHub, a look at the shards. The answer is at most
five seconds old, so all processes stop within ten.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from starsearch.cost import read_prices, total_cost
from starsearch.errors import BudgetSpent, Paused, PreconditionMissing
from starsearch.store.database import Pool
from starsearch.store.pauses import paused, used_today

LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Budget:
    """Of one day, UTC, all runs together. usd: by the price table, so it needs a price for every model that is used."""

    tokens: int | None = None
    usd: float | None = None
    prices: Path | None = None


NO_BUDGET = Budget()


class Brakes:
    """Of one process. `check` raises Paused or BudgetSpent; nobody retries those, and what is due stays due."""

    def __init__(self, pool: Pool, budget: Budget = NO_BUDGET) -> None:
        self._pool = pool
        self._budget = budget
        self._looked = -LOOK_SECONDS
        self._found: PreconditionMissing | None = None
        self._looking = asyncio.Lock()

    async def check(self) -> None:
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._found = await self._look()
                self._looked = time.monotonic()
        if self._found:
            raise self._found

    async def _look(self) -> PreconditionMissing | None:
        async with self._pool.connection() as connection:
            if pause := await paused(connection):
                return Paused(f"work is paused since {pause[0]:%Y-%m-%d %H:%M} UTC ({pause[1]}): `starsearch resume` lets it go on")
            if self._budget.tokens is None and self._budget.usd is None:
                return None
            used = await used_today(connection)
        tokens = sum(usage.prompt_tokens + usage.completion_tokens for usage in used)
        if self._budget.tokens is not None and tokens >= self._budget.tokens:
            return _spent(f"{tokens:,} of {self._budget.tokens:,} tokens", "TOKENS")
        if self._budget.usd is None:
            return None
        dollars = total_cost(used, read_prices(self._budget.prices))
        if dollars is None:
            return BudgetSpent(
                "STARSEARCH_BUDGET_USD is set, and a model that was used today has no price: `starsearch cost` names it, STARSEARCH_PRICES "
                "may hold one"
            )
        return _spent(f"${dollars:,.2f} of ${self._budget.usd:,.2f}", "USD") if dollars >= self._budget.usd else None


def _spent(what: str, setting: str) -> BudgetSpent:
    return BudgetSpent(f"today's budget is spent ({what}): what is due stays due until midnight UTC, or raise STARSEARCH_BUDGET_{setting}")
