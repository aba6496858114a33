"""GitHub's GraphQL API over HTTP: one query, one answer, and every way in which GitHub says "not now".

No SDK covers its limits and partial errors, and they are what a crawl without loss is made of. Status codes become errors of ours
here and nowhere else: limits and refused tokens send the request to another credential, the rest is raised.
https://docs.github.com/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import httpx2
import orjson

from starsearch.bounded import ACCEPTED, TooLong, asked
from starsearch.certificates import distrust
from starsearch.errors import AnswerUnusable, QueryRefused, QueryTooHeavy, SourceUnavailable
from starsearch.github.credentials import BACKFILL_RESERVE, RESERVE, Clock, Credential, CredentialPool
from starsearch.github.values import whole

TIMEOUT_SECONDS = 20.0  # GitHub itself gives up after 10
TRIES = 3
NAPS_SECONDS = (1.0, 4.0, 9.0)
PATIENCE_SECONDS = 300.0  # for a limit to end; longer, and the crawl stops and the next one goes on
BACKFILL_PATIENCE_SECONDS = 3_700.0  # a backfill sits out the hour
FAILED_REQUESTS = 6  # in a row: GitHub is down

log = logging.getLogger(__name__)
Node = dict[str, Any]


@cache
def query_text(name: str) -> str:
    """The text of queries/`name`.graphql."""
    return (resources.files("starsearch.github") / "queries" / f"{name}.graphql").read_text("utf-8")


class QueryError(NamedTuple):
    type: str
    path: tuple[str | int, ...]
    message: str


class Answer(NamedTuple):
    data: Node
    errors: tuple[QueryError, ...]


@dataclass
class Usage:
    """What a crawl cost. points: as GitHub charged them. `by_query` counts the requests of each query."""

    requests: int = 0
    points: int = 0
    splits: int = 0
    waits: int = 0
    waited_seconds: float = 0.0
    retries: int = 0
    by_query: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Usage") -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        waits = f", {self.waits} waits of {self.waited_seconds:.0f} s in all" if self.waits else ""
        return f"GitHub: {self.points:,} points, {self.requests:,} requests, {self.splits} splits, {self.retries} retries{waits}"

    def as_dict(self) -> dict[str, Any]:
        return vars(self) | {"by_query": dict(self.by_query), "waited_seconds": round(self.waited_seconds, 1)}


class GitHub:
    """One conversation with GitHub; made by open_github."""

    def __init__(self, http: httpx2.AsyncClient, url: str, pool: CredentialPool, *, backfill: bool = False) -> None:
        self.pool = pool
        self.usage = Usage()
        self.before_asking: Callable[[], Awaitable[None]] | None = None  # may raise, to stop before the next request
        self._http = http
        self._url = url
        self._reserve = BACKFILL_RESERVE if backfill else RESERVE
        self._patience = BACKFILL_PATIENCE_SECONDS if backfill else PATIENCE_SECONDS
        self._failures = 0

    @property
    def now(self) -> datetime:
        """GitHub's clock."""
        return self.pool.clock.now()

    @property
    def width(self) -> int:
        """How many requests may be in flight."""
        return self.pool.width

    @property
    def points_per_hour(self) -> int:
        """Of all credentials together, as far as they have been heard of."""
        return sum(credential.limit or 0 for credential in self.pool.credentials) or 5_000

    async def ping(self) -> None:
        """One point; learns GitHub's time and what is left. Raises SourceUnavailable where GitHub does not answer or refuses us."""
        try:
            await self.ask("ping", {})
        except (AnswerUnusable, QueryTooHeavy, QueryRefused) as error:
            raise SourceUnavailable(f"{error}; STARSEARCH_GITHUB_GRAPHQL_URL is {self._url}") from error

    async def ask(self, name: str, variables: Mapping[str, object], *, text: str | None = None) -> Answer:
        """One query, tried three times. `text` where the query is made and not a file.

        Raises QueryTooHeavy, AnswerUnusable, QueryRefused, RateLimited or SourceUnavailable.
        """
        for attempt in range(TRIES):
            try:
                return await self.ask_once(name, variables, text=text)
            except (QueryTooHeavy, AnswerUnusable) as error:
                if attempt == TRIES - 1:
                    raise
                log.info("%s: %s; trying again", name, error)
                await self.nap(attempt)
        raise AssertionError("unreachable")

    async def ask_once(self, name: str, variables: Mapping[str, object], *, text: str | None = None) -> Answer:
        """One answer. A limit or a refused token sends the request to another credential and counts as no failure."""
        await self._before()
        body = orjson.dumps({"query": text or query_text(name), "variables": variables})
        try:
            while True:
                async with self.pool.lend(reserve=self._reserve, patience=self._patience) as credential:
                    await self._before()  # again: it may have taken an hour
                    response = await self._post(name, body, credential)
                    answer = self._read(response, credential) if response else None
                if answer is not None:
                    self._failures = 0
                    return answer
        except AnswerUnusable as error:
            self._failures += 1
            if self._failures >= FAILED_REQUESTS:
                raise SourceUnavailable(f"{self._failures} requests in a row failed, the last one so: {error}") from error
            raise

    async def _before(self) -> None:
        if self.before_asking:
            await self.before_asking()

    async def nap(self, attempt: int) -> None:
        """Before another try of what failed `attempt` + 1 times."""
        self.usage.retries += 1
        await asyncio.sleep(NAPS_SECONDS[attempt] * random.uniform(0.5, 1.0))

    async def _post(self, name: str, body: bytes, credential: Credential) -> httpx2.Response | None:
        """The response; None where the credential turned out to be useless."""
        try:
            token = await credential.token(self._http, self.pool.clock)
        except SourceUnavailable as error:
            credential.refuse(str(error))
            return None
        issue = credential.issue
        self.usage.requests += 1
        self.usage.by_query[name] += 1
        try:
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            response = await asked(self._http, "POST", self._url, content=body, headers=headers)
        except TooLong as error:
            raise QueryTooHeavy(str(error)) from error
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if reason := distrust(error):
                raise SourceUnavailable(f"{self._url} is not asked: {reason}") from error
            raise AnswerUnusable(f"{self._url} does not answer ({str(error) or type(error).__name__}): check the network") from error
        except httpx2.TimeoutException as error:
            credential.slow_down()
            raise QueryTooHeavy(f"no answer within {TIMEOUT_SECONDS:.0f} seconds") from error
        except httpx2.LocalProtocolError:  # its text and its cause quote the header, and with it the token
            raise AnswerUnusable("the request cannot be sent (LocalProtocolError)") from None
        except httpx2.RequestError as error:
            raise AnswerUnusable(f"the connection broke ({str(error) or type(error).__name__})") from error
        self.pool.clock.read(response.headers)
        credential.read(response.headers)
        if response.status_code == 401:
            self.usage.retries += 1
            credential.unauthorized(issue)
            return None
        return response

    def _read(self, response: httpx2.Response, credential: Credential) -> Answer | None:
        """The answer; None where another credential, or this one later, should ask again."""
        status = response.status_code
        if status in {403, 429}:
            self._after_limit(response, credential)
            return None
        if status in {502, 504}:
            credential.slow_down()
            raise QueryTooHeavy(f"GitHub answered {status}")
        try:
            answer = orjson.loads(response.content)
            errors = tuple(_errors(answer))
            data = answer.get("data") or {}
            cost = whole((data.get("rateLimit") or {}).get("cost", 0))
        except (ValueError, AttributeError, TypeError) as error:
            kind = response.headers.get("content-type", "nothing").split(";")[0]
            raise AnswerUnusable(f"{self._url} answered {status} with {kind}, not with GitHub's JSON: is there a proxy?") from error
        if status >= 500:
            raise AnswerUnusable(f"GitHub answered {status}")
        if status != 200:
            raise QueryRefused(f"GitHub answered {status}: {answer.get('message', 'no reason given')}")
        self.usage.points += cost
        if not data or set(data) == {"rateLimit"} or any(error.type == "RATE_LIMITED" for error in errors):
            return self._without_data(response, credential, data, errors)
        credential.answered()
        return Answer(data, errors)

    def _without_data(self, response: httpx2.Response, credential: Credential, data: Node, errors: tuple[QueryError, ...]) -> Answer | None:
        types = {error.type for error in errors}
        if not errors:
            if not data:
                raise AnswerUnusable(f"{self._url} answered without data and without an error: is it GitHub's GraphQL API?")
            credential.answered()
            return Answer(data, ())
        if "RATE_LIMITED" in types or "retry-after" in response.headers or credential.remaining == 0 or _says_limit(errors[0].message):
            self._after_limit(response, credential)
            return None
        if "RESOURCE_LIMITS_EXCEEDED" in types:
            raise QueryTooHeavy("resource limits exceeded")
        if types & {"INSUFFICIENT_SCOPES", "FORBIDDEN"} and not any(error.path for error in errors):
            credential.refuse(f"{credential.name} may not read this: {errors[0].message}")
            return None
        raise QueryRefused(f"{errors[0].type or 'error'}: {errors[0].message}")

    def _after_limit(self, response: httpx2.Response, credential: Credential) -> None:
        if response.status_code == 403 and not _is_limit(response, credential):
            credential.refuse(f"{credential.name} is forbidden to ask {self._url}: {_message(response)}")
            return
        self.usage.waits += 1
        self.usage.waited_seconds += credential.block(response.headers, self.pool.clock)


