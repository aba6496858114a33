"""The invariants, from the database and the stand-in's own record alone: each finding is one sentence; none is a clean run."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psutil
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from chaos.faults import NO_SHARD, start_a_shard_twice
from chaos.finding import REFUSED, SHOWN, asked, findable, named
from chaos.ledger import accounts
from chaos.orchestration import CRAWL, REAP
from chaos.system import System, wait_until
from deployments import one_machine
from starsearch.extractive import summarize
from starsearch.inference.gate import tidy
from starsearch.models import clean, parse_item
from tests.standin.oracle import compare, marks_ahead, stored_items

SINCE = datetime(2000, 1, 1, tzinfo=UTC)
HOUR_SECONDS = 120.0  # and a second for each five items
REAPED_SECONDS = 200.0
TRIES = 3
ENDING_SECONDS = 10.0
LIES = {"unreadable answer", "unusable vector", "HTTP 500"}  # the liar's doing; who died or was cut off costs nobody an attempt
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
    return [*asyncio.run(_look(system)), *findable(system), *_orphans(system)]


def complete(system: System) -> list[str]:
    """Until nothing is left to do, and again after one more hour; what is left all the same, or looks alive and is not.

    In that hour a shard is started three times over: by the schedule that happens only while one is open.
    """
    left = _caught_up(system)
    if not left:
        system.change_items()
        left = _caught_up(system, _Twice(system))
    return [*left, *_still_open(system)]


@dataclass
class _Twice:
    """Called again and again, until there was a shard to start twice."""

    system: System
    done: bool = False

    def __call__(self) -> None:
        if not self.done and (told := start_a_shard_twice(self.system, random.Random(0))) != NO_SHARD:
            self.done = True
            print(told, flush=True)


def _caught_up(system: System, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
    """Crawls with nothing in the way, and the reaper where it is needed."""
    for _ in range(TRIES):
        open_runs = _reaped(system)
        crawled = system.prefect.run(CRAWL, seconds=HOUR_SECONDS + system.items / 5, meanwhile=meanwhile)
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
            *named("items missed, or stored as they were", compared.missed),
            *named("living items buried", compared.false_tombstones),
            *named("items stored that are gone", compared.left),
            *named("marks ahead of their items", await marks_ahead(connection, record, since=SINCE)),
            *named("items whose content hash is not their text's", await _wrong_hashes(connection, record)),
            *named("items with a summary that is not theirs", await _wrong_summaries(connection)),
        ]
        for sentence, query in (("items digested twice", TWICE), ("empty summaries", EMPTY), ("leases left", LEASED)):
            number = await _number(connection, query)
            found += [f"{number} {sentence}"] if number else []
        return [*found, *await _dead_letters(connection), *await accounts(system, connection)]


async def _wrong_hashes(connection: AsyncConnection, record: list[dict[str, Any]]) -> list[tuple[str, int]]:
    held = {(row["repo"], row["number"]): row["content_hash"] for row in await stored_items(connection)}
    hashes = {(row["repo"], row["number"]): parse_item(row).content_hash for row in record}
    return [key for key, value in hashes.items() if key in held and bytes(held[key]) != value]


async def _wrong_summaries(connection: AsyncConnection) -> list[str]:
    """The engines' model makes the same of the same text, at any time, and the liar passes on what they say or nothing readable."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        rows = await (await cursor.execute(WRITTEN)).fetchall()
    return [name for row in rows if (name := row.pop("name")) and row.pop("text") != tidy(clean(summarize(asked(row))))]


async def _dead_letters(connection: AsyncConnection) -> list[str]:
    cursor = await connection.execute("SELECT reason, count(*) FROM dead_letter GROUP BY 1")
    return list(excess(dict(await cursor.fetchall()), await _number(connection, "SELECT count(*) FROM summary")))


def excess(dead: Mapping[str, int], texts: int) -> Iterator[str]:
    """Dead letters by reason: for a reason that nobody gave, or more than lies explain. Which texts engines refuse, finding.py knows."""
    for reason in sorted(dead.keys() - LIES - {REFUSED}):
        yield f"{dead[reason]} dead letters say {reason!r}, which nobody did"
    allowed = DEAD_ALWAYS + texts // DEAD_EACH
    if (number := sum(dead[reason] for reason in dead.keys() - {REFUSED})) > allowed:
        yield f"{number} dead letters, where one engine's lies explain {allowed}"


async def _number(connection: AsyncConnection, query: str) -> int:
    row = await (await connection.execute(query.encode())).fetchone()
    return int(row[0]) if row else 0
