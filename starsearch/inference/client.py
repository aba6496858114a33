"""One OpenAI-compatible engine behind the real OpenAI client: OpenAI, vLLM, Ollama, llama.cpp, or the embedded one.

The base URL is the interface. Every HTTP request is counted where it is sent, so retries inside the SDK are not missed, what an
answer cost is added up as it comes, whatever becomes of it, and the SDK's errors are translated here, once, into ours.
"""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import httpx2
import openai

from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed
from starsearch.models import Spending

RETRIES = 2  # by the SDK: connection errors, 408, 409, 429 and 5xx, half a second to eight, Retry-After obeyed
CONNECT_SECONDS = 5.0
KEEP_ALIVE_SECONDS = 60.0
MAX_TOKENS = 100_000_000  # of one answer; more is nonsense
# the SDK would send OPENAI_ORG_ID and OPENAI_PROJECT_ID to any host, just because they are set
NOT_FROM_THE_ENVIRONMENT: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}


_spending: ContextVar[Spending | None] = ContextVar("spending", default=None)


@contextmanager
def counting() -> Iterator[Spending]:
    """What is spent inside this block, however it ends."""
    spending, started = Spending(), time.monotonic()
    token = _spending.set(spending)
    try:
        yield spending
    finally:
        _spending.reset(token)
        spending.seconds = time.monotonic() - started


def charge(usage: Any) -> tuple[int, int]:
    """Add what an answer says that it cost; returns its prompt and completion tokens. Nothing said, or nonsense, counts as nothing."""
    prompt, completion = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    spending = _spending.get()
    if spending:
        spending.prompt_tokens += prompt
        spending.cached_tokens += min(_tokens(getattr(usage, "prompt_tokens_details", None), "cached_tokens"), prompt)
        spending.completion_tokens += completion
    return prompt, completion


def _tokens(usage: Any, name: str) -> int:
    tokens = getattr(usage, name, None)
    return tokens if isinstance(tokens, int) and 0 <= tokens <= MAX_TOKENS else 0


async def _sent(_: httpx2.Request) -> None:
    spending = _spending.get()
    if spending:
        spending.requests += 1
        spending.unanswered += 1


async def _answered(_: httpx2.Response) -> None:
    spending = _spending.get()
    if spending:
        spending.unanswered -= 1


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
    hooks: dict[str, list[Any]] = {"request": [_sent], "response": [_answered]}
    async with httpx2.AsyncClient(transport=transport, limits=limits, timeout=timeout, event_hooks=hooks, follow_redirects=False) as http:
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
