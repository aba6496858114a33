"""The invariants, from the database and the stand-in's own record alone: each finding is one sentence; none is a clean run."""

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import psutil
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from chaos.ledger import accounts
from chaos.orchestration import CRAWL, REAP
from chaos.system import System, wait_until
from deployments import one_machine
from starsearch.embedded.engine import CONTEXT_TOKENS
from starsearch.errors import DigestFailed, StarsearchError
from starsearch.extractive import summarize
from starsearch.finder import Finder, open_finder
from starsearch.inference.gate import tidy
from starsearch.inference.prompts import prompt_for
from starsearch.models import DueItem, Hit, clean, parse_item
from tests.standin.oracle import compare, marks_ahead, stored_items

SINCE = datetime(2000, 1, 1, tzinfo=UTC)
SHOWN = 3
SEARCHED = 8
FOUND_WITHIN = 50
HOUR_SECONDS = 120.0  # and a second for each five items
REAPED_SECONDS = 200.0
TRIES = 3
NUMBERS = re.compile(r"\d+")
ENDING_SECONDS = 10.0
REASONS = {"unreadable answer", "unusable vector", "HTTP 500"}  # the liar's doing; who died or was cut off costs nobody an attempt
# Were every second request the liar's (one in four is), one attempt in 18 would fail, for a summary or a vector that cannot be read, and one
# text in 5,832 three times: 4 of 1,000 in one run of 32,000. Of a batch, whose vectors are asked for at once, all die together, once in
# 36 ** 3 batches then, and in 72 ** 3 as it is.
DEAD_ALWAYS, DEAD_EACH = 2, 1_000
TWICE = "SELECT count(*) FROM (SELECT version_id, item_id FROM digest GROUP BY 1, 2 HAVING count(*) > 1) AS twice"
WRITTEN = (
    "SELECT r.full_name || '#' || i.number AS name, i.id, i.type, i.state, i.title, i.body, i.comments, i.content_hash, i.partition_at, "
    "s.text FROM digest d JOIN item i ON i.id = d.item_id AND i.content_hash = d.content_hash "
    "JOIN repository r ON r.id = i.repository_id JOIN summary s ON s.key = d.summary_key WHERE i.tombstoned_at IS NULL ORDER BY i.id"
)
EMPTY = "SELECT count(*) FROM digest d JOIN summary s ON s.key = d.summary_key WHERE btrim(s.text) = ''"
LEASED = (
    "SELECT (SELECT count(*) FROM due WHERE lease_token IS NOT NULL) + (SELECT count(*) FROM repository WHERE lease_token IS NOT NULL) "
    "+ (SELECT count(*) FROM summary_lease)"
)


def prove(system: System) -> list[str]:
    """Of a system that is complete, or of which it is known already that it will not be."""
    return [*asyncio.run(_look(system)), *asyncio.run(_findable(system)), *_orphans(system)]


def complete(system: System) -> list[str]:
    """Until nothing is left to do, and again after one more hour; what is left all the same, or looks alive and is not."""
    left = _caught_up(system)
    if not left:
        system.change_items()
        left = _caught_up(system)
    return [*left, *_still_open(system)]


def _caught_up(system: System) -> list[str]:
    """Crawls with nothing in the way, and the reaper where it is needed."""
    for _ in range(TRIES):
        open_runs = _reaped(system)
        crawled = system.prefect.run(CRAWL, seconds=HOUR_SECONDS + system.items / 5)
        if not (left := [*open_runs, *_undone(system, crawled)]):
            break
    return left


def _reaped(system: System) -> list[str]:
    """What looks alive and is not, although the reaper came every ten minutes."""
    begun = time.monotonic()
    while (found := list(_still_open(system))) and time.monotonic() < begun + REAPED_SECONDS:
        system.prefect.run(REAP, seconds=HOUR_SECONDS)
    return found


def _still_open(system: System) -> Iterator[str]:
    """A process that is just ending is waited for."""
    wait_until(lambda: not system.prefect.processes() and not system.prefect.stranded(), ENDING_SECONDS)
    yield from system.prefect.stranded()


def _undone(system: System, crawled: str | None) -> Iterator[str]:
    if crawled != "COMPLETED":
        yield f"the hourly crawl does not come to an end: {crawled}"
    if not json.loads(system.command("status", "--json").stdout or "{}").get("complete"):
        yield f"not complete: {_gaps(system)}"
    if number := system.number("SELECT count(*) FROM shard WHERE ended_at IS NULL"):
        yield f"{number} shards are open, and nobody is at work on them"


def _orphans(system: System) -> Iterator[str]:
    """Processes of this system that nothing waits for any more, and on Kubernetes Jobs and pods."""
    meant = {process.pid for process in (system.github, system.liar, *system.engines.values(), *system.prefect.services.values())}
    for process in one_machine.ours(system.settings):
        with contextlib.suppress(psutil.Error):
            if process.pid not in meant:
                yield f"process {process.pid} is left over: {' '.join(process.cmdline())}"
    yield from system.prefect.left_over()


