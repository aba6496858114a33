"""Every living item is a dead letter with a true reason, or digested as it is now and found.

Found: its own text, embedded anew, finds it as near as a text is to itself. No other vector is as near, but that of a text that is all
but the same: so each vector is proved. It is looked for through the index, as any question is. That is a graph, in which one or two
walks in a thousand end among strangers where all texts are made of a few sentences, as the stand-in's are: what they miss is looked for
among all vectors, and many of those are a finding of their own. A few are asked for by their titles besides, as people do.
"""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from numpy.typing import NDArray
from psycopg.rows import dict_row

from chaos.engine import refused
from chaos.system import System
from starsearch.embedded.engine import CONTEXT_TOKENS
from starsearch.engines import open_embedding
from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed, StarsearchError
from starsearch.finder import Finder, open_finder
from starsearch.inference.client import Engine
from starsearch.inference.embed import embed
from starsearch.inference.prompts import embedded_text, prompt_for
from starsearch.models import DueItem, Found, Hit
from starsearch.store.nearest import Path
from starsearch.store.search import search

T = TypeVar("T")
Key = tuple[str, int]  # full name, number
BATCH = 64
AT_ONCE = 8
SAME = 0.9995  # cosine of a text to itself, stored as half floats
HIDDEN_EACH = 200  # no more than one in so many: 27 of 15,055 were seen, and of 25,090 real texts none (benchmarks/README.md)
TITLES = 8
FOUND_WITHIN = 50
CROWD = 10
SHOWN = 3
TRIES = 3
NUMBERS = re.compile(r"\d+")
REFUSED = "HTTP 400"
DIGESTED = (
    "SELECT r.full_name, i.number, i.title, s.text FROM digest d JOIN index_version v ON v.id = d.version_id AND v.status = 'active' "
    "JOIN item i ON i.id = d.item_id AND i.partition_at = d.partition_at AND i.content_hash = d.content_hash "
    "JOIN repository r ON r.id = i.repository_id JOIN summary s ON s.key = d.summary_key WHERE i.tombstoned_at IS NULL"
)
DEAD = (
    "SELECT r.full_name, i.number, x.reason FROM dead_letter x JOIN item i ON i.id = x.item_id AND i.content_hash = x.content_hash "
    "JOIN repository r ON r.id = i.repository_id WHERE i.tombstoned_at IS NULL"
)
STORED = (
    "SELECT r.full_name, i.number, i.id, i.type, i.state, i.title, i.body, i.comments, i.content_hash, i.partition_at FROM item i "
    "JOIN repository r ON r.id = i.repository_id WHERE i.tombstoned_at IS NULL AND i.stored_at IS NOT NULL"
)


def findable(system: System) -> list[str]:
    living = {(row["repo"], row["number"]): row["title"] for row in system.control.record()}
    with system.connect() as connection:
        texts = {(repo, number): embedded_text(title, text) for repo, number, title, text in connection.execute(DIGESTED)}
        dead = {(repo, number): reason for repo, number, reason in connection.execute(DEAD)}
        with connection.cursor(row_factory=dict_row) as cursor:
            stored = cursor.execute(STORED).fetchall()
    refusals = {(row.pop("full_name"), row.pop("number")) for row in stored if refused(asked(row))}
    found = [*unaccounted(living, texts, dead, refusals)]
    try:
        found += asyncio.run(_search(system, living, texts))
    except StarsearchError as error:
        found.append(f"search does not work: {error}")
    return found


def asked(row: Mapping[str, Any]) -> str:
    """What an engine is asked of a stored item."""
    fields = {name: value for name, value in row.items() if name not in {"full_name", "number"}}
    item = DueItem(**fields | {"comments": tuple(comment["body"] for comment in row["comments"])})
    return prompt_for(item, context_tokens=CONTEXT_TOKENS).user


