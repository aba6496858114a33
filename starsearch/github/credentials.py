"""Who asks: tokens and GitHub App installations, what each has left, and which of them asks next.

Limits belong to credentials, so each keeps its own count: points left in the hour, requests in flight, and until when GitHub
wants no more from it. Times are GitHub's own (its Date header); a clock of ours that is an hour off changes nothing.
https://docs.github.com/graphql/overview/rate-limits-and-query-limits-for-the-graphql-api
"""

import asyncio
import contextlib
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import httpx2
import jwt

from starsearch.bounded import asked
from starsearch.errors import AnswerUnusable, RateLimited, SourceUnavailable
from starsearch.github.values import LONGEST_WAIT_SECONDS, quota_of, wait_of

REFRESH_BEFORE = timedelta(minutes=10)
IN_FLIGHT = 2  # per credential: GitHub's CPU limit allows about one at a time on average
SECONDARY_SECONDS = 60.0  # GitHub's own advice where it does not say how long
SECONDARY_DOUBLINGS = 5
LEAST_BLOCK_SECONDS = 1.0  # never at once, or a wrong header makes a loop of it
RECOVERY = 0.05  # of a request in flight, regained with each answer
RESERVE = 0.10  # of a credential's points, left for people
BACKFILL_RESERVE = 0.40  # a backfill leaves more: the hourly crawl comes first
HEADER_TEXT = re.compile("[!-~]+")

log = logging.getLogger(__name__)


class Clock:
    """GitHub's time: its last Date header and what has passed since."""

    def __init__(self) -> None:
        self._said = datetime.now(UTC)
        self._heard = time.monotonic()

    def read(self, headers: Mapping[str, str]) -> None:
        with contextlib.suppress(ValueError, KeyError, OverflowError):
            self._said = parsedate_to_datetime(headers["date"]).astimezone(UTC)
            self._heard = time.monotonic()

    def now(self) -> datetime:
        return self._said + timedelta(seconds=time.monotonic() - self._heard)


@dataclass(frozen=True)
class Token:
    """A personal access token."""

    name: str
    secret: str = field(repr=False)

    async def issue(self, _http: httpx2.AsyncClient, _clock: Clock) -> tuple[str, datetime | None]:
        if not HEADER_TEXT.fullmatch(self.secret):  # the HTTP library would quote it in its error
            raise SourceUnavailable(f"{self.name} holds what no token has (a space, a line break?): correct STARSEARCH_GITHUB_TOKENS")
        return self.secret, None


@dataclass(frozen=True)
class AppInstallation:
    """A GitHub App where it is installed; proves itself with its private key (PEM) and gets tokens of an hour.

    https://docs.github.com/apps/creating-github-apps/authenticating-with-a-github-app
    """

    app_id: str
    installation_id: str
    private_key: str = field(repr=False)
    rest_url: str

    @property
    def name(self) -> str:
        return f"App {self.app_id}, installation {self.installation_id}"

    async def issue(self, http: httpx2.AsyncClient, clock: Clock) -> tuple[str, datetime | None]:
        """A token and when it ends. The second try uses the time that GitHub's refusal of the first one told."""
        response = await self._ask(http, clock)
        if response.status_code == 401:
            response = await self._ask(http, clock)
        if response.status_code >= 500 or response.status_code == 429 or "retry-after" in response.headers:
            raise AnswerUnusable(f"{self.name}: GitHub answered {response.status_code} to the request for a token")
        if not response.is_success:
            raise SourceUnavailable(
                f"GitHub refuses {self.name} ({response.status_code}): check STARSEARCH_GITHUB_APP_ID and _INSTALLATION_ID, and "
                "make a new private key in the App's settings if this one was deleted"
            )
        try:
            answer = response.json()
            token, expires_at = answer["token"], datetime.fromisoformat(answer["expires_at"])
            if not HEADER_TEXT.fullmatch(token):
                raise ValueError("not a token")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AnswerUnusable(f"{self.rest_url} answered the request for a token with something else: is there a proxy?") from error
        return token, expires_at.replace(tzinfo=expires_at.tzinfo or UTC)

    async def _ask(self, http: httpx2.AsyncClient, clock: Clock) -> httpx2.Response:
        now = clock.now()
        claims = {"iss": self.app_id, "iat": now - timedelta(seconds=60), "exp": now + timedelta(minutes=9)}
        try:
            proof = jwt.encode(claims, self.private_key, algorithm="RS256")
        except (ValueError, TypeError, AttributeError, jwt.PyJWTError) as error:  # AttributeError: a public key
            raise SourceUnavailable("STARSEARCH_GITHUB_APP_PRIVATE_KEY is not an RSA private key in PEM form") from error
        url = f"{self.rest_url}/app/installations/{self.installation_id}/access_tokens"
        try:
            response = await asked(http, "POST", url, headers={"Authorization": f"Bearer {proof}"})
        except httpx2.RequestError as error:
            raise AnswerUnusable(f"{self.name}: no answer to the request for a token ({error})") from error
        clock.read(response.headers)
        return response


