"""The one reader of the environment: STARSEARCH_* and a `.env` in the project's root.

Read in tasks/ and the command only; everything below them gets values. An explicit setting wins; what others put into
the environment is used where ours is not set: GH_TOKEN and GITHUB_TOKEN for api.github.com only, OPENAI_API_KEY for an engine that a base
URL names, whichever that is (`lends_openai_key` tells `doctor` where it is not OpenAI's).
"""

import contextlib
import os
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from starsearch.errors import PreconditionMissing
from starsearch.models import COMMENTS_IN_DIGEST

PREFIX = "STARSEARCH_"
ROOT = Path(__file__).resolve().parents[1]
GITHUB_HOST = "api.github.com"
OPENAI_HOST = "api.openai.com"
SECRETS = (
    "LLM_API_KEY", "EMBEDDING_API_KEY", "ENGINE_API_KEYS", "SERVED_ENGINE_KEY", "DATABASE_URL", "GITHUB_TOKENS", "GITHUB_APP_PRIVATE_KEY",
)  # fmt: skip


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=ROOT / ".env", env_ignore_empty=True, extra="ignore", frozen=True)

    home: Path = Field(user_data_path("starsearch"), description="Folder for the embedded database and caches.")
    database_url: SecretStr | None = Field(None, description="Any PostgreSQL with pgvector >= 0.8.4; default: embedded.")
    allow_old_pgvector: bool = Field(False, description="Skip the pgvector version check. Older ones corrupt indexes.")
    llm_base_url: str | None = Field(
        None, description='OpenAI-compatible base URL (".../v1"), several with commas, or dns+http://; default: embedded engine.'
    )
    llm_model: str | None = Field(None, description="Chat model; default: the only one the engine serves.")
    same_llm: bool = Field(False, description="The chat model is the same although the engine describes it otherwise now.")
    llm_api_key: SecretStr | None = Field(None, description="Key for llm_base_url.")
    embedding_base_url: str | None = Field(None, description="The same for embeddings; default: embedded engine.")
    embedding_model: str | None = Field(None, description="Embedding model; default: the only one the engine serves.")
    embedding_api_key: SecretStr | None = Field(None, description="Key for embedding_base_url.")
    embedding_dimensions: int | None = Field(
        None,
        ge=1,
        le=4000,
        description="Vector length; sent to the engine only when set. 4000 is halfvec's HNSW limit.",
    )
    engine_api_keys: SecretStr | None = Field(
        None, description="host=key, comma-separated: for engines of index versions that the settings above do not name any more."
    )
    served_engine_key: SecretStr | None = Field(None, description="What `starsearch engine` asks everybody for; default: nothing.")
    engine_timeout_seconds: float = Field(120, gt=0, description="For one request to an engine.")
    engine_patience_seconds: float = Field(120, ge=0, description="How long a request is tried again while engines are overloaded or gone.")
    concurrency: int = Field(32, ge=1, le=64, description="Summary requests in flight; above 64 the client slows down.")
    budget_tokens: int | None = Field(None, ge=0, description="Of both engines a day (UTC); reached, nothing new is begun.")
    budget_usd: float | None = Field(None, ge=0, description="The same in dollars, by the price table.")
    budget_requests: int | None = Field(None, ge=0, description="The same in requests to the chat engine, failures and retries included.")
    run_budget_tokens: int | None = Field(None, ge=0, description="Of one run, its shards included; the next run has its own.")
    run_budget_usd: float | None = Field(None, ge=0, description="The same in dollars.")
    run_budget_requests: int | None = Field(None, ge=0, description="The same in requests to the chat engine.")
    most_due: int = Field(
        200_000, ge=1, description="Items waiting for engines, above which nothing is fetched: live ones hold a crawl, all hold a backfill."
    )
    prices: Path | None = Field(None, description="Your own prices (TOML), over those of starsearch/prices.toml.")
    workers: int = Field(2, ge=1, le=16, description="Batches of 64 items digested at the same time in one process.")
    dispatch: Literal["local", "deployment"] = Field(
        "local", description="Flows digest in their own process (local), or start digest/shard for each shard (deployment)."
    )
    shard_size: int = Field(500, ge=1, le=10_000, description="Items that one shard leases at most.")
    max_shards: int = Field(24, ge=1, le=1_000, description="Shards at work at the same time, whoever started them.")
    kubernetes_namespace: str | None = Field(None, description="Where shards are Jobs: `reap` deletes those that nobody waits for.")
    github_graphql_url: str = Field(f"https://{GITHUB_HOST}/graphql", description="GitHub, an Enterprise Server, or a stand-in.")
    github_rest_url: str = Field(f"https://{GITHUB_HOST}", description="The same one's REST API.")
    github_host: str = Field("github.com", description="Whose repositories these are: the host in their addresses.")
    github_tokens: SecretStr | None = Field(None, description="Comma-separated; default: GH_TOKEN or GITHUB_TOKEN.")
    github_app_id: str | None = Field(None, description="A GitHub App as one more credential; needs its key and installation.")
    github_app_private_key: SecretStr | None = Field(None, description="PEM.")
    github_app_installation_id: str | None = Field(None, description="Several: comma-separated.")
    github_in_flight: int = Field(2, ge=1, le=50, description="Requests per credential at the same time; 100 in all is GitHub's limit.")
    github_batch: int = Field(50, ge=1, le=100, description="Ids of one request; 50 and 100 cost the same points.")
    since: datetime | None = Field(None, description="How far back a first crawl reaches; default: one day.")
    comments: int = Field(5, ge=0, le=COMMENTS_IN_DIGEST, description="How many of the newest comments are fetched and digested.")
    top: int = Field(40_000, ge=1, le=1_000_000, description="How many repositories `rank` follows.")
    repositories: Annotated[tuple[str, ...], NoDecode] = Field((), description="What a crawl follows when none is named; comma-separated.")

    log: Literal["text", "json"] = Field("text", description="Logs: lines for people, or one JSON object a line.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] | None = Field(
        None, description="Of our own loggers; default: INFO, but WARNING where a command writes text. DEBUG has a line for each item."
    )
    requests_per_minute: int = Field(600, ge=1, description="Of one key, or one address, to `starsearch serve`; a key may have its own.")

    prefect_api_url: str | None = Field(
        None,
        validation_alias="PREFECT_API_URL",
        description="Prefect's own setting; unset: flows start a server themselves.",
    )
    prefect_api_auth_string: SecretStr | None = Field(
        None,
        validation_alias="PREFECT_API_AUTH_STRING",
        description="Prefect's own setting, user:password; here `doctor` alone asks with it.",
    )

    @field_validator("home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().resolve()  # the database's supervisor runs in another folder

    @field_validator("repositories", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("github_graphql_url", "github_rest_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not _is_address(value, "http", "https"):
            raise ValueError("must be an http:// or https:// address")
        return value.rstrip("/")

    @field_validator("llm_base_url", "embedding_base_url")
    @classmethod
    def _engines(cls, value: str | None) -> str | None:
        if value is None:
            return None
        addresses = [address.strip().rstrip("/") for address in value.split(",") if address.strip()]
        if not addresses or not all(_is_address(address, "http", "https", "dns+http", "dns+https") for address in addresses):
            raise ValueError("must be an http:// or https:// address, several with commas, or dns+http://name:port/v1")
        return ",".join(addresses)

    @field_validator("since")
    @classmethod
    def _utc(cls, value: datetime | None) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @model_validator(mode="before")
    @classmethod
    def _secrets_from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name in SECRETS:
            path = os.environ.get(f"{PREFIX}{name}_FILE")
            if path and values.get(name.lower()) is None:
                values[name.lower()] = Path(path).read_text().strip()
        return values

    @cached_property
    def llm_key(self) -> str | None:
        return self._engine_key(self.llm_api_key, self.llm_base_url)

    @cached_property
    def embedding_key(self) -> str | None:
        return self._engine_key(self.embedding_api_key, self.embedding_base_url)

    @cached_property
    def prefect_auth(self) -> tuple[str, str] | None:
        """User and password."""
        if self.prefect_api_auth_string is None:
            return None
        user, _, password = self.prefect_api_auth_string.get_secret_value().partition(":")
        return user, password

    @cached_property
    def github_token(self) -> str | None:
        """For the REST API: the first token."""
        return next(iter(self._tokens(self.github_rest_url)), None)

    @cached_property
    def graphql_tokens(self) -> tuple[str, ...]:
        return self._tokens(self.github_graphql_url)

    def _tokens(self, url: str) -> tuple[str, ...]:
        """Those set for us; one from the plain environment goes to api.github.com only."""
        if self.github_tokens:
            return tuple(self.github_tokens.get_secret_value().replace(",", " ").split())
        if urlsplit(url).hostname != GITHUB_HOST:
            return ()
        token = os.environ.get("GH_TOKEN") or os.environ.get("GITHUB_TOKEN")
        return tuple((token or "").split())

    def with_engine(self, purpose: str, base_url: str | None, model: str) -> "Settings":
        """These settings with another engine for `purpose` (llm, embedding). A key goes only to hosts that it was set for."""
        copy = self.model_copy(update={f"{purpose}_base_url": base_url, f"{purpose}_model": model})
        vars(copy)[f"{purpose}_key"] = self._key_for(base_url, getattr(self, f"{purpose}_base_url"), getattr(self, f"{purpose}_key"))
        return copy

    def _key_for(self, base_url: str | None, configured_url: str | None, configured_key: str | None) -> str | None:
        hosts = _hosts(base_url)
        if hosts <= _hosts(configured_url):
            return configured_key
        pairs = self.engine_api_keys.get_secret_value().split(",") if self.engine_api_keys else []
        keys = {host.strip(): key.strip() for host, _, key in (pair.partition("=") for pair in pairs)}
        return keys.get(hosts.pop()) if len(hosts) == 1 else None

    def lends_openai_key(self, purpose: Literal["llm", "embedding"]) -> bool:
        """OPENAI_API_KEY goes to a host that is not OpenAI's, because the base URL names that and has no key of its own."""
        base_url, own_key = getattr(self, f"{purpose}_base_url"), getattr(self, f"{purpose}_api_key")
        hosts = {urlsplit(f"//{host}").hostname for host in _hosts(base_url)}
        return bool(os.environ.get("OPENAI_API_KEY") and not own_key and hosts - {OPENAI_HOST})

    @staticmethod
    def _engine_key(key: SecretStr | None, base_url: str | None) -> str | None:
        if key:
            return key.get_secret_value()
        return os.environ.get("OPENAI_API_KEY") if base_url else None


def leave_no_core_dump() -> None:
    """A core dump is all that a process knew, secrets included. The soft limit alone: who debugs may raise it again."""
    with contextlib.suppress(ImportError):  # Unix only
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def _hosts(base_url: str | None) -> set[str]:
    """host:port of each address in a base URL."""
    return {urlsplit(address.strip()).netloc for address in (base_url or "").split(",") if address.strip()}


def _is_address(value: str, *schemes: str) -> bool:
    parts = urlsplit(value)
    return parts.scheme in schemes and bool(parts.netloc)


def read_settings() -> Settings:
    """The settings of this process, which leaves no core dump from now on; raises PreconditionMissing naming the variable that is wrong."""
    leave_no_core_dump()
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{PREFIX}{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors(include_input=False)]
        raise PreconditionMissing("settings: " + "; ".join(lines)) from None
    except OSError as error:
        raise PreconditionMissing(f"settings: cannot read {error.filename}: {error.strerror}") from error
