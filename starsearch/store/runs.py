"""Runs and the ledger: what was started, what every engine call cost, and what a kill left open."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncConnection
from psycopg.types.json import Json

from starsearch.models import Counts
from starsearch.store.database import Pool


@dataclass
class Call:
    """One call to an engine: its intent first, its outcome when settled. `requests` are HTTP requests, retries included."""

    purpose: str
    model: str
    items: int
    id: int = 0
    outcome: str = "ok"
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


async def start_run(pool: Pool, kind: str) -> int:
    async with pool.connection() as connection:
        cursor = await connection.execute("INSERT INTO run (kind) VALUES (%s) RETURNING id", [kind])
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def finish_run(pool: Pool, run_id: int, counts: Counts, github: dict[str, Any] | None = None) -> None:
    """`github`: what GitHub charged the run (points, requests, splits, waits)."""
    async with pool.connection() as connection:
        await connection.execute(
            "UPDATE run SET finished_at = now(), counts = %s, github = %s WHERE id = %s",
            [Json(counts.as_dict()), github and Json(github), run_id],
        )


async def intend(pool: Pool, run_id: int, lease_token: int, calls: Sequence[Call]) -> None:
    """Write down what is about to be asked of an engine; fills in the calls' ids."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "INSERT INTO engine_call (run_id, lease_token, purpose, model, items) "
            "SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::integer[]) RETURNING id",
            [run_id, lease_token, [c.purpose for c in calls], [c.model for c in calls], [c.items for c in calls]],
        )
        for call, row in zip(calls, await cursor.fetchall(), strict=True):
            call.id = row[0]


async def settle(connection: AsyncConnection, calls: Sequence[Call]) -> None:
    """Write down what the calls cost, in the caller's transaction."""
    await connection.execute(
        "UPDATE engine_call c SET settled_at = now(), outcome = s.outcome, requests = s.requests, "
        "prompt_tokens = s.prompt, completion_tokens = s.completion "
        "FROM unnest(%s::bigint[], %s::text[], %s::integer[], %s::integer[], %s::integer[]) "
        "AS s (id, outcome, requests, prompt, completion) WHERE c.id = s.id",
        [
            [call.id for call in calls],
            [call.outcome for call in calls],
            [call.requests for call in calls],
            [call.prompt_tokens for call in calls],
            [call.completion_tokens for call in calls],
        ],
    )


async def rejections(pool: Pool, run_id: int, *, limit: int) -> list[tuple[str, int, str]]:
    """(source, line, reason) of a run's first rejected lines."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT source, line, reason FROM rejection WHERE run_id = %s ORDER BY ctid LIMIT %s", [run_id, limit]
        )
        return [(source, line, reason) for source, line, reason in await cursor.fetchall()]


@dataclass(frozen=True)
class Experience:
    """What digesting has cost here so far; None before anything was digested. `free`: only engines without a price were used."""

    tokens_per_item: float | None
    items_per_second: float | None
    free: bool


async def experience(pool: Pool) -> Experience:
    async with pool.connection() as connection:
        cursor = await connection.execute(
            """
            SELECT
              (SELECT sum(prompt_tokens + completion_tokens)::float8 / nullif(sum(items) FILTER (WHERE purpose = 'embedding'), 0)
                 FROM engine_call WHERE outcome = 'ok'),
              (SELECT sum((counts ->> 'embedded')::float8) / nullif(sum((counts ->> 'seconds')::float8), 0)
                 FROM run WHERE (counts ->> 'embedded')::integer > 0),
              (SELECT coalesce(bool_and(model LIKE 'embedded-%' OR model = 'minilm-l6-v2'), false) FROM engine_call)
            """
        )
        row = await cursor.fetchone()
    assert row is not None
    return Experience(*row)
