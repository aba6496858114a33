"""The ledger: every call to an engine, written down before it is made, and what it cost when it is settled.

A call that a kill left open stays in the ledger as unsettled; one that fails costs what its answers say. Totals per run and model
(engine_usage) are kept in the same transaction as the calls, so they cannot disagree.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from psycopg import AsyncConnection
from psycopg.rows import class_row

from starsearch.models import Spending, Usage
from starsearch.store.database import Pool
from starsearch.store.statements import statement


@dataclass
class Call:
    """One call to an engine for some items: its intent first, its outcome when settled."""

    purpose: str
    model: str
    item_ids: list[int]
    id: int = 0
    outcome: str = "not asked"
    spent: Spending = field(default_factory=Spending)


async def intend(pool: Pool, run_id: int, lease_token: int, calls: Sequence[Call]) -> None:
    """Write down what is about to be asked of an engine; fills in the calls' ids."""
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "INSERT INTO engine_call (run_id, lease_token, purpose, model, items) "
            "SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::integer[]) RETURNING id",
            [run_id, lease_token, [c.purpose for c in calls], [c.model for c in calls], [len(c.item_ids) for c in calls]],
        )
        for call, row in zip(calls, await cursor.fetchall(), strict=True):
            call.id = row[0]


async def settle(connection: AsyncConnection, calls: Sequence[Call]) -> None:
    """Write down what the calls cost, in the caller's transaction: at its end, because the totals are a run's one hot row."""
    spent = [call.spent for call in calls]
    await connection.execute(
        statement("settle"),
        {
            "ids": [call.id for call in calls],
            "outcomes": [call.outcome for call in calls],
            "items": ["{" + ",".join(map(str, call.item_ids)) + "}" for call in calls],  # ragged arrays travel as text
            "requests": [each.requests for each in spent],
            "unanswered": [each.unanswered for each in spent],
            "prompt": [each.prompt_tokens for each in spent],
            "cached": [each.cached_tokens for each in spent],
            "completion": [each.completion_tokens for each in spent],
            "seconds": [each.seconds for each in spent],
        },
    )


async def account_answer(pool: Pool, call: Call) -> None:
    """For a role that may write nothing else: an answer that is over, with a run of its own, into the ledger."""
    spent = call.spent
    async with pool.connection() as connection:
        await connection.execute(
            "SELECT account_answer(%s, %s, %s::integer, %s::integer, %s::integer, %s::integer, %s::integer, %s::real)",
            [
                call.model,
                call.outcome,
                spent.requests,
                spent.unanswered,
                spent.prompt_tokens,
                spent.cached_tokens,
                spent.completion_tokens,
                spent.seconds,
            ],
        )


async def forget_items(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """What these items cost stays in the ledger; that it was theirs does not."""
    await connection.execute(
        "UPDATE engine_call SET item_ids = ARRAY(SELECT CASE WHEN id <> ALL (%(ids)s) THEN id END "
        "FROM unnest(item_ids) WITH ORDINALITY AS i (id, n) ORDER BY n) WHERE item_ids && %(ids)s::bigint[]",
        {"ids": list(ids)},
    )


async def read_usage(connection: AsyncConnection, *, runs: Sequence[int] | None = None) -> list[Usage]:
    """The totals of these runs, or of all, by purpose and model; `hours` is the time in which anybody used that model."""
    async with connection.cursor(row_factory=class_row(Usage)) as cursor:
        return await (await cursor.execute(statement("usage"), {"runs": runs})).fetchall()


async def count_unsettled(connection: AsyncConnection) -> int:
    """Calls in flight now, and those that a kill left open: what they cost is unknown."""
    cursor = await connection.execute("SELECT count(*) FROM engine_call WHERE settled_at IS NULL OR outcome = 'abandoned'")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def usage_by_run(connection: AsyncConnection, *, limit: int) -> list[tuple[str, Usage]]:
    """What the newest runs used, by their number and kind."""
    cursor = await connection.execute(
        "SELECT run_id || ' ' || kind, purpose, model, calls, failed, items, requests, unanswered, prompt_tokens, cached_tokens, "
        "completion_tokens, seconds, extract(epoch FROM last_at - first_at)::float8 / 3600 FROM engine_usage JOIN run ON run.id = run_id "
        "WHERE run_id IN (SELECT DISTINCT run_id FROM engine_usage ORDER BY 1 DESC LIMIT %s) ORDER BY run_id DESC, purpose DESC, model",
        [limit],
    )
    return [(name, Usage(*values)) for name, *values in await cursor.fetchall()]


async def usage_by_repository(connection: AsyncConnection, *, limit: int) -> list[tuple[str, Usage]]:
    """What the repositories with most tokens used. Reads every call; `hours` are the model's, by share of the calls' time."""
    hours = {(usage.purpose, usage.model): usage.hours / usage.seconds if usage.seconds else 0 for usage in await read_usage(connection)}
    cursor = await connection.execute(statement("usage_by_repository"), {"limit": limit})
    found = [(name, Usage(*values)) for name, *values in await cursor.fetchall()]
    return [(name, replace(usage, hours=usage.seconds * hours[usage.purpose, usage.model])) for name, usage in found]
