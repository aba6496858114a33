"""Issues and pull requests of a handful of repositories over GitHub's REST API, with or without a token.

One listing holds both: GET /repos/{owner}/{repo}/issues, newest update first, so that what changes while pages are read moves
to the front and is seen twice rather than missed. The checkpoint is the newest update of the FIRST page and is yielded only
with the last one. https://docs.github.com/rest/issues/issues#list-repository-issues
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx2

from starsearch.bounded import ACCEPTED, asked
from starsearch.certificates import distrust
from starsearch.errors import RateLimited, Rejected, SourceUnavailable, StarsearchError
from starsearch.github.values import quota_of, wait_of
from starsearch.models import Checkpoint, Chunk, Item, Rejection, parse_item

PAGE_SIZE = 100  # GitHub's largest
OVERLAP = timedelta(seconds=60)  # replicas of GitHub lag; what is read twice is unchanged and costs nothing
FIRST_REACH = timedelta(days=1)
TRIES = 3
TIMEOUT_SECONDS = 20.0

log = logging.getLogger(__name__)


@dataclass
class Quota:
    """What GitHub said last about this credential's requests; None until it has answered once."""

    limit: int | None = None
    remaining: int | None = None
    resets_at: datetime | None = None

    def read(self, headers: Mapping[str, str]) -> None:
        if quota := quota_of(headers):
            self.limit, self.remaining, self.resets_at = quota

    def __str__(self) -> str:
        if self.remaining is None:
            return "GitHub did not say how many requests are left"
        return f"{self.remaining} of {self.limit} GitHub requests left until {self.resets_at:%H:%M} UTC"


class RestSource:
    """Yields chunks of one repository and says how far it got. Raises StarsearchError for a repository it cannot read."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http
        self.usage = self.quota = Quota()
        self.requests = 0

    async def ping(self) -> None:
        """Ask for the quota, which costs none of it; raises SourceUnavailable where GitHub does not answer."""
        await self._get("/rate_limit")

    async def items(self, checkpoint: Checkpoint, *, since: datetime | None = None, newest: int | None = None) -> AsyncIterator[Chunk]:
        """What changed since the checkpoint; without one, since `since`, or the `newest` items of any age."""
        await self._check_public(checkpoint.repo)
        started = datetime.now(UTC)
        start = checkpoint.high_water or since or started - FIRST_REACH
        parameters = {
            "state": "all",
            "sort": "updated",
            "direction": "desc",
            "per_page": str(min(newest or PAGE_SIZE, PAGE_SIZE)),
        }
        if not newest:
            parameters["since"] = f"{start - OVERLAP:%Y-%m-%dT%H:%M:%SZ}"
        url: str | None = str(httpx2.URL(f"/repos/{checkpoint.repo}/issues", params=parameters))
        high_water: datetime | None = None
        while url:
            response = await self._get(url)
            items, rejections = _parse_page(_rows(response), checkpoint)
            high_water = high_water or max((item.updated_at for item in items if item.updated_at), default=start)
            url = None if newest else self._next(response)
            # the newest few leave a gap behind them: a checkpoint that is there stays, so that the next whole crawl fills it
            reached = checkpoint.high_water or high_water if newest else max(high_water, start)
            done = None if url else Checkpoint(checkpoint.repo, reached, checkpoint.host)
            yield Chunk(tuple(items), tuple(rejections), done, name=checkpoint.repo, of_github=True)

    async def _check_public(self, repo: str) -> None:
        """Raises StarsearchError for a private repository. Without a token GitHub shows none, and a request is one of 60 an hour."""
        if "authorization" not in self._http.headers:
            return
        response = await self._get(f"/repos/{repo}")
        try:
            private = response.json()["private"]
        except (ValueError, KeyError, TypeError):
            private = None
        if private is not False:
            why = "it is private" if private else "GitHub does not say that it is public"
            raise StarsearchError(f"{why}, and private repositories are not followed: nothing of it was read")

    def _next(self, response: httpx2.Response) -> str | None:
        """The Link header's next page; only on the same host, because the token goes with it."""
        url = response.links.get("next", {}).get("url")
        if url and urlsplit(url).netloc != urlsplit(str(self._http.base_url)).netloc:
            raise StarsearchError(f"{response.url.host} links its next page to another host: {urlsplit(url).netloc}")
        return url

    async def _get(self, url: str) -> httpx2.Response:
        for attempt in range(1, TRIES + 1):
            try:
                self.requests += 1
                response = await asked(self._http, "GET", url)
            except httpx2.RequestError as error:
                if reason := distrust(error):
                    raise SourceUnavailable(f"{self._http.base_url.host} is not asked: {reason}") from error
                if attempt == TRIES or isinstance(error, httpx2.ConnectError):
                    raise SourceUnavailable(
                        f"{self._http.base_url.host} does not answer ({error}): check the network or STARSEARCH_GITHUB_REST_URL, "
                        "or use `starsearch ingest FILE`"
                    ) from error
                continue
            self.quota.read(response.headers)
            if response.status_code < 500:
                return self._checked(response)
            await asyncio.sleep(2**attempt / 4)
        raise StarsearchError(f"{response.url.path} answered {response.status_code} {TRIES} times")

    def _checked(self, response: httpx2.Response) -> httpx2.Response:
        wait = response.headers.get("retry-after", "")
        if response.status_code == 429 or (response.status_code == 403 and (wait or self.quota.remaining == 0)):
            asks = f", and GitHub asks to wait {wait} s" if wait else ""
            # the short-term limit names its own end, which is not the hourly quota's
            seconds = wait_of(response.headers)
            resets_at = self.quota.resets_at if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
            raise RateLimited(f"{self.quota}{asks}; a token (STARSEARCH_GITHUB_TOKENS) allows 5,000 an hour", resets_at)
        if response.status_code == 401:
            raise SourceUnavailable("GitHub refuses the token: correct STARSEARCH_GITHUB_TOKENS, GH_TOKEN or GITHUB_TOKEN")
        if response.status_code >= 400:
            reason = {
                404: "not found, or private",
                410: "its issues are switched off",
                451: "blocked for legal reasons",
            }
            said = reason.get(response.status_code, "")
            raise StarsearchError(f"{response.url.path} answered {response.status_code} {said}".strip())
        return response


