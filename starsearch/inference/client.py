"""One OpenAI-compatible engine behind the real OpenAI client: OpenAI, vLLM, Ollama, llama.cpp, or the embedded one.

The base URL is the interface. Every HTTP request is counted where it is sent, so retries inside the SDK are not missed, and
the SDK's errors are translated here, once, into ours.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed

RETRIES = 2  # by the SDK: connection errors, 408, 409, 429 and 5xx, half a second to eight, Retry-After obeyed
CONNECT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 60.0
# the SDK would send OPENAI_ORG_ID and OPENAI_PROJECT_ID to any host, just because they are set
NOT_FROM_THE_ENVIRONMENT: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}


@dataclass
class Requests:
    """HTTP requests sent inside one `counting()` block."""

    count: int = 0


_requests: ContextVar[Requests | None] = ContextVar("requests", default=None)


@contextmanager
def counting() -> Iterator[Requests]:
    requests = Requests()
    token = _requests.set(requests)
    try:
        yield requests
    finally:
        _requests.reset(token)


async def _count(_: httpx2.Request) -> None:
    requests = _requests.get()
    if requests:
        requests.count += 1


@dataclass(frozen=True)
class Engine:
    """A client and the model it is used for. `context_tokens` is None where the engine does not say."""

    client: openai.AsyncOpenAI
    base_url: str
    model: str
    context_tokens: int | None = None


@asynccontextmanager
async def open_client(
    base_url: str,
    *,
    key: str | None = None,
    timeout_seconds: float = 120,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> AsyncIterator[openai.AsyncOpenAI]:
    """The OpenAI client for a base URL. `transport` replaces the network, for the embedded engine and for tests."""
    limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=KEEP_ALIVE_SECONDS)
    timeout = httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
    async with httpx2.AsyncClient(
        transport=transport, limits=limits, timeout=timeout, event_hooks={"request": [_count]}, follow_redirects=False
    ) as http:
        # a key is always given, because without one the SDK would send OPENAI_API_KEY to any host
        client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key or "none",
            http_client=http,
            max_retries=RETRIES,
            timeout=timeout,
            default_headers=NOT_FROM_THE_ENVIRONMENT,
        )
        yield client


async def preflight(client: openai.AsyncOpenAI, wanted: str | None, *, purpose: str) -> Engine:
    """Check that the engine serves the model; without one named, take the only one it serves.

    Raises EngineUnavailable or ModelNotServed, saying which setting to change. `purpose` is LLM or EMBEDDING.
    """
    base_url = str(client.base_url).rstrip("/")
    try:
        models = {model.id: model async for model in await client.models.list()}
    except openai.APIConnectionError as error:
        raise EngineUnavailable(
            f"no engine answers at {base_url}: start it, or correct STARSEARCH_{purpose}_BASE_URL (unset: the embedded engine)"
        ) from error
    except openai.APIStatusError as error:
        raise EngineUnavailable(
            f"{base_url}/models answered {error.status_code}: check STARSEARCH_{purpose}_BASE_URL (it usually ends in /v1) "
            f"and STARSEARCH_{purpose}_API_KEY"
        ) from error
    except (openai.APIError, ValueError, AttributeError, TypeError) as error:
        raise EngineUnavailable(
            f"{base_url}/models did not answer with a list of models: STARSEARCH_{purpose}_BASE_URL usually ends in /v1"
        ) from error
    name = wanted or (next(iter(models)) if len(models) == 1 else None)
    if name is None or name not in models:
        raise ModelNotServed(
            f"{base_url} serves {', '.join(models) or 'no model'}; "
            f"set STARSEARCH_{purpose}_MODEL to one of these" + (f" (it is {wanted})" if wanted else "")
        )
    context = getattr(models[name], "max_model_len", None)
    return Engine(client, base_url, name, context if isinstance(context, int) else None)


def translate(error: openai.OpenAIError) -> DigestFailed | EngineUnavailable:
    """The SDK's error in our words, after its retries: no answer is the engine's fault, anything else is the item's."""
    match error:
        case openai.APITimeoutError():
            return DigestFailed("timeout", "the engine did not answer in time", engine=True)
        case openai.APIConnectionError():
            return EngineUnavailable(f"the engine does not answer any more ({error}): start it again, then run the command again")
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return EngineUnavailable("the engine refuses the key: correct STARSEARCH_LLM_API_KEY or STARSEARCH_EMBEDDING_API_KEY")
        case openai.APIStatusError():
            return DigestFailed(f"HTTP {error.status_code}", str(error.message)[:300], engine=True)
        case _:
            return DigestFailed("unreadable answer", str(error)[:300], engine=True)