def _gaps(system: System) -> str:
    status = json.loads(system.command("status", "--json").stdout or "{}")
    return "; ".join(f"{gap['stage']}: {gap['reason']} ({gap['count']})" for gap in status.get("gaps", ())[:SHOWN])


async def _look(system: System) -> list[str]:
    record = system.control.record()
    async with await AsyncConnection.connect(system.server.dsn, autocommit=True) as connection:
        compared = await compare(connection, record)
        found = [
            *_named("items missed, or stored as they were", compared.missed),
            *_named("living items buried", compared.false_tombstones),
            *_named("items stored that are gone", compared.left),
            *_named("marks ahead of their items", await marks_ahead(connection, record, since=SINCE)),
            *_named("items whose content hash is not their text's", await _wrong_hashes(connection, record)),
            *_named("items with a summary that is not theirs", await _wrong_summaries(connection)),
        ]
        for sentence, query in (("items digested twice", TWICE), ("empty summaries", EMPTY), ("leases left", LEASED)):
            number = await _number(connection, query)
            found += [f"{number} {sentence}"] if number else []
        return [*found, *await _dead_letters(connection), *await accounts(system, connection)]


def _named(sentence: str, keys: list[Any]) -> list[str]:
    return [f"{len(keys)} {sentence}, such as {', '.join(map(str, keys[:SHOWN]))}"] if keys else []


async def _wrong_hashes(connection: AsyncConnection, record: list[dict[str, Any]]) -> list[tuple[str, int]]:
    held = {(row["repo"], row["number"]): row["content_hash"] for row in await stored_items(connection)}
    hashes = {(row["repo"], row["number"]): parse_item(row).content_hash for row in record}
    return [key for key, value in hashes.items() if key in held and bytes(held[key]) != value]


async def _wrong_summaries(connection: AsyncConnection) -> list[str]:
    """The engines' model makes the same of the same text, at any time, and the liar passes on what they say or nothing readable."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        rows = await (await cursor.execute(WRITTEN)).fetchall()
    return [name for row in rows if (name := row.pop("name")) and row.pop("text") != _summary(row)]


def _summary(row: dict[str, Any]) -> str:
    item = DueItem(**row | {"comments": tuple(comment["body"] for comment in row["comments"])})
    return tidy(clean(summarize(prompt_for(item, context_tokens=CONTEXT_TOKENS).user)))


async def _dead_letters(connection: AsyncConnection) -> list[str]:
    cursor = await connection.execute("SELECT reason, count(*) FROM dead_letter GROUP BY 1")
    return list(excess(dict(await cursor.fetchall()), await _number(connection, "SELECT count(*) FROM summary")))


def excess(dead: Mapping[str, int], texts: int) -> Iterator[str]:
    """Dead letters by reason: for a reason that lies do not give, or more than lies explain."""
    for reason in sorted(dead.keys() - REASONS):
        yield f"{dead[reason]} dead letters say {reason!r}, which nobody did"
    allowed = DEAD_ALWAYS + texts // DEAD_EACH
    if (number := sum(dead.values())) > allowed:
        yield f"{number} dead letters, where one engine's lies explain {allowed}"


async def _number(connection: AsyncConnection, query: str) -> int:
    row = await (await connection.execute(query.encode())).fetchone()
    return int(row[0]) if row else 0


async def _findable(system: System) -> list[str]:
    """Some items, asked for by their own titles, are among the first fifty of all: within a small repository each would be, whatever its vector."""
    dead = _dead(system)
    living = sorted(
        (row["repo"], row["number"], row["title"]) for row in system.control.record() if (row["repo"], row["number"]) not in dead
    )
    found = []
    try:
        async with open_finder(system.settings) as finder:
            for repo, number, title in random.Random(system.seed).sample(living, min(SEARCHED, len(living))):
                hits = await _ask(finder, title)
                if (repo, number) not in {(hit.repo, hit.number) for hit in hits} and not _crowded(hits, title):
                    found.append(f"{repo}#{number} is not found by its own title")
    except StarsearchError as error:
        found.append(f"search does not work: {error}")
    return found


async def _ask(finder: Finder, title: str) -> list[Hit]:
    """One engine lies, so an answer may be refused; not three times."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(DigestFailed):
            return (await finder.find(title, mode="vector", limit=FOUND_WITHIN)).hits
    return (await finder.find(title, mode="vector", limit=FOUND_WITHIN)).hits


def _crowded(hits: list[Hit], title: str) -> bool:
    """Ten others stand before it whose titles differ from it in numbers alone, as those of changed items do: vectors hardly tell them apart."""
    return sum(NUMBERS.sub("", hit.title) == NUMBERS.sub("", title) for hit in hits) >= 10


def _dead(system: System) -> set[tuple[str, int]]:
    with system.connect() as connection:
        rows = connection.execute(
            "SELECT full_name, number FROM dead_letter JOIN item ON item.id = item_id JOIN repository ON repository.id = repository_id"
        ).fetchall()
    return set(rows)
