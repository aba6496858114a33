"""GitHub opened as the settings say: GraphQL where there is a credential, REST for a handful of repositories where there is none.

Reads nothing from the environment itself; tasks/ and the command pass a Settings value.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from starsearch.crawling import CrawlOptions
from starsearch.errors import PreconditionMissing
from starsearch.github.client import GitHub, open_github
from starsearch.github.credentials import AppInstallation, Credential, Token
from starsearch.github.rest import RestSource, open_source
from starsearch.settings import Settings

Source = GitHub | RestSource


def credentials(settings: Settings) -> list[Credential]:
    """Every token and App installation that the GraphQL API may be asked with. Raises PreconditionMissing for half an App."""
    tokens = settings.graphql_tokens
    sources: list[Token | AppInstallation] = [Token(f"token {n} of {len(tokens)}", token) for n, token in enumerate(tokens, 1)]
    app = (settings.github_app_id, settings.github_app_private_key, settings.github_app_installation_id)
    if any(app) and not all(app):
        raise PreconditionMissing("a GitHub App needs all of STARSEARCH_GITHUB_APP_ID, _APP_PRIVATE_KEY and _APP_INSTALLATION_ID")
    if settings.github_app_id and settings.github_app_private_key and settings.github_app_installation_id:
        key = settings.github_app_private_key.get_secret_value().replace("\\n", "\n")
        sources += [
            AppInstallation(settings.github_app_id, installation.strip(), key, settings.github_rest_url)
            for installation in settings.github_app_installation_id.split(",")
            if installation.strip()
        ]
    return [Credential(source, settings.github_in_flight) for source in sources]


def crawl_options(settings: Settings, *, newest: int | None = None) -> CrawlOptions:
    return CrawlOptions(settings.since, newest, settings.github_host, settings.comments, settings.github_batch)


@asynccontextmanager
async def open_graphql(settings: Settings, *, backfill: bool = False) -> AsyncIterator[GitHub]:
    """Raises PreconditionMissing without a credential, or where the two addresses belong to different servers."""
    found = credentials(settings)
    if not found:
        raise PreconditionMissing(
            "this needs a GitHub credential: set STARSEARCH_GITHUB_TOKENS (a token without any scope will do), or "
            "STARSEARCH_GITHUB_APP_ID, _PRIVATE_KEY and _INSTALLATION_ID"
        )
    if urlsplit(settings.github_rest_url).hostname != urlsplit(settings.github_graphql_url).hostname:
        raise PreconditionMissing(
            "STARSEARCH_GITHUB_GRAPHQL_URL and STARSEARCH_GITHUB_REST_URL name different servers: set both, or neither "
            "(https://HOST/api/graphql and https://HOST/api/v3 on an Enterprise Server)"
        )
    async with open_github(settings.github_graphql_url, found, backfill=backfill) as github:
        yield github


@asynccontextmanager
async def open_any(settings: Settings, *, newest: int | None = None) -> AsyncIterator[Source]:
    """`newest`: only the newest so many of each repository are wanted, which the REST listing gives."""
    if newest is None and credentials(settings):
        async with open_graphql(settings) as github:
            yield github
    else:
        async with open_source(settings.github_rest_url, settings.github_token) as source:
            yield source
