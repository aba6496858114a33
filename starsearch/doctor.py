"""One line per precondition, red ones with their fix. It changes nothing: not even a schema that is out of date."""

import ipaddress
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from starsearch.cost import read_prices
from starsearch.engines import open_embedding, open_llm
from starsearch.errors import BudgetSpent, Paused, PreconditionMissing, StarsearchError
from starsearch.github.client import open_github
from starsearch.github.rest import open_source
from starsearch.inference.client import Engine
from starsearch.inference.embed import take_probe
from starsearch.settings import Settings
from starsearch.sources import credentials
from starsearch.storage import database_address

if TYPE_CHECKING:
    from psycopg import AsyncConnection

SHARDS = "digest/shard"
MAY_WRITE = "SELECT has_table_privilege('item', 'INSERT') AND NOT current_setting('transaction_read_only')::boolean"


@dataclass(frozen=True)
class Check:
    """`level` warning: some commands work without it."""

    name: str
    level: Literal["ok", "warning", "error"]
    message: str


async def checks(settings: Settings) -> AsyncIterator[Check]:
    database, usable = await _database(settings)
    yield database
    models = []
    for name in ("summaries", "embeddings"):
        engine, model = await _engine(settings, name)
        yield engine
        models += [model] if model else []
    for more in (_prices(settings, models), *([await _serving(settings), await _work(settings)] if usable else [])):
        if more:
            yield more
    yield await _github(settings)
    yield await _prefect(settings)


async def _database(settings: Settings) -> tuple[Check, bool]:
    """The second: whether there is more to be read in it, its schema being that of this release."""
    from starsearch.store.database import connect, describe
    from starsearch.store.migrate import check_pgvector, migrations, pending

    try:
        async with database_address(settings) as dsn, await connect(dsn) as connection:
            pgvector = await check_pgvector(connection, allow_old=settings.allow_old_pgvector)
            missing = len(await pending(connection))
            server = connection.info.server_version
            doubts = [] if missing else await _doubts(connection)
    except StarsearchError as error:
        return Check("database", "error", str(error)), False
    kind = "" if settings.database_url else "embedded "
    schema, late = "schema up to date", bool(missing)
    if missing and missing == len(migrations()) and not settings.database_url:
        schema, late = "new: the first command that needs it sets it up", False
    elif missing:
        schema = f"{missing} migrations missing: run `starsearch migrate`"
    where = describe(dsn)
    message = f"{kind}PostgreSQL {server // 10000}.{server % 10000}, pgvector {pgvector}, {schema}, {where}"
    return Check("database", "warning" if late or doubts else "ok", "; ".join([message, *doubts])), not missing


async def _doubts(connection: "AsyncConnection") -> list[str]:
    """What the connection is good enough for some commands without."""
    found = []
    row = await (await connection.execute(MAY_WRITE)).fetchone()
    if row is None or not row[0]:
        found.append("this address may only read: crawl and digest need the writer's (docs/operations.md, Roles)")
    options = {option.keyword: option.val or b"" for option in connection.pgconn.info}  # what came from PGSSLMODE, too
    sslmode = options[b"sslmode"].decode()
    if sslmode != "verify-full" and not _local(connection.info.host):
        found.append(
            f"nobody verifies that this is your server (sslmode={sslmode}): add sslmode=verify-full to STARSEARCH_DATABASE_URL, and "
            "sslrootcert=FILE with its authority's certificate (docs/security.md)"
        )
    return found


def _local(host: str) -> bool:
    """A Unix socket, or this machine's own address."""
    try:
        return host.startswith("/") or host in {"", "localhost"} or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _engine(settings: Settings, name: str) -> tuple[Check, str | None]:
    """And the model that it serves."""
    try:
        if name == "summaries":
            async with open_llm(settings) as engine:
                tokens = f"{engine.context_tokens:,} tokens of context" if engine.context_tokens else "context unknown"
                return _serves(name, engine, tokens, lent=settings.lends_openai_key("llm")), engine.model
        async with open_embedding(settings) as engine:
            probe = await take_probe(engine, settings.embedding_dimensions)
            dimensions = f"{probe.shape[1]} dimensions"
            return _serves(name, engine, dimensions, lent=settings.lends_openai_key("embedding")), engine.model
    except StarsearchError as error:
        return Check(name, "error", str(error)), None