@asynccontextmanager
async def open_github(
    url: str,
    credentials: Sequence[Credential],
    *,
    backfill: bool = False,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncIterator[GitHub]:
    """`url`: of the GraphQL endpoint."""
    headers = {
        "User-Agent": "starsearch",
        "X-Github-Next-Global-ID": "1",
        "Accept": "application/vnd.github+json",
        "Accept-Encoding": ACCEPTED,
    }
    async with httpx2.AsyncClient(headers=headers, timeout=TIMEOUT_SECONDS, transport=transport) as http:
        yield GitHub(http, url, CredentialPool(credentials, Clock()), backfill=backfill)


def _errors(answer: Mapping[str, Any]) -> Iterator[QueryError]:
    for error in answer.get("errors") or ():
        path = tuple(step if isinstance(step, int) else str(step) for step in error.get("path") or ())
        yield QueryError(str(error.get("type", "")), path, str(error.get("message", ""))[:300])


def _is_limit(response: httpx2.Response, credential: Credential) -> bool:
    return "retry-after" in response.headers or credential.remaining == 0 or _says_limit(_message(response))


def _says_limit(message: str) -> bool:
    """GitHub gives its secondary limits no code of their own."""
    return "rate limit" in message.lower()


def _message(response: httpx2.Response) -> str:
    try:
        return str(orjson.loads(response.content)["message"])[:300]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"{response.status_code}, without a reason"
