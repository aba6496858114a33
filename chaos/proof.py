"""The invariants, from the database and the stand-in's own record alone: each finding is one sentence; none is a clean run."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from psycopg import AsyncConnection

from chaos.faults import count_requests
from chaos.system import System
from starsearch.models import parse_item
from tests.standin.oracle import compare, marks_ahead, stored_items

SHOWN = 3
SEARCHED = 8
WORKERS = 2
REASONS = {"unreadable answer", "bad vectors", "no answer", "HTTP 500"}  # the liar's doing, and engines that died
TWICE = "SELECT count(*) FROM (SELECT version_id, item_id FROM digest GROUP BY 1, 2 HAVING count(*) > 1) AS twice"
EMPTY = "SELECT count(*) FROM digest d JOIN summary s ON s.key = d.summary_key WHERE btrim(s.text) = ''"
LEASED = (
    "SELECT (SELECT count(*) FROM due WHERE lease_token IS NOT NULL) + (SELECT count(*) FROM repository WHERE lease_token IS NOT NULL) "
    "+ (SELECT count(*) FROM summary_lease)"
)


def complete(system: System, tries: int = 3) -> bool:
    """Crawl and digest with nothing in the way, until nothing is left to do; as a scheduler would, a few times at most."""
    for _ in range(tries):
        system.command("crawl", "--no-digest")
        system.command("digest")
        if json.loads(system.command("status", "--json").stdout or "{}").get("complete"):
            return True
    return False


def prove(system: System) -> list[str]:
    found = [] if complete(system) else [f"not complete: {_gaps(system)}"]
    return found + asyncio.run(_look(system)) + list(_findable(system))


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
            *_named("marks ahead of their items", await marks_ahead(connection, record, since=parse_since())),
            *_named("items whose content hash is not their text's", await _wrong_hashes(connection, record)),
        ]
        for sentence, query in (("items digested twice", TWICE), ("empty summaries", EMPTY), ("leases left", LEASED)):
            number = await _number(connection, query)
            found += [f"{number} {sentence}"] if number else []
        return found + [problem async for problem in _accounts(system, connection)]


def parse_since() -> Any:
    from datetime import UTC, datetime

    return datetime(2000, 1, 1, tzinfo=UTC)


def _named(sentence: str, keys: list[Any]) -> list[str]:
    return [f"{len(keys)} {sentence}, such as {', '.join(map(str, keys[:SHOWN]))}"] if keys else []


async def _wrong_hashes(connection: AsyncConnection, record: list[dict[str, Any]]) -> list[tuple[str, int]]:
    held = {(row["repo"], row["number"]): row["content_hash"] for row in await stored_items(connection)}
    hashes = {(row["repo"], row["number"]): parse_item(row).content_hash for row in record}
    return [key for key, value in hashes.items() if key in held and bytes(held[key]) != value]


async def _accounts(system: System, connection: AsyncConnection) -> Any:
    """Every request that an engine answered is in the ledger, but for those in flight when somebody was killed."""
    for port in system.engines:
        count_requests(system, port)
    answered = sum(system.counted.values()) + system.lost_count
    told = await _number(connection, "SELECT coalesce(sum(requests), 0) FROM engine_usage WHERE purpose = 'summary'")
    open_calls = await _number(connection, "SELECT count(*) FROM engine_call WHERE settled_at IS NULL OR outcome = 'abandoned'")
    if answered - told > 2 * open_calls:  # a call is asked twice at most
        yield f"engines answered {answered} requests, the ledger has {told} and {open_calls} open calls"
    cursor = await connection.execute("SELECT reason, count(*) FROM dead_letter GROUP BY 1")
    for reason, number in await cursor.fetchall():
        if reason not in REASONS:
            yield f"{number} dead letters say {reason!r}, which nobody did"


async def _number(connection: AsyncConnection, query: str) -> int:
    row = await (await connection.execute(query.encode())).fetchone()
    return int(row[0]) if row else 0


def _findable(system: System) -> Iterator[str]:
    """Some items, asked for by their own titles within their repository, are among the first ten."""
    record = system.control.record()
    dead = _dead(system)
    living = sorted((row for row in record if (row["repo"], row["number"]) not in dead), key=lambda row: (row["repo"], row["number"]))
    for row in system.random.sample(living, min(SEARCHED, len(living))):
        done = system.command("search", row["title"], "--repo", row["repo"], "--limit", "10", "--mode", "vector", "--json")
        hits = json.loads(done.stdout or "{}").get("hits", ())
        if (row["repo"], row["number"]) not in {(hit["repo"], hit["number"]) for hit in hits} and not _crowded(hits, row["title"]):
            yield f"{row['repo']}#{row['number']} is not found by its own title"


def _crowded(hits: Any, title: str) -> bool:
    """Ten others of the same title stand before it."""
    return sum(hit["title"] == title for hit in hits) >= 10


def _dead(system: System) -> set[tuple[str, int]]:
    with system.connect() as connection:
        rows = connection.execute(
            "SELECT full_name, number FROM dead_letter JOIN item ON item.id = item_id JOIN repository ON repository.id = repository_id"
        ).fetchall()
    return set(rows)
