"""The configured engines, or the embedded one, opened, checked and closed.

Reads nothing from the environment itself; tasks/ and the command pass a Settings value.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from starsearch.cost import Prices, read_prices
from starsearch.inference.client import Client, Engine, check_context, open_client, preflight
from starsearch.inference.dialects import EMBEDDED
from starsearch.inference.embed import Vectors, take_probe
from starsearch.inference.prompts import PROMPT_VERSION, TEXT_RECIPE
from starsearch.models import IndexVersion
from starsearch.settings import Settings


@dataclass(frozen=True)
class Engines:
    """The chat engine, the embedding engine, the index version that they make together, and what they cost."""

    llm: Engine
    embedding: Engine
    version: IndexVersion
    dimensions: int | None  # sent with each embedding request; None: not sent
    prices: Prices = field(default_factory=read_prices)
    probe: Vectors | None = None  # what the embedding model makes of a few fixed texts; None: its weights are known
    same_llm: bool = False


@asynccontextmanager
async def open_engines(settings: Settings) -> AsyncIterator[Engines]:
    """Both engines, checked: they answer and serve the models. Raises a PreconditionMissing that says what to do."""
    async with open_llm(settings) as llm, open_embedding(settings) as embedding:
        probe = await probe_remote(embedding, settings.embedding_dimensions)
        version = IndexVersion(
            embedding_model=embedding.model,
            embedding_revision=revision(settings),
            dimensions=_embedded_dimensions() if probe is None else probe.shape[1],
            text_recipe=TEXT_RECIPE,
            summary_model=llm.model,
            prompt_version=PROMPT_VERSION,
            embedding_base_url=settings.embedding_base_url,
            summary_base_url=settings.llm_base_url,
            sends_dimensions=settings.embedding_dimensions is not None,
        )
        prices = read_prices(settings.prices)
        yield Engines(llm, embedding, version, settings.embedding_dimensions, prices, probe, settings.same_llm)


@asynccontextmanager
async def open_llm(settings: Settings) -> AsyncIterator[Engine]:
    if settings.llm_base_url:
        async with _remote(settings, settings.llm_base_url, settings.llm_key) as client:
            engine = await preflight(client, settings.llm_model, purpose="LLM")
            check_context(engine)
            yield engine
        return
    from starsearch.extractive import MODEL

    async with _embedded(settings, settings.llm_model or MODEL, "LLM") as engine:
        yield engine


@asynccontextmanager
async def open_embedding(settings: Settings) -> AsyncIterator[Engine]:
    if settings.embedding_base_url:
        async with _remote(settings, settings.embedding_base_url, settings.embedding_key) as client:
            yield await preflight(client, settings.embedding_model, purpose="EMBEDDING")
        return
    from starsearch.embedded.minilm import MODEL

    async with _embedded(settings, settings.embedding_model or MODEL, "EMBEDDING") as engine:
        yield engine


def _remote(settings: Settings, base_url: str, key: str | None) -> AbstractAsyncContextManager[Client]:
    return open_client(
        base_url, key=key, timeout_seconds=settings.engine_timeout_seconds, patience_seconds=settings.engine_patience_seconds
    )


@asynccontextmanager
async def _embedded(settings: Settings, model: str, purpose: str) -> AsyncIterator[Engine]:
    """The embedded engine, in this process: the same client and the same path as a remote one, without a port."""
    import httpx2

    from starsearch.embedded.engine import BASE_URL, EmbeddedEngine

    engine = EmbeddedEngine(settings.home / "cache")
    async with open_client(BASE_URL, transport=httpx2.ASGITransport(app=engine.app)) as client:
        yield await preflight(client, model, purpose=purpose)


async def probe_remote(embedding: Engine, dimensions: int | None) -> Vectors | None:
    """What a remote model makes of a few texts; None for the embedded one, whose weights are checked by their hash."""
    if embedding.dialect is EMBEDDED and dimensions in {None, _embedded_dimensions()}:
        return None
    return await take_probe(embedding, dimensions)


def _embedded_dimensions() -> int:
    from starsearch.embedded.minilm import DIMENSIONS

    return DIMENSIONS


def revision(settings: Settings) -> str:
    """The weights' hash where we know it; a remote engine does not tell its own."""
    if settings.embedding_base_url:
        return ""
    from starsearch.embedded.minilm import REVISION

    return REVISION