@dataclass
class Credential:
    """A token source and what GitHub said of it last; points are None until it has answered once."""

    source: Token | AppInstallation
    most: int = IN_FLIGHT
    limit: int | None = None
    remaining: int | None = None
    resets_at: datetime | None = None
    in_flight: int = 0
    allowed: float = float(IN_FLIGHT)
    refused: str = ""  # why it is not used any more
    issue: int = 0  # counts its tokens; a personal token that is tried again is a new one
    _blocked_until: float = 0.0
    _strikes: int = 0
    _refusals: int = 0
    _token: str = field(default="", repr=False)
    _expires_at: datetime | None = None
    _issuing: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    def __post_init__(self) -> None:
        self.allowed = float(self.most)

    @property
    def name(self) -> str:
        return self.source.name

    async def token(self, http: httpx2.AsyncClient, clock: Clock) -> str:
        async with self._issuing:
            if not self._token or (self._expires_at and clock.now() > self._expires_at - REFRESH_BEFORE):
                self._token, self._expires_at = await self.source.issue(http, clock)
                self.issue += 1
        return self._token

    def unauthorized(self, issue: int) -> None:
        """GitHub answered 401. It does so now and then for good tokens, so the second one in a row decides."""
        if issue != self.issue or not self._token:
            return  # sent before the first 401 came back
        self._token = ""
        self._refusals += 1
        if self._refusals > 1:
            self.refuse(f"GitHub refuses {self.name}: replace it (STARSEARCH_GITHUB_TOKENS or STARSEARCH_GITHUB_APP_PRIVATE_KEY)")

    def refuse(self, reason: str) -> None:
        """Not to be used again in this process."""
        self.refused = reason
        log.warning("%s", reason)

    def read(self, headers: Mapping[str, str]) -> None:
        if quota := quota_of(headers):
            self.limit, self.remaining, self.resets_at = quota

    def answered(self) -> None:
        self._strikes = self._refusals = 0
        self.allowed = min(float(self.most), self.allowed + RECOVERY)

    def slow_down(self) -> None:
        self.allowed = max(1.0, self.allowed / 2)

    def block(self, headers: Mapping[str, str], clock: Clock) -> float:
        """A limit was met: no request before it ends. Returns the seconds."""
        self.slow_down()
        asked = wait_of(headers)
        if asked is not None:
            seconds = asked
        elif self.remaining == 0 and self.resets_at:
            seconds = (self.resets_at - clock.now()).total_seconds() + 5
        else:
            seconds = SECONDARY_SECONDS * 2 ** min(self._strikes, SECONDARY_DOUBLINGS)
        self._strikes += 1
        seconds = min(max(seconds, LEAST_BLOCK_SECONDS), LONGEST_WAIT_SECONDS)
        self._blocked_until = time.monotonic() + seconds
        return seconds

    def seconds_until_free(self, reserve: float, clock: Clock) -> float:
        """0 when it may ask now, but for what is in flight."""
        wait = self._blocked_until - time.monotonic()
        if self.remaining is not None and self.limit and self.remaining <= reserve * self.limit and self.resets_at:
            wait = max(wait, (self.resets_at - clock.now()).total_seconds())
        return max(wait, 0.0)


class CredentialPool:
    """Hands each request the credential with the most points left."""

    def __init__(self, credentials: Sequence[Credential], clock: Clock) -> None:
        self.credentials = list(credentials)
        self.clock = clock
        self.in_flight = 0
        self.most_in_flight = 0
        self._changed = asyncio.Condition()

    @property
    def width(self) -> int:
        """How many requests may be in flight at best."""
        return sum(credential.most for credential in self._usable())

    @asynccontextmanager
    async def lend(self, *, reserve: float, patience: float) -> AsyncIterator[Credential]:
        """Raises RateLimited where none will be free within `patience` seconds, SourceUnavailable where all were refused."""
        credential = await self._take(reserve, patience)
        try:
            yield credential
        finally:
            async with self._changed:
                credential.in_flight -= 1
                self.in_flight -= 1
                self._changed.notify_all()

    async def _take(self, reserve: float, patience: float) -> Credential:
        async with self._changed:
            while True:
                usable = self._usable()
                free = [c for c in usable if c.seconds_until_free(reserve, self.clock) == 0]
                ready = [c for c in free if c.in_flight < int(c.allowed)]
                if ready:
                    return self._count(max(ready, key=lambda c: (c.remaining is None, c.remaining or 0)))
                await self._wait(usable, free, reserve, patience)

    def _count(self, credential: Credential) -> Credential:
        credential.in_flight += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return credential

    async def _wait(self, usable: list[Credential], free: list[Credential], reserve: float, patience: float) -> None:
        """Until a request comes back or a block ends; called with the condition held."""
        if free:
            await self._changed.wait()
            return
        seconds = min(c.seconds_until_free(reserve, self.clock) for c in usable)
        if seconds > patience:
            raise RateLimited(self._exhausted(seconds), self.clock.now() + timedelta(seconds=seconds))
        try:
            await asyncio.wait_for(self._changed.wait(), seconds + random.uniform(0, 0.25))
        except TimeoutError:
            return

    def _usable(self) -> list[Credential]:
        usable = [credential for credential in self.credentials if not credential.refused]
        if not usable:
            raise SourceUnavailable("; ".join(credential.refused for credential in self.credentials) or "no GitHub credentials")
        return usable

    def _exhausted(self, seconds: float) -> str:
        left = ", ".join(f"{c.name}: {c.remaining} of {c.limit} points" for c in self._usable())
        return f"GitHub's limit is reached for {seconds / 60:.0f} minutes ({left}); what is missing joins the next crawl"