def _prices(settings: Settings, models: Sequence[str]) -> Check | None:
    """A budget in dollars needs the price of whatever is used."""
    try:
        prices = read_prices(settings.prices)
    except PreconditionMissing as error:
        return Check("prices", "error", str(error))
    unpriced = [] if settings.budget_usd is None else sorted({model for model in models if prices.of(model) is None})
    if not unpriced:
        return None
    return Check(
        "prices",
        "error",
        f"STARSEARCH_BUDGET_USD is set, and nobody knows the price of {', '.join(unpriced)}: work stops once it was used. Name a file with "
        "its price in STARSEARCH_PRICES (docs/operations.md, What it costs), or use STARSEARCH_BUDGET_TOKENS",
    )


async def _work(settings: Settings) -> Check | None:
    from starsearch.storage import open_store

    try:
        async with open_store(settings) as store:
            await store.brakes.check()
    except (Paused, BudgetSpent) as error:
        return Check("work", "warning", str(error))
    except StarsearchError as error:
        return Check("work", "error", str(error))
    return None


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
    """The engines of the version that serves: do they still make its digests? None where they do and the settings describe no other."""
    from starsearch.serving import open_version, settings_differ
    from starsearch.storage import open_store
    from starsearch.store.identity import check_models
    from starsearch.store.versions import active_version

    try:
        async with open_store(settings) as store:
            version = await active_version(store.pool)
            if version is None:
                return None
            async with open_version(settings, version) as engines:
                said = engines.llm.identity
                await check_models(store.pool, version, probe=engines.probe, summary_identity=said, same_llm=engines.same_llm)
                where = f"{engines.embedding.model} at {engines.embedding.base_url}, {engines.llm.model} at {engines.llm.base_url}"
    except StarsearchError as error:
        return Check("index", "error", f"the engines of the version that serves: {error}")
    if not settings_differ(settings, version):
        return None
    serves = f"{version.short} serves, {version.dimensions} dimensions, by {where}"
    return Check("index", "warning", f"{serves}; the settings describe another: `starsearch reprocess` builds it, or set them back")


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
    by_deployment = settings.dispatch == "deployment"
    if not settings.prefect_api_url:
        if by_deployment:
            return Check("Prefect", "error", "STARSEARCH_DISPATCH=deployment needs PREFECT_API_URL: the server that shards are started on")
        return Check("Prefect", "ok", "no PREFECT_API_URL: flows start a server of their own; commands need none")
    try:
        async with httpx2.AsyncClient(base_url=settings.prefect_api_url, timeout=10, auth=settings.prefect_auth) as http:
            await _shards(http, by_deployment=by_deployment)
    except StarsearchError as error:
        return Check("Prefect", "error" if by_deployment else "warning", f"{settings.prefect_api_url}: {error}")
    return Check("Prefect", "ok", settings.prefect_api_url + (f", {SHARDS} can be started" if by_deployment else ""))


async def _shards(http: httpx2.AsyncClient, *, by_deployment: bool) -> None:
    """Raises StarsearchError where the server does not answer us, or has nobody to run a shard."""
    if not by_deployment:
        await _told(http, "admin/version")  # unlike health, asked of nobody without the password
        return
    deployment = await _told(http, f"deployments/name/{SHARDS}")
    if deployment is None:
        raise StarsearchError(f"the deployment {SHARDS} is missing: `make deploy`, or `prefect deploy --all`")
    name = deployment.get("work_pool_name")
    pool = await _told(http, f"work_pools/{name}") if name else None
    if pool is None:
        raise StarsearchError(f"the work pool of {SHARDS} is gone: `make deploy` (docs/operations.md)")
    if pool.get("is_paused"):
        raise StarsearchError(f"the work pool {name} is paused: `prefect work-pool resume {name}`")
    if pool.get("status") == "NOT_READY":
        raise StarsearchError(f"no worker polls the work pool {name}: start one, `prefect worker start --pool {name}`")


async def _told(http: httpx2.AsyncClient, path: str) -> dict[str, Any] | None:
    """None: there is no such thing. Raises StarsearchError."""
    try:
        answer = await http.get(path)
        if answer.status_code in {401, 403}:
            raise StarsearchError("it refuses the password: correct PREFECT_API_AUTH_STRING (user:password, as the server's own has it)")
        if answer.status_code == 404:
            return None
        answer.raise_for_status()
        said = answer.json()
    except (httpx2.HTTPError, ValueError) as error:
        raise StarsearchError(f"no Prefect server answers there ({error}): start it, or correct or unset PREFECT_API_URL") from error
    return said if isinstance(said, dict) else {}
