"""The addresses of one engine as one transport under the OpenAI client: where a request goes, and every retry of it.

The SDK's own retries are off: it would ask the same address again, and two owners of one retry multiply. What is tried again:

    busy       429, 502, 503, 504             elsewhere, or after a pause that all requests share, until patience ends
    no contact refused, reset before sending  the same
    dropped    connection lost, 408, 409, 5xx elsewhere, three tries: a text may be what kills the engine
    misplaced  404 of one among several       elsewhere: that one serves another model
    final      anything else                  never; 400 in particular says the same again

Retry-After and x-should-retry are obeyed as the SDK obeys them. After patience the last answer or error is handed on.
"""

import asyncio
import json
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import httpx2

from starsearch.inference.balancer import Address, Balancer, Endpoint
from starsearch.inference.network import CONNECTED, EVENTS

BUSY = {429, 502, 503, 504}
DROPPED = {408, 409}  # and what is 500 and above
TRIES = 3
SHORT_PATIENCE_SECONDS = 2.0  # for questions such as which models there are: nobody's work waits on them
FIRST_PAUSE_SECONDS = 0.5
LONGEST_ORDERED_PAUSE_SECONDS = 120.0  # as the SDK: a longer Retry-After is not waited for
LOOK_AGAIN_SECONDS = 1.0
RESOLVE_SECONDS = 10.0
REPORT_SECONDS = 1.0  # an endpoint is asked for its queue at most this often
TELL_SECONDS = 60.0  # between two log lines about the pauses of one address
DNS = "dns+"
# vLLM tells its queue in a header of the answer: no second connection, nothing to poll (its orca_metrics.py; others ignore it)
REPORT_WANTED, REPORT = "endpoint-load-metrics-format", "endpoint-load-metrics"
# OpenAI's documented code for an account that is out of credit: it comes as 429, and waiting does not cure it
OUT_OF_CREDIT = "insufficient_quota"

log = logging.getLogger(__name__)

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def resolve(name: str, port: int) -> list[str]:
    """Every address behind a name: of a headless Service, one for each ready pod."""
    found = await asyncio.get_running_loop().getaddrinfo(name, port, type=socket.SOCK_STREAM)
    return sorted({str(sockaddr[0]) for *_, sockaddr in found})


async def nothing() -> None:
    """Nothing has to be done before."""


