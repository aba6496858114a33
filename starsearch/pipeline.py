"""The stages in order, without Prefect: what the flows' tasks and the `starsearch` command both call.

source → store (items, due) → [lease → summarize → embed → one transaction] → search. Nothing is handed on in memory:
kill it anywhere and run it again.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import psycopg

from starsearch.collecting import rare_collections
from starsearch.cost import total_cost
from starsearch.engines import Engines
from starsearch.errors import (
    Braked,
    DatabaseUnavailable,
    DigestFailed,
    EngineFailing,
    EngineUnavailable,
    LeaseLost,
    PreconditionMissing,
    StarsearchError,
    VersionMismatch,
)
from starsearch.github.client import Usage
from starsearch.inference.client import counting
from starsearch.inference.embed import embed_each
from starsearch.inference.prompts import Prompt, embedded_text
from starsearch.inference.summarize import first_prompt, summarize
from starsearch.keeping import Keeper
from starsearch.logs import about
from starsearch.models import Chunk, Counts, DueItem, IndexVersion, Summary
from starsearch.progress import Progress, no_progress
from starsearch.storage import Store
from starsearch.store.digests import Digest, Failure, abandon_batch, earlier_summaries, finish_batch
from starsearch.store.identity import check_models
from starsearch.store.items import store_chunk
from starsearch.store.leases import BACKFILL, BATCH, BULK, Batch, claim, count_due, find_due, next_retry, release_dead, worker
from starsearch.store.ledger import Call, intend, read_usage
from starsearch.store.runs import finish_run, start_run
from starsearch.store.tallies import fold
from starsearch.store.turns import take_turns
from starsearch.store.versions import ensure_version

FAILED_BATCHES = 3  # in a row, each whole: then the engine is at fault and the run stops
MANY = 8  # items; a smaller batch that fails whole says nothing about the engine
LONGEST_NAP_SECONDS = 5.0

log = logging.getLogger(__name__)


@dataclass
class Run:
    """One run: its number in the database, what it has done so far, and who watches."""

    id: int
    counts: Counts = field(default_factory=Counts)
    progress: Progress = no_progress
    github: Usage | None = None  # what GitHub charged, where it was asked over GraphQL


@asynccontextmanager
async def recorded_run(store: Store, kind: str, progress: Progress = no_progress) -> AsyncIterator[Run]:
    """A run whose counts are written down however it ends."""
    run = Run(await start_run(store.pool, kind), progress=progress)
    started = time.monotonic()
    failure: str | None = None
    with about(run=run.id):
        log.info("%s began", kind)
        try:
            yield run
        except BaseException as error:
            failure = str(error) if isinstance(error, StarsearchError) else type(error).__name__
            raise
        finally:
            run.counts.seconds = time.monotonic() - started
            how = f"failed ({failure})" if failure else "ended"  # an error is not told as one: whoever began the run does that
            log.info("%s %s: %s", kind, how, ", ".join(f"{name}={value}" for name, value in run.counts.as_dict().items() if value))
            await finish_run(store.pool, run.id, run.counts, run.github.as_dict() if run.github else None, failure=failure)
            await fold(store.pool)  # so that whoever asks for the status next does not wait for it


async def ingest(store: Store, source: AsyncIterator[Chunk], run: Run) -> None:
    """Store everything a source yields; what changed becomes due."""
    async for chunk in source:
        run.counts.add(await store_chunk(store.pool, chunk, run_id=run.id))
        run.progress("store", run.counts.items, None)


@dataclass
class Allowance:
    """How many items a run may still lease, all lanes together: a shard's size. It ends when they are done or nothing is due now."""

    items: int


@dataclass(frozen=True)
class Lane:
    """What a run does for one index version of the database: items of this priority and the more urgent ones.

    `required`: it is what the run is for. Its counts are the run's, and its engines' failure ends the run; another lane is closed.
    """

    engines: Engines
    priority: int = BULK
    required: bool = True


