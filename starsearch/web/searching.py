"""What the page, the API and the MCP server all call: search over the version that serves now, with bounds.

Finder does the searching. Here is what only a process needs which many ask at once: no more questions are worked on than the machine can
carry, nobody waits for ever, and a page can be turned.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starsearch.asking import ask
from starsearch.engines import open_llm
from starsearch.errors import PreconditionMissing
from starsearch.finder import Finder
from starsearch.inference.client import Engine
from starsearch.models import Answer, Hit, Piece, Place
from starsearch.settings import Settings
from starsearch.store.database import Pool
from starsearch.store.reading import hits_of_items
from starsearch.store.versions import active_version
from starsearch.store.web import cursor_key
from starsearch.web import cursors
from starsearch.web.metrics import Metrics
from starsearch.web.problems import Refused
from starsearch.web.shapes import MOST, Narrowed, SearchQuery

AT_ONCE = 8  # searches in PostgreSQL and the engine at the same time
ASKING = 4  # answers being written
QUEUE = 400  # searches that wait; the next one is told to come back
WAIT_SECONDS = 20.0
BEAT_SECONDS = 10.0  # so that no proxy takes a model that thinks for a dead connection
Value = TypeVar("Value")


class Turnstile:
    """So many at once, so many waiting, and nobody for ever."""

    def __init__(self, at_once: int = AT_ONCE, queue: int = QUEUE, wait_seconds: float = WAIT_SECONDS) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._queue = queue
        self._wait_seconds = wait_seconds
        self.waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        if self.waiting >= self._queue:
            raise _busy()
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise _busy() from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()


async def _within(seconds: float, coming: Coroutine[Any, Any, Value]) -> Value | None:
    try:
        return await asyncio.wait_for(coming, seconds)
    except TimeoutError:
        return None


def _busy() -> Refused:
    return Refused(503, "too many searches at once: try again in a moment", {"Retry-After": "2"})


@dataclass(frozen=True)
class Found:
    """One page of a ranked list. index_version: of the ranking, 12 characters."""

    hits: list[Hit]
    index_version: str
    next_cursor: str | None = None


class Searching:
    def __init__(self, settings: Settings, pool: Pool, engines: AsyncExitStack, metrics: Metrics) -> None:
        self.pool = pool
        self._settings = settings
        self._engines = engines
        self._finder: Finder | None = None
        self._metrics = metrics
        self._llm: Engine | None = None
        self._opening = asyncio.Lock()
        self.turnstile = Turnstile()
        self.asking = Turnstile(at_once=ASKING)
        self._cursor_key: bytes | None = None

    async def find(self, asked: SearchQuery) -> Found:
        """A page of hits, best first. Raises Refused, and what Finder.find and the database raise."""
        if asked.cursor:
            return await self._turn_page(asked, asked.cursor)
        async with self.turnstile.turn():
            with self._metrics.search_seconds.labels(asked.mode).time():
                finder = await self.finder()
                found = await finder.find(asked.q, mode=asked.mode, filters=asked.filters(), limit=asked.limit, places=MOST)
        version = finder.version.fingerprint[:12]
        return Found(found.hits, version, await self._cursor(asked, version, found.rest))

    async def ask(self, question: str, narrowed: Narrowed, say: Callable[[Piece], None] = lambda _: None) -> Answer:
        """An answer with citations; `say` gets its pieces while it is written. Raises Refused, and what asking.ask raises."""
        async with self.asking.turn():
            with self._metrics.ask_seconds.time():
                answer = await ask(await self.finder(), await self._open_llm(), question, filters=narrowed.filters(), say=say)
        self._metrics.answers.labels(answer.kind).inc()
        return answer

    async def answering(self, question: str, narrowed: Narrowed) -> AsyncGenerator[Piece | Answer | None, None]:
        """The pieces of an answer, and all of it at the end; None now and then while nothing is said. Raises as `ask` does.

        Ends the work when nobody listens any more.
        """
        said: asyncio.Queue[Piece | Answer | Exception] = asyncio.Queue()

        async def work() -> None:
            try:
                said.put_nowait(await self.ask(question, narrowed, said.put_nowait))
            except Exception as error:
                said.put_nowait(error)

        working = asyncio.create_task(work())
        try:
            while True:
                told = await _within(BEAT_SECONDS, said.get())
                if isinstance(told, Exception):
                    raise told
                yield told
                if isinstance(told, Answer):
                    return
        finally:
            working.cancel()

    async def _open_llm(self) -> Engine:
        async with self._opening:
            if self._llm is None:
                self._llm = await self._engines.enter_async_context(open_llm(self._settings))
        return self._llm

    async def finder(self) -> Finder:
        """Made when there is something to find; from then on it notices by itself which version serves. Raises PreconditionMissing."""
        if self._finder is None:
            version = await active_version(self.pool)
            if version is None:
                raise PreconditionMissing("nothing to search yet: `starsearch crawl --repo owner/name` or `starsearch ingest FILE` first")
            self._finder = Finder(self.pool, self._settings, version, self._engines)
        return self._finder

    async def ping(self) -> None:
        async with self.pool.connection() as connection:
            await connection.execute("SELECT")

    async def like(self, address: str, narrowed: Narrowed, limit: int) -> Found:
        """The items nearest to one of ours, itself left out. Raises Refused, and what Finder.like raises."""
        async with self.turnstile.turn():
            finder = await self.finder()
            found = await finder.like(address, filters=narrowed.filters(), limit=limit)
        return Found(found.hits, finder.version.fingerprint[:12])

    async def _turn_page(self, asked: SearchQuery, cursor: str) -> Found:
        try:
            version, places = cursors.unpack(await self._key(), asked.question, cursor)
        except cursors.BadCursor:
            raise Refused(422, "cursor: not one that this search gave; leave it out to start at the first page") from None
        shown, rest = places[: asked.limit], places[asked.limit :]
        async with self.turnstile.turn():
            hits = await hits_of_items(self.pool, {p.item_id: (p.score, {"vector": p.vector, "text": p.text}) for p in shown})
        return Found(hits, version, await self._cursor(asked, version, rest))

    async def _cursor(self, asked: SearchQuery, version: str, places: list[Place]) -> str | None:
        return cursors.pack(await self._key(), asked.question, version, places) if places else None

    async def _key(self) -> bytes:
        if self._cursor_key is None:
            self._cursor_key = await cursor_key(self.pool)
        return self._cursor_key