@dataclass
class _Attempts:
    """What one request has gone through so far. Its patience starts when it is first sent."""

    patience_seconds: float
    deadline: float | None = None
    tried: set[Endpoint] = field(default_factory=set)
    failed: int = 0
    error: httpx2.TransportError | None = None
    answer: httpx2.Response | None = None

    @property
    def over(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def outcome(self) -> httpx2.Response:
        if self.answer is not None:
            return self.answer
        raise self.error or httpx2.ConnectError("no address of the engine can be reached")


class Endpoints(httpx2.AsyncBaseTransport):
    """Sends each request to the address with the fewest, and again elsewhere where that may help."""

    def __init__(
        self,
        base_urls: str,
        inner: httpx2.AsyncBaseTransport,
        *,
        patience_seconds: float,
        balancer: Balancer | None = None,
        resolve: Resolve = resolve,
        before: Callable[[], Awaitable[None]] = nothing,
        sent: Callable[[], None] = lambda: None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """`base_urls`: one, or several with commas; dns+http:// for every address behind a name.

        `before` is waited for before each try, and may raise to stop there. `sent` hears of each request, `answered` of each that is over
        and can have cost no more than its answer says.
        """
        self.base_urls = [httpx2.URL(url.strip().rstrip("/")) for url in base_urls.split(",")]
        self._inner = inner
        self._patience_seconds = patience_seconds
        self._balancer = balancer or Balancer()
        self._resolve = resolve
        self._before = before
        self._sent = sent
        self._answered = answered
        self._freed = asyncio.Condition()
        self._resolving: asyncio.Task[None] | None = None
        self._resolve_at = 0.0
        self._tell_at: dict[Endpoint, float] = {}
        self._told_away: set[Endpoint] = set()

    @cached_property
    def base_url(self) -> httpx2.URL:
        """The address that the SDK builds its requests with; each is sent to one of the real ones."""
        return _plain(self.base_urls[0])

    async def addresses(self) -> list[Address]:
        await self._refresh()
        return list(self._balancer.endpoints)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        patience = self._patience_seconds if request.method == "POST" else min(SHORT_PATIENCE_SECONDS, self._patience_seconds)
        attempts = _Attempts(patience)
        while True:
            async with self._place(attempts) as endpoint:
                if endpoint is None:
                    return attempts.outcome()
                await self._before()
                if await self._try(endpoint, request, attempts):
                    return self._flowing(endpoint, attempts.outcome())
            await self._back_off(attempts)

    async def ask(self, address: Address, path: str, headers: dict[str, str]) -> httpx2.Response:
        """One question to one address, past the balancing: is it there, and what does it serve?"""
        url = httpx2.URL(address.base_url).join(path if path.startswith("/") else f"{httpx2.URL(address.base_url).path}/{path}")
        return await self._send(httpx2.Request("GET", url, headers=headers | {"host": address.host}, extensions=_timeout(10.0)))

    async def aclose(self) -> None:
        if self._resolving:
            self._resolving.cancel()
        await self._inner.aclose()

    @asynccontextmanager
    async def _place(self, attempts: _Attempts) -> AsyncIterator[Endpoint | None]:
        """A place at an endpoint, as soon as there is one; None: patience ended before."""
        endpoint = await self._wait_for_place(attempts)
        if endpoint is None:
            yield None
            return
        endpoint.outstanding += 1
        try:
            yield endpoint
        finally:
            await self._leave(endpoint)

    async def _leave(self, endpoint: Endpoint) -> None:
        endpoint.outstanding -= 1
        async with self._freed:
            self._freed.notify()

    def _flowing(self, endpoint: Endpoint, answer: httpx2.Response) -> httpx2.Response:
        """An answer that comes in pieces holds a place of its own until it is over."""
        if not answer.is_closed and isinstance(answer.stream, httpx2.AsyncByteStream):
            endpoint.outstanding += 1
            answer.stream = _Pieces(answer.stream, self._answered, lambda: self._leave(endpoint))
        return answer

    async def _wait_for_place(self, attempts: _Attempts) -> Endpoint | None:
        """A request that was never sent waits as long as others are answered: each of those ends."""
        while not attempts.over:
            await self._refresh()
            endpoint = self._balancer.pick(attempts.tried)
            if endpoint:
                return endpoint
            if attempts.deadline is None and self._balancer.silent_seconds() > attempts.patience_seconds:
                return None
            pause = self._balancer.pause_seconds()
            async with self._freed:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._freed.wait(), min(LOOK_AGAIN_SECONDS if pause is None else pause, LOOK_AGAIN_SECONDS))
        return None

    async def _back_off(self, attempts: _Attempts) -> None:
        """Before the same address is asked again over an error that was this request's own."""
        if attempts.failed and not attempts.over and len(attempts.tried) >= len(self._balancer.endpoints):
            wait = attempts.answer and _retry_after(attempts.answer)
            seconds = wait or FIRST_PAUSE_SECONDS * 2 ** (attempts.failed - 1) * random.uniform(0.75, 1.0)
            await asyncio.sleep(seconds)

    async def _try(self, endpoint: Endpoint, request: httpx2.Request, attempts: _Attempts) -> bool:
        """Send once. True: that was it, for better or worse."""
        sent_at = time.monotonic()
        attempts.tried.add(endpoint)
        attempts.deadline = attempts.deadline or sent_at + attempts.patience_seconds
        try:
            answer = await self._send(self._addressed(request, endpoint, sent_at))
        except httpx2.TransportError as error:
            attempts.error, attempts.answer = error, None
            return self._failed(endpoint, error, sent_at, attempts)
        attempts.error, attempts.answer = None, answer
        return self._judged(endpoint, answer, sent_at, attempts)

    def _failed(self, endpoint: Endpoint, error: httpx2.TransportError, sent_at: float, attempts: _Attempts) -> bool:
        why = str(error) or type(error).__name__
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            with self._telling(endpoint, why):
                self._balancer.lost(endpoint, sent_at, reachable=False)
            return False
        self._count(endpoint, why, attempts)
        if isinstance(error, httpx2.TimeoutException):
            self._balancer.overloaded(endpoint, sent_at, pause=False)
        else:
            self._avoid(endpoint, sent_at, why)
        return attempts.failed >= TRIES

    def _count(self, endpoint: Endpoint, why: str, attempts: _Attempts) -> None:
        attempts.failed += 1
        log.info("try %d of %d at %s failed: %s", attempts.failed, TRIES, _where(endpoint), why)

    def _judged(self, endpoint: Endpoint, answer: httpx2.Response, sent_at: float, attempts: _Attempts) -> bool:
        status, wait = answer.status_code, _retry_after(answer)
        why = f"HTTP {status}"
        ordered = answer.headers.get("x-should-retry")
        if ordered == "false" or (wait or 0) > LONGEST_ORDERED_PAUSE_SECONDS or out_of_credit(answer):
            return True
        if status in BUSY:
            with self._telling(endpoint, why):
                self._balancer.overloaded(endpoint, sent_at, pause_seconds=wait)
            return False
        misplaced = status == 404 and len(self._balancer.endpoints) > 1
        if status >= 500 or status in DROPPED or misplaced or ordered == "true":
            self._count(endpoint, why, attempts)
            self._avoid(endpoint, sent_at, why)
            return attempts.failed >= TRIES
        if endpoint in self._told_away:
            self._told_away.discard(endpoint)
            log.info("%s answers again", _where(endpoint))
        self._balancer.answered(endpoint, sent_at)
        self._note_queue(endpoint, answer)
        return True

    def _avoid(self, endpoint: Endpoint, sent_at: float, why: str) -> None:
        """One that fails at once would draw all requests, having the fewest. A single one is asked all the same: the text may be why."""
        if len(self._balancer.endpoints) > 1:
            with self._telling(endpoint, why):
                self._balancer.lost(endpoint, sent_at, reachable=True)

    @contextmanager
    def _telling(self, endpoint: Endpoint, why: str) -> Iterator[None]:
        """Log the pause that begins inside: one line a minute and address at most, for all requests together."""
        before, now = endpoint.failures, time.monotonic()
        yield
        if endpoint.failures > before and now >= self._tell_at.get(endpoint, 0.0):
            self._tell_at[endpoint] = now + TELL_SECONDS
            self._told_away.add(endpoint)
            log.info("%s gets a pause, failures in a row: %d, the last: %s", _where(endpoint), endpoint.failures, why)

    def _addressed(self, request: httpx2.Request, endpoint: Endpoint, now: float) -> httpx2.Request:
        """The same request for this endpoint; once in a while it also asks how long the queue is."""
        headers = request.headers.copy()
        headers["host"] = endpoint.address.host
        if now >= endpoint.report_at and request.url.path.endswith("/chat/completions"):
            endpoint.report_at = now + REPORT_SECONDS
            headers[REPORT_WANTED] = "JSON"

        async def connected() -> None:
            self._balancer.connected(endpoint)
            async with self._freed:
                self._freed.notify_all()

        target = _target(endpoint.address, self.base_url.path, request.url.raw_path)
        extensions = request.extensions | ({} if endpoint.reachable else {CONNECTED: connected})
        if target.scheme == "https":
            extensions["sni_hostname"] = endpoint.address.host.rsplit(":", 1)[0]
        return httpx2.Request(request.method, target, headers=headers, content=request.content, extensions=extensions)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        """Sent and read to the end, so that the request counts as outstanding until then; but for one that comes as events."""
        self._sent()
        try:
            answer = await self._inner.handle_async_request(request)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._answered()  # nobody got it
            raise
        if answer.headers.get("content-type", "").startswith(EVENTS):
            return answer
        try:
            await answer.aread()
        finally:
            await answer.aclose()
        self._answered()
        return answer

    def _note_queue(self, endpoint: Endpoint, answer: httpx2.Response) -> None:
        report = answer.headers.get(REPORT, "")
        if not report.startswith("JSON "):
            return
        try:
            waiting = float(json.loads(report.removeprefix("JSON "))["named_metrics"]["num_requests_waiting"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return
        self._balancer.queued(endpoint, waiting)

    async def _refresh(self) -> None:
        """The addresses as DNS has them now: waited for the first time, later on looked up beside the work."""
        if time.monotonic() >= self._resolve_at and self._resolving is None:
            self._resolving = asyncio.create_task(self._look_up())
        if self._resolving and not self._balancer.endpoints:
            await asyncio.shield(self._resolving)

    async def _look_up(self) -> None:
        try:
            found = [address for url in self.base_urls for address in await self._addresses_of(url)]
            if found:
                self._balancer.serve(dict.fromkeys(found))
            async with self._freed:
                self._freed.notify_all()
        except OSError as error:
            if not self._balancer.endpoints:
                raise httpx2.ConnectError(f"no address for {self.base_url.host}: {error}") from error
        finally:
            self._resolving = None
            named = any(url.scheme.startswith(DNS) for url in self.base_urls)
            self._resolve_at = time.monotonic() + RESOLVE_SECONDS if named else float("inf")

    async def _addresses_of(self, url: httpx2.URL) -> list[Address]:
        plain = _plain(url)
        host = plain.netloc.decode("ascii")
        if not url.scheme.startswith(DNS):
            return [Address(str(plain), host)]
        port = plain.port or (443 if plain.scheme == "https" else 80)
        return [Address(str(plain.copy_with(host=ip, port=port)), host) for ip in await self._resolve(plain.host, port)]


@lru_cache(1_000)
def _target(address: Address, prefix: str, path: bytes) -> httpx2.URL:
    """What `path` below the base URL's `prefix` is at an address. Kept, because httpx2 parses a URL for as long as it sends a request."""
    return httpx2.URL(address.base_url + path.decode("ascii").removeprefix(prefix.rstrip("/")))


class _Pieces(httpx2.AsyncByteStream):
    """An answer on its way, and what is to be done when it came to its end, and when it is over however it ended."""

    def __init__(self, inner: httpx2.AsyncByteStream, ended: Callable[[], None], over: Callable[[], Awaitable[None]]) -> None:
        self._inner = inner
        self._ended = ended
        self._over = over

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._inner:
            yield piece
        self._ended()

    async def aclose(self) -> None:
        try:
            await self._inner.aclose()
        finally:
            await self._over()


def _where(endpoint: Endpoint) -> str:
    """Its address, without what a base URL may hold beside that."""
    return httpx2.URL(endpoint.address.base_url).netloc.decode("ascii")


def _plain(url: httpx2.URL) -> httpx2.URL:
    return httpx2.URL(str(url).removeprefix(DNS))


def _timeout(seconds: float) -> dict[str, object]:
    return {"timeout": httpx2.Timeout(seconds, connect=5.0).as_dict()}


def _retry_after(answer: httpx2.Response) -> float | None:
    """Seconds, where the engine says so; a date is not worth a parser here."""
    for header, divisor in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            seconds = float(answer.headers[header]) / divisor
        except (KeyError, ValueError):
            continue
        if seconds >= 0:
            return seconds
    return None


def out_of_credit(answer: httpx2.Response) -> bool:
    if answer.status_code != 429:
        return False
    try:
        error = json.loads(answer.content)["error"]
        return OUT_OF_CREDIT in {error.get("code"), error.get("type")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
