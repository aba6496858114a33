"""Summaries are stored while the rest of their batch is being asked for: what was paid once is not asked for again after a kill."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psycopg

from starsearch.errors import DatabaseUnavailable
from starsearch.models import IndexVersion, Summary
from starsearch.store.database import Pool
from starsearch.store.digests import keep_summaries
from starsearch.store.leases import Batch
from starsearch.store.ledger import Call

SECONDS = 0.25  # so much of a killed process's work is asked for again, beside what was in flight

log = logging.getLogger(__name__)


@dataclass
class Keeper:
    """Of one batch. Left by an exception, it stores what is left; else the batch's own transaction does.

    A database that does not answer is left to that transaction too, whose caller knows what to do.
    """

    pool: Pool
    version: IndexVersion
    batch: Batch
    run_id: int
    _made: list[tuple[Summary, Call]] = field(default_factory=list)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, summary: Summary, call: Call) -> None:
        """call: with its outcome and what it cost."""
        self._made.append((summary, call))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        await self._task
        if error is not None:
            await self._store()

    async def _keep(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), SECONDS)
                return
            await self._store()

    async def _store(self) -> None:
        made = self._made[:]
        if not made:
            return
        try:
            await keep_summaries(self.pool, self.version, self.batch, made, run_id=self.run_id)
        except (psycopg.Error, DatabaseUnavailable) as error:
            log.warning("%d summaries wait to be stored with their batch: %s", len(made), error)
            return
        del self._made[: len(made)]
