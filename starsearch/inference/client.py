"""One OpenAI-compatible engine behind the real OpenAI client: OpenAI, vLLM, Ollama, llama.cpp, or the embedded one.

The base URL is the interface. Below the client stands `endpoints`, which chooses among addresses and owns every retry. Every HTTP
request is counted where it is sent, what an answer cost is added up as it comes, whatever becomes of it, and the SDK's errors are
translated here, once, into ours.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2
import openai
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from starsearch.certificates import distrust
from starsearch.errors import Braked, ContextTooSmall, DigestFailed, EngineUnavailable, ModelNotServed
from starsearch.inference import dialects
from starsearch.inference.balancer import Address, Balancer
from starsearch.inference.dialects import UNKNOWN, Dialect, Entry
from starsearch.inference.endpoints import BUSY, DNS, Endpoints, Resolve, out_of_credit, resolve
from starsearch.inference.learned import Learned
from starsearch.inference.network import Network
from starsearch.inference.prompts import MIN_CONTEXT_TOKENS
from starsearch.models import Spending

CONNECT_SECONDS = 5.0
TIMEOUT_SECONDS = 120.0
PATIENCE_SECONDS = 120.0
PREFLIGHT_TRIES, PREFLIGHT_PAUSE_SECONDS = 3, 0.5
KEEP_ALIVE_SECONDS = 60.0
MAX_TOKENS = 100_000_000  # of one answer; more is nonsense
# the SDK would send OPENAI_ORG_ID and OPENAI_PROJECT_ID to any host, just because they are set
NOT_FROM_THE_ENVIRONMENT: dict[str, Any] = {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}


Check = Callable[[], Awaitable[None]]
_spending: ContextVar[Spending | None] = ContextVar("spending", default=None)
_check: ContextVar[Check | None] = ContextVar("check", default=None)


@contextmanager
def counting(check: Check | None = None) -> Iterator[Spending]:
    """What is spent inside this block, however it ends. `check` is asked before each request, and may raise to stop before it."""
    spending, started = Spending(), time.monotonic()
    token, check_token = _spending.set(spending), _check.set(check)
    try:
        yield spending
    finally:
        _spending.reset(token)
        _check.reset(check_token)
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


async def _before() -> None:
    check = _check.get()
    if check:
        await check()


def _sent() -> None:
    spending = _spending.get()
    if spending:
        spending.requests += 1
        spending.unanswered += 1


def unanswered() -> int:
    """How many requests of this `counting` an engine got and has not answered, so far."""
    spending = _spending.get()
    return spending.unanswered if spending else 0


def _answered() -> None:
    spending = _spending.get()
    if spending:
        spending.unanswered -= 1


class Client(openai.AsyncOpenAI):
    """The OpenAI client, and the addresses that its requests go to."""

    endpoints: Endpoints


@dataclass(frozen=True)
class Engine:
    """A client and the model it is used for. `context_tokens` is None where the engine does not say.

    `identity` is what the engine says about the weights behind the model's name.
    """

    client: openai.AsyncOpenAI
    base_url: str
    model: str
    context_tokens: int | None = None
    dialect: Dialect = UNKNOWN
    identity: dict[str, Any] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()  # that answer
    silent: tuple[str, ...] = ()  # that do not

    def sampling(self, max_tokens: int) -> dict[str, Any]:
        return self.dialect.sampling(self.model, max_tokens)

    @cached_property
    def learned(self) -> Learned:
        return Learned.of(self.model)


@asynccontextmanager
async def open_client(
    base_url: str,
    *,
    key: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
    transport: httpx2.AsyncBaseTransport | None = None,
    balancer: Balancer | None = None,
    resolve: Resolve = resolve,
) -> AsyncIterator[Client]:
    """The OpenAI client for one base URL or several (see endpoints). A request is tried again for `patience_seconds`.

    `transport` replaces the network, for the embedded engine and for tests; `balancer` and `resolve` likewise.
    """
    timeout = httpx2.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
    endpoints = Endpoints(
        base_url,
        transport or _network(base_url),
        patience_seconds=patience_seconds,
        balancer=balancer,
        resolve=resolve,
        before=_before,
        sent=_sent,
        answered=_answered,
    )
    async with httpx2.AsyncClient(transport=endpoints, timeout=timeout, follow_redirects=False) as http:
        # a key is always given, because without one the SDK would send OPENAI_API_KEY to any host
        client = Client(
            base_url=endpoints.base_url,
            api_key=key or "none",
            http_client=http,
            max_retries=0,
            timeout=timeout,
            default_headers=NOT_FROM_THE_ENVIRONMENT,
        )
        client.endpoints = endpoints
        yield client


def _network(base_url: str) -> Network:
    """Connections, by the proxy that the environment names (HTTPS_PROXY, NO_PROXY), trusting whom the operating system trusts."""
    first = httpx2.URL(base_url.split(",", maxsplit=1)[0].strip().removeprefix(DNS))
    proxies = {} if proxy_bypass(first.netloc.decode("ascii")) else getproxies()
    proxy = proxies.get(first.scheme) or proxies.get("all")
    return Network(keep_alive_seconds=KEEP_ALIVE_SECONDS, context=httpx2.create_ssl_context(), proxy=proxy)


async def preflight(client: Client, wanted: str | None, *, purpose: str) -> Engine:
    """Check that every address that answers serves the model; without one named, take the only one served.

    Raises EngineUnavailable or ModelNotServed, saying which setting to change. `purpose` is LLM or EMBEDDING.
    """
    base_url = ",".join(map(str, client.endpoints.base_urls))
    try:
        addresses = await client.endpoints.addresses()
    except httpx2.TransportError as error:
        raise EngineUnavailable(f"{error}: correct STARSEARCH_{purpose}_BASE_URL") from error
    found = await asyncio.gather(*(_models(client, address, purpose) for address in addresses))
    serving = [(address, models) for address, models in zip(addresses, found, strict=True) if isinstance(models, dict)]
    if not serving:
        raise next(error for error in found if isinstance(error, EngineUnavailable))
    names = [_choose(address.base_url, models, wanted, purpose) for address, models in serving]
    (address, models), name = serving[0], names[0]
    dialect = dialects.recognize(address.base_url, models[name])
    identities = [dialect.identify(entries[each]) for (_, entries), each in zip(serving, names, strict=True)]
    if len(set(names)) > 1 or (dialect.one_identity and any(identity != identities[0] for identity in identities)):
        raise ModelNotServed(f"the addresses of {base_url} serve different models: {names}, {identities}; let all of them serve one")
    contexts = [await _context(client, each, entries[name], dialect) for each, entries in serving]
    return Engine(
        client,
        base_url,
        name,
        min((tokens for tokens in contexts if tokens), default=dialect.default_context),
        dialect,
        identities[0],
        tuple(each.base_url for each, _ in serving),
        tuple(address.base_url for address, models in zip(addresses, found, strict=True) if not isinstance(models, dict)),
    )


async def complete(engine: Engine, messages: Sequence[Mapping[str, str]], **options: Any) -> ChatCompletion:
    """One chat request. Raises openai.OpenAIError; AttributeError, TypeError, ValueError or RecursionError where a 200 holds no answer.

    As client.chat.completions.create, for two thirds of its CPU: that copies every message and builds its answer field by field.
    """
    body = {"model": engine.model, "messages": messages, **options}
    answer = await engine.client.post("/chat/completions", cast_to=httpx2.Response, body=body)
    try:
        return ChatCompletion.model_validate_json(answer.content)
    except ValidationError:  # an engine that leaves something out: read as leniently as the SDK would
        lenient = ChatCompletion.construct(**json.loads(answer.content))
        if not isinstance(lenient.choices, list):
            raise TypeError("choices is no list") from None
        return lenient


async def written(engine: Engine, messages: Sequence[Mapping[str, str]], **options: Any) -> AsyncIterator[str]:
    """One chat request, its text as the engine writes it; what it cost is charged at the end.

    Raises as `complete` does, also in the middle, and DigestFailed where nothing was written.
    """
    body: Any = {"model": engine.model, "messages": messages, "stream_options": {"include_usage": True}, **options}
    stream = await engine.client.chat.completions.create(stream=True, **body)
    usage, wrote = None, False
    try:
        async with stream:
            async for chunk in stream:
                usage = chunk.usage or usage  # some tell it once at the end, some the sum so far with every piece
                for choice in chunk.choices or ():
                    if choice.delta.content:
                        wrote = True
                        yield choice.delta.content
    finally:
        charge(usage)
    if not wrote:
        raise DigestFailed("unreadable answer", "the engine wrote nothing, or does not stream")


def check_context(engine: Engine) -> None:
    """Raises ContextTooSmall where no item worth summarizing fits."""
    if engine.context_tokens is not None and engine.context_tokens < MIN_CONTEXT_TOKENS:
        raise ContextTooSmall(
            f"{engine.model} at {engine.base_url} takes {engine.context_tokens:,} tokens of context, a summary needs at least "
            f"{MIN_CONTEXT_TOKENS:,}: raise {engine.dialect.context_setting} (8192 is plenty) and start the engine again"
        )


def translate(error: openai.OpenAIError) -> DigestFailed | EngineUnavailable | Braked:
    """The SDK's error in our words, after the retries: no answer is the engine's fault, anything else is the item's.

    What stopped a request before it was sent comes as it is.
    """
    if isinstance(error.__cause__, Braked):
        return type(error.__cause__)(*error.__cause__.args)
    match error:
        case openai.APITimeoutError():
            return DigestFailed("timeout", "the engine did not answer in time", engine=True)
        case openai.APIConnectionError():
            message = f"the engine does not answer any more ({error}): start it again, then run the command again"
            return EngineUnavailable(message, reached=not isinstance(error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout))
        case openai.APIStatusError():
            return _refused(error)
        case _:
            return DigestFailed("unreadable answer", str(error)[:300], engine=True)


def _refused(error: openai.APIStatusError) -> DigestFailed | EngineUnavailable:
    """What would be refused for every item stops the run and costs none of them an attempt."""
    status = error.status_code
    if status in {401, 403}:
        return EngineUnavailable("the engine refuses the key: correct STARSEARCH_LLM_API_KEY or STARSEARCH_EMBEDDING_API_KEY")
    if status == 404:
        return ModelNotServed(f"the engine does not serve this model any more, or not for this: {error.message[:200]}")
    if out_of_credit(error.response):
        return EngineUnavailable("the engine's account is out of credit: top it up, then run the command again")
    if status in BUSY:
        return EngineUnavailable(f"the engine is overloaded (HTTP {status}, again and again): run the command again later")
    return DigestFailed(f"HTTP {status}", str(error.message)[:300], permanent=status in {400, 413, 422}, engine=True)


async def _models(client: Client, address: Address, purpose: str) -> dict[str, Entry] | EngineUnavailable:
    """What one address serves, by name; or why that is unknown."""
    base_url = address.base_url
    for attempt in range(1, PREFLIGHT_TRIES + 1):
        try:
            answer = await client.endpoints.ask(address, "models", client.auth_headers)
            if answer.status_code == 200:
                return {str(entry["id"]): entry for entry in answer.json()["data"]}
            if answer.status_code in {401, 403}:
                return EngineUnavailable(
                    f"the engine at {base_url} refuses the key (HTTP {answer.status_code}): set STARSEARCH_{purpose}_API_KEY to its own"
                )
            unavailable = EngineUnavailable(
                f"{base_url}/models answered {answer.status_code}: check STARSEARCH_{purpose}_BASE_URL (it usually ends in /v1)"
            )
            if answer.status_code < 500:
                return unavailable
        except httpx2.TransportError as error:
            if reason := distrust(error):
                return EngineUnavailable(f"the engine at {base_url} is not asked: {reason}")
            unavailable = EngineUnavailable(
                f"no engine answers at {base_url}: start it, or correct STARSEARCH_{purpose}_BASE_URL (unset: the embedded engine)"
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            return EngineUnavailable(
                f"{base_url}/models did not answer with a list of models: STARSEARCH_{purpose}_BASE_URL usually ends in /v1"
            )
        if attempt < PREFLIGHT_TRIES:
            await asyncio.sleep(PREFLIGHT_PAUSE_SECONDS * attempt)
    return unavailable


def _choose(base_url: str, models: dict[str, Entry], wanted: str | None, purpose: str) -> str:
    name = wanted or (next(iter(models)) if len(models) == 1 else None)
    if name is None or name not in models:
        raise ModelNotServed(
            f"{base_url} serves {', '.join(models) or 'no model'}; "
            f"set STARSEARCH_{purpose}_MODEL to one of these" + (f" (it is {wanted})" if wanted else "")
        )
    return name


async def _context(client: Client, address: Address, entry: Entry, dialect: Dialect) -> int | None:
    """How many tokens fit, where the engine says so: on a page of its own, or beside the model's name."""
    found = None
    if dialect.context_page:
        try:
            answer = await client.endpoints.ask(address, dialect.context_page.format(model=entry["id"]), client.auth_headers)
            found = dialects.field(answer.json(), dialect.context_page_field) if answer.status_code == 200 else None
        except (httpx2.TransportError, httpx2.InvalidURL, ValueError, RecursionError):  # a name may be no part of an address
            found = None
    if not isinstance(found, int):
        found = dialects.field(entry, dialect.context_field) if dialect.context_field else None
    return found if isinstance(found, int) and found > 0 else None
