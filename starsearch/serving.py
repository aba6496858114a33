"""The engines of index versions: each keeps its own models and addresses, whatever the settings describe by now.

The settings say what `reprocess` builds and what a new database starts with. They say where an existing version's engine is only where
they describe its model: it may have moved.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace

from starsearch.cost import read_prices
from starsearch.engines import Engines, open_embedding, open_engines, open_llm, probe_remote, revision
from starsearch.errors import EngineUnavailable, ModelNotServed, PreconditionMissing, VersionMismatch
from starsearch.inference.client import Engine
from starsearch.inference.prompts import PROMPT_VERSION, TEXT_RECIPE
from starsearch.models import IndexVersion
from starsearch.settings import Settings
from starsearch.storage import Store
from starsearch.store.versions import active_version, ensure_version, live_versions, move_engines

log = logging.getLogger(__name__)


@asynccontextmanager
async def open_live(settings: Settings, store: Store) -> AsyncIterator[list[Engines]]:
    """The engines of every version that is kept up to date, the active one's first; in a new database, of one made from the settings.

    A shadow whose engines do not answer is left out, with a warning: it catches up later.
    """
    async with AsyncExitStack() as stack:
        active = await active_version(store.pool)
        if active is None:
            async with open_engines(settings) as new:
                active = await ensure_version(store.pool, new.version)
        opened = [await stack.enter_async_context(open_version(settings, active))]
        opened += await stack.enter_async_context(
            open_reachable(settings, [v for v in await live_versions(store.pool) if v.id != active.id])
        )
        for engines in opened:
            await move_engines(store.pool, engines.version)
        if settings_differ(settings, active):
            log.warning(
                "the settings (or this release) describe other digests than index version %s, which serves: see `reprocess`", active.name
            )
        yield opened


@asynccontextmanager
async def open_reachable(settings: Settings, versions: Sequence[IndexVersion]) -> AsyncIterator[list[Engines]]:
    """The engines of those versions whose engines answer; the others are left out, with a warning."""
    async with AsyncExitStack() as stack:
        opened = []
        for version in versions:
            try:
                opened.append(await stack.enter_async_context(open_version(settings, version)))
            except PreconditionMissing as error:
                log.warning("index version %s is not kept up to date now: %s", version.short, error)
        yield opened


@asynccontextmanager
async def open_version(settings: Settings, version: IndexVersion) -> AsyncIterator[Engines]:
    """Both engines of a version from the database. Raises VersionMismatch where this release cannot make its digests any more."""
    if version.text_recipe != TEXT_RECIPE:
        raise VersionMismatch(f"this release does not know the embedded text of index version {version.name} ({version.text_recipe})")
    llms = _candidates(settings, "llm", version.summary_base_url, version.summary_model)
    async with (
        _first(open_llm, llms) as (llm, llm_settings),
        _first(open_embedding, _embedding_candidates(settings, version)) as (embedding, embedding_settings),
    ):
        found = replace(version, summary_base_url=llm_settings.llm_base_url, embedding_base_url=embedding_settings.embedding_base_url)
        probe = await probe_remote(embedding, sent_dimensions(version))
        yield Engines(llm, embedding, found, sent_dimensions(version), read_prices(settings.prices), probe, settings.same_llm)


@asynccontextmanager
async def open_version_embedding(settings: Settings, version: IndexVersion) -> AsyncIterator[Engine]:
    """The engine that made a version's vectors, wherever it serves now."""
    async with _first(open_embedding, _embedding_candidates(settings, version)) as (engine, _):
        yield engine


def sent_dimensions(version: IndexVersion) -> int | None:
    """What is sent with each embedding request; None: nothing."""
    return version.dimensions if version.sends_dimensions else None


def settings_differ(settings: Settings, version: IndexVersion) -> bool:
    """Whether the settings plainly describe other digests than the version's; what only an engine could tell is not asked."""
    return (
        settings.embedding_model not in {None, version.embedding_model}
        or settings.llm_model not in {None, version.summary_model}
        or settings.embedding_dimensions not in {None, version.dimensions}
        or (version.prompt_version, version.text_recipe) != (PROMPT_VERSION, TEXT_RECIPE)
    )


def _embedding_candidates(settings: Settings, version: IndexVersion) -> list[Settings]:
    same_weights = revision(settings) == version.embedding_revision
    return _candidates(settings, "embedding", version.embedding_base_url, version.embedding_model, may_have_moved=same_weights)


def _candidates(settings: Settings, purpose: str, base_url: str | None, model: str, *, may_have_moved: bool = True) -> list[Settings]:
    """Where to look for a version's model: where the settings name it; else at its own address, then at the settings' one."""
    own = settings.with_engine(purpose, base_url, model)
    configured_url, configured_model = getattr(settings, f"{purpose}_base_url"), getattr(settings, f"{purpose}_model")
    there = settings.with_engine(purpose, configured_url, model)
    if may_have_moved and configured_model == model:
        return [there]
    if may_have_moved and configured_model is None and configured_url not in {None, base_url}:
        return [own, there]
    return [own]


@asynccontextmanager
async def _first(
    opener: Callable[[Settings], AbstractAsyncContextManager[Engine]], candidates: Sequence[Settings]
) -> AsyncIterator[tuple[Engine, Settings]]:
    """The first that answers and serves the model; where none does, what the first one said is raised."""
    failures: list[PreconditionMissing] = []
    async with AsyncExitStack() as stack:
        for candidate in candidates:
            try:
                found = await stack.enter_async_context(opener(candidate))
            except (EngineUnavailable, ModelNotServed) as error:
                failures.append(error)
            else:
                break
        else:
            raise failures[0]
        yield found, candidate
