"""Crawls of the stand-in from a test: the real client over real HTTP into a real database."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from starsearch.crawling import CrawlOptions, crawl
from starsearch.github.client import GitHub, Usage, open_github
from starsearch.github.credentials import Credential, Token
from starsearch.models import Counts
from starsearch.pipeline import recorded_run
from starsearch.progress import Progress, no_progress
from starsearch.storage import Store
from starsearch.store.rankings import NamedRepository, refresh_ranking
from tests.standin.server import StandIn
from tests.standin.things import Repository

HOST = "github.com"
LONG_AGO = datetime(2010, 1, 1, tzinfo=UTC)


@dataclass
class Crawled:
    """failed: repositories that were not crawled, with the reason."""

    counts: Counts
    failed: dict[str, str]
    usage: Usage


@asynccontextmanager
async def opened(
    standin: StandIn, *, tokens: Sequence[str] = ("token-a",), in_flight: int = 2, backfill: bool = False
) -> AsyncIterator[GitHub]:
    credentials = [Credential(Token(f"token {n} of {len(tokens)}", token), in_flight) for n, token in enumerate(tokens, 1)]
    async with open_github(standin.graphql_url, credentials, backfill=backfill) as github:
        yield github


async def crawl_now(
    store: Store,
    standin: StandIn,
    *names: str,
    since: datetime = LONG_AGO,
    comments: int = 0,
    batch: int = 50,
    progress: Progress = no_progress,
    **how: Any,
) -> Crawled:
    """The followed list, or these repositories; a first crawl reaches back to `since`."""
    options = CrawlOptions(since=since, comments=comments, batch=batch)
    async with opened(standin, **how) as github, recorded_run(store, "crawl", progress) as run:
        failed = await crawl(store, github, names, run, options)
    return Crawled(run.counts, failed, github.usage)


async def follow(store: Store, repositories: Iterable[Repository]) -> None:
    """By name only, as a list from a file: the next crawl asks who they are."""
    entries = [NamedRepository(repository.full_name, repository.stars) for repository in repositories]
    await refresh_ranking(store.pool, HOST, entries, top=len(entries), source="test", shortest=0)


async def rows(store: Store, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    async with store.pool.connection() as connection:
        return await (await connection.execute(query, parameters)).fetchall()


def key_pair() -> tuple[str, str]:
    """Of an App, in PEM: (private, public)."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private.decode(), public.decode()
