"""GitHub's GraphQL API, faked at the wire, and a time that passes only where everybody waits.

The real client runs above both: what it sends, when, and with which token is kept, so that a test can say what was waited.
"""

import asyncio
import itertools
import json
import selectors
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx2

from starsearch.github.client import GitHub, open_github
from starsearch.github.credentials import Credential, Token

URL = "https://api.github.com/graphql"
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)  # GitHub's clock when a test begins; this machine's is months off

PATIENCE_SECONDS = 30 * 86_400.0  # a client that waits or asks for ever fails its test instead of hanging it
PATIENCE_REQUESTS = 2_000

Response = httpx2.Response
Reply = Response | Exception | Callable[[httpx2.Request], Response | Awaitable[Response]]


class Time:
    """Jumps to the next timer as soon as nobody has anything else to do."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._select = selector.select
        self.passed = 0.0

    def monotonic(self) -> float:
        return 1_000.0 + self.passed

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("everybody waits, and nobody will wake them up")
        self.passed += max(timeout, 0.0)
        if self.passed > PATIENCE_SECONDS:
            raise RuntimeError("still waiting after a month")
        return self._select(0)


@dataclass(frozen=True)
class Asked:
    """One request. at: seconds since the test began."""

    at: float
    token: str
    query: str
    variables: dict[str, Any]
    headers: httpx2.Headers


class Wire:
    """Answers in the order given, and the last answer for ever; raises what is an exception, calls what can be called."""

    def __init__(self, *replies: Reply, latency: float = 0.0, date: bool = True) -> None:
        self.replies = list(replies)
        self.asked: list[Asked] = []
        self.in_flight = self.most_in_flight = 0
        self._latency = latency
        self._date = date
        self._start: float | None = None

    @property
    def tokens(self) -> list[str]:
        return [asked.token for asked in self.asked]

    @property
    def ids(self) -> list[list[str]]:
        return [asked.variables["ids"] for asked in self.asked]

    @property
    def waits(self) -> list[float]:
        """Seconds between one request and the next."""
        times = [asked.at for asked in self.asked]
        return [round(after - before, 3) for before, after in itertools.pairwise(times)]

    @property
    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.seconds)

    @property
    def seconds(self) -> float:
        now = asyncio.get_running_loop().time()
        self._start = now if self._start is None else self._start
        return now - self._start

    def open(self, *credentials: Credential, url: str = URL, backfill: bool = False) -> AbstractAsyncContextManager[GitHub]:
        return open_github(url, credentials or (token("a"),), backfill=backfill, transport=httpx2.MockTransport(self))

    async def __call__(self, request: httpx2.Request) -> Response:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            response = await self.respond(request)
        finally:
            self.in_flight -= 1
        if self._date:
            response.headers.setdefault("date", format_datetime(self.now, usegmt=True))
        return response

    async def respond(self, request: httpx2.Request) -> Response:
        body = json.loads(request.content)
        sent = request.headers["authorization"].removeprefix("Bearer ")
        self.asked.append(Asked(self.seconds, sent, body["query"], body["variables"], request.headers))
        assert len(self.asked) < PATIENCE_REQUESTS
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        await asyncio.sleep(self._latency)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Response):
            return Response(reply.status_code, headers=reply.headers, content=reply.content)
        answer = reply(request)
        return answer if isinstance(answer, Response) else await answer


def token(secret: str, most: int = 2, *, name: str = "", **known: Any) -> Credential:
    return Credential(Token(name or f"token {secret}", secret), most, **known)


def data(cost: int = 1, errors: Sequence[dict[str, Any]] = (), headers: dict[str, str] | None = None, **fields: Any) -> Response:
    return Response(200, json={"data": {"rateLimit": {"cost": cost}} | fields} | ({"errors": errors} if errors else {}), headers=headers)


def refused(*errors: dict[str, Any], status: int = 200, **headers: str) -> Response:
    """No data."""
    return Response(status, json={"data": None, "errors": errors}, headers=named(headers))


def failure(status: int, message: str = "no", **headers: str) -> Response:
    return Response(status, json={"message": message}, headers=named(headers))


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def quota(remaining: object, *, limit: object = 5_000, resets_in: float = 600) -> dict[str, str]:
    reset = str(int(NOW.timestamp() + resets_in))
    return {"x-ratelimit-limit": str(limit), "x-ratelimit-remaining": str(remaining), "x-ratelimit-reset": reset}


def error(type: str = "", path: Sequence[str | int] = (), message: str = "no") -> dict[str, Any]:
    return {"message": message} | ({"type": type} if type else {}) | ({"path": list(path)} if path else {})