async def digest(
    store: Store,
    engines: Engines,
    run: Run,
    *,
    beside: Sequence[Engines] = (),
    workers: int = 1,
    concurrency: int = 32,
    allowance: Allowance | None = None,
) -> None:
    """Summarize and embed everything due (or as much as allowed), then in the versions `beside` it what changed.

    Several processes share by leases.

    Raises EngineUnavailable or EngineFailing when going on makes no sense; what is due stays due.
    """
    if not engines.version.id:
        engines = replace(engines, version=await ensure_version(store.pool, engines.version))
    lanes = [Lane(engines), *(Lane(each, BACKFILL, required=False) for each in beside)]
    await digest_lanes(store, lanes, run, workers=workers, concurrency=concurrency, allowance=allowance)


async def digest_lanes(
    store: Store, lanes: Sequence[Lane], run: Run, *, workers: int = 1, concurrency: int = 32, allowance: Allowance | None = None
) -> None:
    """Find out what is due in several versions, and digest it. Errors: see `digest`."""
    await make_due(store)
    await drain(store, lanes, run, workers=workers, concurrency=concurrency, allowance=allowance)


async def make_due(store: Store) -> None:
    """Due is what is stored and not digested, and what a dead worker had leased."""
    released = await release_dead(store.pool)
    if released:
        log.info("%d items were leased by a worker that is gone: due again", released)
    await find_due(store.pool)


async def drain(
    store: Store, lanes: Sequence[Lane], run: Run, *, workers: int = 1, concurrency: int = 32, allowance: Allowance | None = None
) -> None:
    """Digest what is known to be due; whatever is due in an earlier lane comes first. Errors: see `digest`."""
    lanes = [lane for lane in lanes if await _unchanged(store, lane)]
    slots = asyncio.Semaphore(concurrency)
    async with worker(store.dsn) as number:
        totals = [await count_due(store.pool, lane.engines.version.id, priority=lane.priority) for lane in lanes]
        totals = [min(total, allowance.items) for total in totals] if allowance else totals
        digesters = [_Digester(store, lane, run, number, slots, total, allowance) for lane, total in zip(lanes, totals, strict=True)]
        stop = asyncio.Event()
        with rare_collections():
            outcomes = await asyncio.gather(*(_work(digesters, stop, wait=not allowance) for _ in range(workers)), return_exceptions=True)
    async with store.pool.connection() as connection:
        run.counts.cost_usd = total_cost(await read_usage(connection, runs=[run.id]), lanes[0].engines.prices)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def _unchanged(store: Store, lane: Lane) -> bool:
    """Whether the models behind the version's names are those that made it; raises VersionMismatch where the run is for this one."""
    engines = lane.engines
    try:
        await check_models(
            store.pool, engines.version, probe=engines.probe, summary_identity=engines.llm.identity, same_llm=engines.same_llm
        )
    except VersionMismatch as error:
        if lane.required:
            raise
        log.warning("index version %s is not kept up to date now: %s", engines.version.short, error)
        return False
    return True


async def _work(digesters: Sequence["_Digester"], stop: asyncio.Event, *, wait: bool) -> None:
    """Batch after batch until nothing is due anywhere; with `wait`, not even for another try."""
    try:
        while not stop.is_set():
            for digester in digesters:
                if await digester.digest_one():
                    break
            else:
                if not wait or not await _wait_for_retry(digesters):
                    return
    except BaseException:
        stop.set()
        raise


async def _wait_for_retry(digesters: Sequence["_Digester"]) -> bool:
    retries = [retry_at for digester in digesters if (retry_at := await digester.next_retry())]
    if not retries:
        return False
    seconds = (min(retries) - datetime.now(UTC)).total_seconds()
    await asyncio.sleep(min(max(seconds, 0.1), LONGEST_NAP_SECONDS))
    return True