@asynccontextmanager
async def open_source(
    base_url: str, token: str | None = None, *, transport: httpx2.AsyncBaseTransport | None = None
) -> AsyncIterator[RestSource]:
    headers = {
        "Accept": "application/vnd.github+json",
        "Accept-Encoding": ACCEPTED,
        "X-GitHub-Api-Version": "2022-11-28",
        "X-Github-Next-Global-ID": "1",  # the node ids that GraphQL tells, too
        "User-Agent": "starsearch",
    }
    if token:
        headers["Authorization"] = f"Bearer {token}"
    async with httpx2.AsyncClient(
        base_url=base_url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True, transport=transport
    ) as http:
        yield RestSource(http)


def _rows(response: httpx2.Response) -> list[Any]:
    """The page's rows. A login page or an object is not an empty page: the checkpoint must not move."""
    try:
        rows = response.json()
    except (ValueError, RecursionError):
        rows = None
    if not isinstance(rows, list):
        raise StarsearchError(f"{response.url.path} did not answer with a list of issues: check STARSEARCH_GITHUB_REST_URL")
    return rows


def _parse_page(page: list[Any], checkpoint: Checkpoint) -> tuple[list[Item], list[Rejection]]:
    items: list[Item] = []
    rejections: list[Rejection] = []
    for position, row in enumerate(page, 1):
        try:
            items.append(parse_item(_fields(row, checkpoint)))
        except (Rejected, KeyError, TypeError, AttributeError) as error:
            rejections.append(Rejection(position, str(error)))
    return items, rejections


def _fields(row: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    pull_request = row.get("pull_request")
    copied = ("number", "title", "body", "state", "node_id", "created_at", "updated_at", "closed_at")
    return {key: row.get(key) for key in copied} | {
        "repo": checkpoint.repo,
        "host": checkpoint.host,
        "type": "pull_request" if pull_request else "issue",
        "url": row.get("html_url"),
        "author": (row.get("user") or {}).get("login"),
        "labels": [label["name"] if isinstance(label, dict) else label for label in row.get("labels", [])],
        "comments_count": row.get("comments"),
        "merged_at": (pull_request or {}).get("merged_at"),
        # of a pull request this listing tells the id, which is not the one GraphQL knows it by
        "database_id": None if pull_request else row.get("id"),
    }
