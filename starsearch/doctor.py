"""One line per precondition, red ones with their fix."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

import httpx2

from starsearch.engines import open_embedding, open_llm
from starsearch.errors import StarsearchError
from starsearch.github.client import open_github
from starsearch.github.rest import open_source
from starsearch.inference.client import Engine
from starsearch.inference.embed import take_probe
from starsearch.settings import Settings
from starsearch.sources import credentials
from starsearch.storage import database_address


@dataclass(frozen=True)
class Check:
    """`level` warning: some commands work without it."""

    name: str
    level: Literal["ok", "warning", "error"]
    message: str


async def checks(settings: Settings) -> AsyncIterator[Check]:
    yield await _database(settings)
    yield await _engine(settings, "summaries")
    yield await _engine(settings, "embeddings")
    serving = await _serving(settings)
    if serving:
        yield serving
    yield await _github(settings)
    yield await _prefect(settings)


async def _database(settings: Settings) -> Check:
    from starsearch.store.database import connect, describe
    from starsearch.store.migrate import check_pgvector, pending

    try:
        async with database_address(settings) as dsn, await connect(dsn) as connection:
            pgvector = await check_pgvector(connection, allow_old=settings.allow_old_pgvector)
            missing = len(await pending(connection))
            server = connection.info.server_version
    except StarsearchError as error:
        return Check("database", "error", str(error))
    kind = "" if settings.database_url else "embedded "
    schema = f"{missing} migrations missing: run `starsearch migrate`" if missing else "schema up to date"
    where = describe(dsn)
    message = f"{kind}PostgreSQL {server // 10000}.{server % 10000}, pgvector {pgvector}, {schema}, {where}"
    return Check("database", "warning" if missing else "ok", message)


async def _engine(settings: Settings, name: Literal["summaries", "embeddings"]) -> Check:
    try:
        if name == "summaries":
            async with open_llm(settings) as engine:
                tokens = f"{engine.context_tokens:,} tokens of context" if engine.context_tokens else "context unknown"
                return _serves(name, engine, tokens, lent=settings.lends_openai_key("llm"))
        async with open_embedding(settings) as engine:
            probe = await take_probe(engine, settings.embedding_dimensions)
            return _serves(name, engine, f"{probe.shape[1]} dimensions", lent=settings.lends_openai_key("embedding"))
    except StarsearchError as error:
        return Check(name, "error", str(error))


def _serves(name: str, engine: Engine, size: str, *, lent: bool) -> Check:
    message = f"{engine.model} at {engine.base_url} ({engine.dialect.kind}), {size}"
    if len(engine.addresses) + len(engine.silent) > 1:
        message += f", {len(engine.addresses)} addresses answer"
    if engine.silent:
        return Check(name, "warning", f"{message}; silent: {', '.join(engine.silent)}: start them, or take them out of the setting")
    if lent:
        setting = {"summaries": "LLM", "embeddings": "EMBEDDING"}[name]
        return Check(name, "warning", f"{message}; it gets OPENAI_API_KEY: set STARSEARCH_{setting}_API_KEY if it is not to have that")
    return Check(name, "ok", message)


async def _serving(settings: Settings) -> Check | None:
    """The engines of the version that serves, where the settings describe another one; None where they are those above."""
    from starsearch.serving import open_version, settings_differ
    from starsearch.storage import open_store
    from starsearch.store.versions import active_version

    try:
        async with open_store(settings) as store:
            version = await active_version(store.pool)
            if version is None or not settings_differ(settings, version):
                return None
            async with open_version(settings, version) as engines:
                where = f"{engines.embedding.model} at {engines.embedding.base_url}, {engines.llm.model} at {engines.llm.base_url}"
    except StarsearchError as error:
        return Check("index", "error", f"the engines of the version that serves: {error}")
    return Check("index", "ok", f"{version.short} serves, by {where}; the settings describe another: `starsearch reprocess` builds it")


async def _github(settings: Settings) -> Check:
    """Every credential is asked for itself: one point each."""
    try:
        found = credentials(settings)
        if not found:
            async with open_source(settings.github_rest_url) as source:
                await source.ping()
            return Check(
                "GitHub", "ok", f"{source.quota}; without a token: a handful of repositories (STARSEARCH_GITHUB_TOKENS allows 40,000)"
            )
        for credential in found:
            async with open_github(settings.github_graphql_url, [credential]) as github:
                await github.ping()
    except StarsearchError as error:
        return Check("GitHub", "warning", str(error))
    left = ", ".join(f"{each.name}: {each.remaining} of {each.limit} points until {each.resets_at:%H:%M} UTC" for each in found)
    return Check("GitHub", "ok", left)


async def _prefect(settings: Settings) -> Check:
    if not settings.prefect_api_url:
        return Check("Prefect", "ok", "no PREFECT_API_URL: flows start a server of their own; commands need none")
    try:
        async with httpx2.AsyncClient(timeout=5) as http:
            (await http.get(f"{settings.prefect_api_url.rstrip('/')}/health")).raise_for_status()
    except httpx2.HTTPError as error:
        return Check(
            "Prefect",
            "warning",
            f"{settings.prefect_api_url} does not answer ({error}): start it, or unset PREFECT_API_URL",
        )
    return Check("Prefect", "ok", settings.prefect_api_url)