@dataclass
class _Digester:
    """Digests for one lane."""

    store: Store
    lane: Lane
    run: Run
    worker: int
    slots: asyncio.Semaphore
    total: int
    allowance: Allowance | None = None
    done: int = 0
    failed_batches: int = 0
    closed: bool = False

    @property
    def engines(self) -> Engines:
        return self.lane.engines

    @property
    def version(self) -> IndexVersion:
        return self.lane.engines.version

    async def next_retry(self) -> datetime | None:
        return None if self.closed else await next_retry(self.store.pool, self.version.id, priority=self.lane.priority)

    async def digest_one(self) -> bool:
        """Digest one batch; False where nothing is due now. A lane that the run is not for is closed when its engines fail."""
        if self.closed:
            return False
        batch = await self._claim()
        if batch is None:
            return False
        try:
            await self._digest(batch)
        except (PreconditionMissing, EngineFailing) as error:
            if self.lane.required or isinstance(error, Braked):
                raise
            self.closed = True
            log.warning("index version %s is not kept up to date now: %s", self.version.short, error)
        return True

    async def check_request(self) -> None:
        """A database that does not answer now is left to the transaction that stores the batch, whose caller knows what to do."""
        with contextlib.suppress(psycopg.Error, DatabaseUnavailable):
            await self.store.brakes.check(self.run.id)

    async def _claim(self) -> Batch | None:
        await self.store.brakes.check(self.run.id)
        size = min(BATCH, self.allowance.items) if self.allowance else BATCH
        if not size:
            return None
        if self.allowance:
            self.allowance.items -= size
        batch = await claim(self.store.pool, self.version.id, self.worker, size=size, priority=self.lane.priority)
        if self.allowance:
            self.allowance.items += size - (len(batch.items) if batch else 0)
        return batch

    async def _digest(self, batch: Batch) -> None:
        if self.failed_batches >= FAILED_BATCHES:
            await abandon_batch(self.store.pool, batch, [])
            raise EngineFailing(
                f"{FAILED_BATCHES} whole batches in a row failed: see `starsearch status` for the reasons, and the engine's log; "
                "what is due stays due"
            )
        ledger: list[Call] = []
        try:
            digests, failures = await self._ask(batch, ledger)
        except BaseException:
            await abandon_batch(self.store.pool, batch, ledger)
            raise
        finally:
            self.run.counts.add(_spent(ledger))
        if not digests and not failures:
            return  # other batches ask for all of its summaries; it has been handed back
        try:
            counts = await finish_batch(self.store.pool, self.version, batch, digests, failures, ledger, run_id=self.run.id)
        except LeaseLost as error:
            log.warning("%s", error)
            return
        engine_failed = not digests and len(failures) >= MANY and all(failure.error.engine for failure in failures)
        self.failed_batches = self.failed_batches + 1 if engine_failed else 0
        self.done += counts.embedded + counts.dead_letters
        if self.lane.required:
            self.run.counts.add(counts)
            self.run.progress("digest", self.done, self.total)

    async def _ask(self, batch: Batch, ledger: list[Call]) -> tuple[list[Digest], list[Failure]]:
        """Ask the engines for a batch. `ledger` is filled with intents, written down before the first request.

        Raises Braked where no new request may begin: what was in flight is finished then, and its summaries are kept.
        """
        llm = self.engines.llm
        earlier = await earlier_summaries(self.store.pool, self.version, batch.items)
        prompts = {item.id: self._prompt(item) for item in batch.items if item.id not in earlier}
        keys = earlier | {item_id: prompt.key(llm.model) for item_id, prompt in prompts.items()}
        turns = await take_turns(self.store.pool, self.version.id, batch, self.worker, keys)
        items = [item for item in batch.items if item.id not in turns.postponed]
        if not items:
            return [], []
        missing: dict[bytes, list[DueItem]] = {}
        for item in items:
            if keys[item.id] in turns.ours:
                missing.setdefault(keys[item.id], []).append(item)
        ledger += [Call("summary", llm.model, [item.id for item in sharing]) for sharing in missing.values()]
        ledger.append(Call("embedding", self.engines.embedding.model, [item.id for item in items]))
        await intend(self.store.pool, self.run.id, batch.token, ledger)
        asked = zip(missing.values(), ledger, strict=False)
        async with Keeper(self.store.pool, self.version, batch, self.run.id) as keeper:
            answers = await asyncio.gather(*(self._summarize(item, prompts.get(item.id), call, keeper) for (item, *_), call in asked))
            outcomes: dict[bytes, Summary | DigestFailed] = {
                **turns.made,
                **dict(zip(missing, _blame(_unless_braked(answers)), strict=True)),
            }
            pairs = [(item, outcomes[keys[item.id]]) for item in items]
            failures = [Failure(item, "summarize", o) for item, o in pairs if isinstance(o, DigestFailed)]
            digests, not_embedded = await self._embed([(item, o) for item, o in pairs if isinstance(o, Summary)], ledger[-1])
        return digests, failures + not_embedded

    def _prompt(self, item: DueItem) -> Prompt:
        return first_prompt(self.engines.llm, item, version=self.version.prompt_version)

    async def _summarize(
        self, item: DueItem, prompt: Prompt | None, call: Call, keeper: Keeper
    ) -> Summary | DigestFailed | EngineUnavailable | Braked:
        async with self.slots:
            with about(repository=item.repository, item=item.number), counting(self.check_request) as call.spent:
                try:
                    summary = await summarize(self.engines.llm, item, prompt or self._prompt(item))
                except Braked as error:
                    call.outcome = "stopped" if call.spent.requests else call.outcome
                    return error
                except DigestFailed as error:
                    call.outcome = error.reason
                    return error
                except EngineUnavailable as error:
                    call.outcome = "no answer"
                    return error
        call.outcome = "ok"
        keeper.put(summary, call)
        return summary

    async def _embed(self, pairs: Sequence[tuple[DueItem, Summary]], call: Call) -> tuple[list[Digest], list[Failure]]:
        call.item_ids = [item.id for item, _ in pairs]
        if not pairs:
            return [], []
        texts = [embedded_text(item.title, summary.text) for item, summary in pairs]
        unique = list(dict.fromkeys(texts))
        with counting(self.check_request) as call.spent:
            vectors, _ = await embed_each(self.engines.embedding, unique, dimensions=self.engines.dimensions, width=self.version.dimensions)
        by_text = dict(zip(unique, vectors, strict=True))
        call.outcome = next((vector.reason for vector in vectors if isinstance(vector, DigestFailed)), "ok")
        digests, failures = [], []
        for (item, summary), text in zip(pairs, texts, strict=True):
            vector = by_text[text]
            if isinstance(vector, DigestFailed):
                failures.append(Failure(item, "embed", vector))
            else:
                digests.append(Digest(item, summary, vector))
        return digests, failures


