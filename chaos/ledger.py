"""What engines counted, beside what the ledger says that they were asked; both counts are needed, nothing else.

A summary call that went well is one answer of an engine, so their numbers and tokens differ by what nobody read: answers to whoever was
killed (calls that are open still) and on connections that broke off (`unanswered`). Vectors are asked for beside the ledger too, by
whoever starts or searches, so that it may have less of those than the engines, never more.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from psycopg import AsyncConnection
from psycopg.rows import class_row

from chaos.faults import count_requests
from chaos.system import System
from starsearch.store.leases import BATCH

MISSED = 32  # answers between the last count of an engine and its end: a process has as many in flight
LEASES = 2  # that a process holds at a time
LOSING = (
    "wake a zombie",
    "cut connections",
    "crash the database",
    "fill the disk",
    "step the databases clock",
)  # faults by which leases are lost, and turns
TOTALS = (
    "SELECT purpose, sum(requests)::int AS requests, sum(unanswered)::int AS unanswered, sum(prompt_tokens)::int AS prompt_tokens, "
    "sum(completion_tokens)::int AS completion_tokens, "
)
USAGE = TOTALS + "sum(calls - failed)::int AS answers, sum(failed)::int AS failed FROM engine_usage GROUP BY 1"
CALLS = TOTALS + (
    "(count(*) FILTER (WHERE outcome = 'ok'))::int AS answers, (count(*) FILTER (WHERE outcome <> 'ok'))::int AS failed "
    "FROM engine_call WHERE requests IS NOT NULL GROUP BY 1"
)
GONE = "SELECT count(*) FROM item i JOIN repository r ON r.id = i.repository_id WHERE tombstoned_at IS NOT NULL OR gone_at IS NOT NULL"
OPEN = "SELECT count(*) FROM engine_call WHERE purpose = 'summary' AND (settled_at IS NULL OR outcome = 'abandoned')"
LARGEST = (
    "SELECT coalesce(max(prompt_tokens) FILTER (WHERE purpose = 'summary'), 0), coalesce(max(completion_tokens), 0), "
    "coalesce(max(prompt_tokens) FILTER (WHERE purpose = 'embedding'), 0) FROM engine_call"
)


@dataclass(frozen=True)
class Total:
    """Of all calls for one purpose. `answers`: calls that went well; `failed`: the others."""

    purpose: str
    requests: int = 0
    unanswered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answers: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Seen:
    """Outside of the ledger's totals.

    counted: by all engines; own: what the liar said of its own to chats, and what engines refused; missed: answers at most that no engine could count; unstored:
    summaries at most that were read and not stored; largest: a call's tokens, asked and answered; largest_embedded: of a batch.
    """

    counted: Counter[str]
    own: int
    open_calls: int
    summaries: int
    missed: int
    unstored: int
    largest: tuple[int, int] = (0, 0)
    largest_embedded: int = 0


async def accounts(system: System, connection: AsyncConnection) -> list[str]:
    for port in (*system.engines, system.ports[-1]):
        count_requests(system, port)
    own = system.counted.pop(system.ports[-1], Counter())["chat"]
    counted = sum(system.counted.values(), system.lost)
    [(prompt, completion, embedded)] = await (await connection.execute(LARGEST)).fetchall()
    usage, calls = await _totals(connection, USAGE), await _totals(connection, CALLS)
    summary, embedding = usage["summary"], usage["embedding"]
    batches = LEASES * sum(system.faults[name] for name in LOSING) + embedding.failed
    seen = Seen(
        counted=counted,
        own=own + counted["refused"],
        open_calls=await _number(connection, OPEN),
        summaries=await _number(connection, "SELECT count(*) FROM summary"),
        missed=MISSED * system.faults["kill an engine"],
        unstored=BATCH * batches + await _number(connection, GONE),
        largest=(prompt, completion),
        largest_embedded=embedded,
    )
    print(
        f"ledger: {seen.counted['chat']} summaries by engines, {summary.answers} in it, {seen.summaries} stored; {summary.requests} requests "
        f"in it, {seen.counted['chat'] + seen.own} counted; {summary.unanswered} unanswered, {seen.open_calls} calls open",
        flush=True,
    )
    if system.uncounted:
        print(f"left out: the engines' counts, because one did not tell them {system.uncounted} times", flush=True)
        return list(unlike(usage, calls))
    return [*unlike(usage, calls), *disagreements(seen, summary, embedding)]


def unlike(usage: dict[str, Total], calls: dict[str, Total]) -> Iterator[str]:
    """The totals are kept in the transactions that settle calls: they are the same, whatever was killed."""
    for purpose in sorted(usage.keys() | calls.keys()):
        kept, added = usage.get(purpose, Total(purpose)), calls.get(purpose, Total(purpose))
        if kept != added:
            yield f"the ledger's totals are not what its calls add up to: {kept}, {added}"


def disagreements(seen: Seen, summary: Total, embedding: Total) -> Iterator[str]:
    answered, unread = seen.counted["chat"], seen.open_calls + summary.unanswered
    told = (
        ("summaries", answered, summary.answers, 1),
        ("tokens of prompts", seen.counted["prompt_tokens"], summary.prompt_tokens, seen.largest[0]),
        ("tokens of summaries", seen.counted["completion_tokens"], summary.completion_tokens, seen.largest[1]),
    )
    for what, engines, ledger, each in told:
        if not -seen.missed * each <= engines - ledger <= unread * each:
            yield (
                f"engines count {engines} {what}, the ledger {ledger}; {seen.open_calls} calls are open, "
                f"{summary.unanswered} requests without an answer"
            )
    if summary.requests + 2 * seen.open_calls < answered + seen.own:  # a call is asked twice at most
        yield f"{answered + seen.own} requests were answered, the ledger has {summary.requests} and {seen.open_calls} open calls"
    if answered > seen.summaries + unread + seen.unstored:
        yield f"{answered} summaries were written for {seen.summaries} texts; {unread} at most were not read, {seen.unstored} not stored"
    if (counted := seen.counted["embedding_tokens"]) + seen.missed * seen.largest_embedded < embedding.prompt_tokens:
        yield f"engines count {counted} tokens embedded, the ledger {embedding.prompt_tokens}"


async def _totals(connection: AsyncConnection, query: str) -> dict[str, Total]:
    async with connection.cursor(row_factory=class_row(Total)) as cursor:
        totals = await (await cursor.execute(query.encode())).fetchall()
    return {purpose: Total(purpose) for purpose in ("summary", "embedding")} | {total.purpose: total for total in totals}


async def _number(connection: AsyncConnection, query: str) -> int:
    [[number]] = await (await connection.execute(query.encode())).fetchall()
    return int(number)