def unaccounted(living: Mapping[Key, str], texts: Mapping[Key, str], dead: Mapping[Key, str], refusals: set[Key]) -> list[str]:
    """Living items that are neither digested as they are nor dead letters, and dead letters for a refusal that nobody spoke, or without."""
    return [
        *named("items neither digested as they are nor dead letters", living.keys() - texts.keys() - dead.keys()),
        *named("items digested and dead letters at once", texts.keys() & dead.keys()),
        *named("items that every engine refuses, and no dead letters", refusals & living.keys() - dead.keys()),
        *named("dead letters for a refusal that nobody spoke", {key for key, reason in dead.items() if reason == REFUSED} - refusals),
    ]


def named(sentence: str, keys: Collection[Any]) -> list[str]:
    """One finding, with some of the items; none where there are none."""
    return [f"{len(keys)} {sentence}, such as {', '.join(map(str, sorted(keys)[:SHOWN]))}"] if keys else []


async def _search(system: System, living: Mapping[Key, str], texts: Mapping[Key, str]) -> list[str]:
    keys = sorted(living.keys() & texts.keys())
    sample = random.Random(system.seed).sample(keys, min(TITLES, len(keys)))
    async with open_finder(system.settings) as finder, open_embedding(system.settings) as engine:
        lost, hidden = await _missed(finder, engine, {key: texts[key] for key in keys})
        untitled = {key for key in sample if not among(await _by_title(finder, living[key]), key, living[key])}
    print(
        f"searched: {len(keys)} items by their own texts ({len(hidden)} of them not through the index), {len(sample)} by their titles",
        flush=True,
    )
    return [
        *named("items that their own text does not find", lost),
        *named("items that the index hides", hidden if len(hidden) > len(keys) // HIDDEN_EACH else ()),
        *named("items that their own title does not find", untitled),
    ]


async def _missed(finder: Finder, engine: Engine, texts: Mapping[Key, str]) -> tuple[set[Key], set[Key]]:
    """Those whose own text does not find them, and those that it finds, but not through the index."""
    places, lost, hidden = asyncio.Semaphore(AT_ONCE), set[Key](), set[Key]()

    async def finds(key: Key, vector: NDArray[Any], path: Path | None) -> bool:
        found = await search(finder.pool, finder.version, texts[key], vector, mode="vector", limit=FOUND_WITHIN, path=path)
        return itself(found, key)

    async def look(key: Key, vector: NDArray[Any]) -> None:
        async with places:
            if not await finds(key, vector, None):
                (hidden if await finds(key, vector, "exact") else lost).add(key)

    every = list(texts)
    for start in range(0, len(every), BATCH):
        keys = every[start : start + BATCH]
        vectors, _ = await _answered(partial(embed, engine, [texts[key] for key in keys], dimensions=None, width=finder.version.dimensions))
        await asyncio.gather(*(look(key, vector) for key, vector in zip(keys, vectors, strict=True)))
    return lost, hidden


def itself(found: Found, key: Key) -> bool:
    """Whether an item is among the hits, as near as a text is to itself."""
    return any((hit.repo, hit.number) == key and (hit.scores["vector"] or 0.0) >= SAME for hit in found.hits)


async def _by_title(finder: Finder, title: str) -> list[Hit]:
    return (await _answered(lambda: finder.find(title, limit=FOUND_WITHIN))).hits


async def _answered(ask: Callable[[], Awaitable[T]]) -> T:
    """One engine lies or breaks off, so an answer may be refused or late; not three times."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(DigestFailed, ModelNotServed, EngineUnavailable):
            return await ask()
    return await ask()


def among(hits: Sequence[Hit], key: Key, title: str) -> bool:
    """An item among the first of all (within a small repository each would be, whatever its vector), or crowded out.

    Crowded out: ten others stand before it whose titles differ from its own in numbers alone, as those of changed items do: vectors of
    titles hardly tell them apart.
    """
    alike = sum(NUMBERS.sub("", hit.title) == NUMBERS.sub("", title) for hit in hits)
    return alike >= CROWD or key in {(hit.repo, hit.number) for hit in hits}