def _spent(calls: Sequence[Call]) -> Counts:
    """What calls cost, failed ones too, as a run counts it; the dollars are added when the run ends."""
    return Counts(
        llm_requests=sum(call.spent.requests for call in calls if call.purpose == "summary"),
        prompt_tokens=sum(call.spent.prompt_tokens for call in calls),
        cached_tokens=sum(call.spent.cached_tokens for call in calls),
        completion_tokens=sum(call.spent.completion_tokens for call in calls),
    )


def _unless_braked(
    answers: Sequence[Summary | DigestFailed | EngineUnavailable | Braked],
) -> list[Summary | DigestFailed | EngineUnavailable]:
    """The answers; raises where one was stopped before its request."""
    for answer in answers:
        if isinstance(answer, Braked):
            raise answer
    return [answer for answer in answers if not isinstance(answer, Braked)]


def _blame(
    answers: Sequence[Summary | DigestFailed | EngineUnavailable],
) -> list[Summary | DigestFailed]:
    """When nobody got an answer, the engine is gone. One lost connection may be its item's doing; a refusal is nobody's."""
    gone = [answer for answer in answers if isinstance(answer, EngineUnavailable)]
    if gone and len(gone) == len(answers):
        raise gone[0]
    return [DigestFailed("no answer", str(a), attempt=a.reached) if isinstance(a, EngineUnavailable) else a for a in answers]
