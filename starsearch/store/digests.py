"""Digests into PostgreSQL: summaries, vectors, failures and the end of the lease, in one transaction.

Every statement touches only items whose lease token is still ours, so a worker that lost its lease (a zombie) can write nothing.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection, sql

from starsearch.errors import DigestFailed, LeaseLost
from starsearch.logs import about, log_failure
from starsearch.models import Counts, DueItem, IndexVersion, Summary
from starsearch.store.database import Pool, keep_plans
from starsearch.store.digest_rows import COLUMNS, digest_rows
from starsearch.store.leases import Batch, give_back
from starsearch.store.ledger import Call, settle
from starsearch.store.swap import pass_swap
from starsearch.store.turns import end_turns

ATTEMPTS = 3
RETRY_AFTER = timedelta(seconds=1)  # times 4 for each attempt; the client's own retries already took seconds
MAX_DETAIL = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Digest:
    """vector: (dimensions,) float32, unit length."""

    item: DueItem
    summary: Summary
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class Failure:
    item: DueItem
    stage: str
    error: DigestFailed

    @property
    def attempts(self) -> int:
        return self.item.attempts + self.error.attempt

    @property
    def dead(self) -> bool:
        """Its attempts are spent, or more of them would fail alike."""
        return self.attempts >= ATTEMPTS or self.error.permanent


async def finish_batch(
    pool: Pool,
    version: IndexVersion,
    batch: Batch,
    digests: Sequence[Digest],
    failures: Sequence[Failure],
    calls: Sequence[Call],
    *,
    run_id: int,
) -> Counts:
    """Write a batch's outcome. Raises LeaseLost, having written nothing but the calls' cost, when the lease is not ours any more."""
    async with pool.connection() as connection:
        await keep_plans(connection)
        await pass_swap(connection, version)
        held = await _held(connection, version.id, batch)
        digests = [digest for digest in digests if digest.item.id in held]
        failures = [failure for failure in failures if failure.item.id in held]
        await _store_summaries(connection, version, [digest.summary for digest in digests], run_id)
        await store_digests(connection, version.id, digests, run_id)
        await _record_latency(connection, version.id, digests)
        await _end_lease(connection, version.id, digests)
        failures = await _store_failures(connection, version.id, failures)
        await end_turns(connection, batch)
        await settle(connection, calls)
    if not held:
        raise LeaseLost(f"lease {batch.token} ran out; another worker digests its items")
    _tell(digests, failures)
    return Counts(summarized=len(digests), embedded=len(digests), dead_letters=sum(failure.dead for failure in failures))


def _tell(digests: Sequence[Digest], failures: Sequence[Failure]) -> None:
    for failure in failures:
        item, reason = failure.item, str(failure.error)
        log_failure(log, failure.stage, reason, repository=item.repository, item=item.number, attempt=failure.attempts, dead=failure.dead)
    if log.isEnabledFor(logging.DEBUG):
        for digest in digests:
            with about(repository=digest.item.repository, item=digest.item.number):
                log.debug("digested")


async def keep_summaries(pool: Pool, version: IndexVersion, batch: Batch, made: Sequence[tuple[Summary, Call]], *, run_id: int) -> None:
    """Store summaries, and settle what they cost, before their batch is finished: whoever takes the batch over finds them made.

    Only for items whose lease is still ours: what was purged meanwhile must leave nothing behind.
    """
    async with pool.connection() as connection:
        held = await _held(connection, version.id, batch)
        await _store_summaries(connection, version, [summary for summary, call in made if held & set(call.item_ids)], run_id)
        await settle(connection, [call for _, call in made])


async def abandon_batch(pool: Pool, batch: Batch, calls: Sequence[Call]) -> None:
    """Hand a batch back untouched: the engine, not the items, is at fault."""
    async with pool.connection() as connection:
        await give_back(connection, batch.token)
        await end_turns(connection, batch)
        await settle(connection, [call for call in calls if call.id])


async def earlier_summaries(pool: Pool, version: IndexVersion, items: Sequence[DueItem]) -> dict[int, bytes]:
    """Item → key of the summary that this very content has in any version of the same chat model and prompt.

    Another embedding model needs no new summaries, even where a second attempt or another context made the key differ.
    """
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "SELECT w.item_id, d.summary_key FROM unnest(%s::bigint[], %s::bytea[]) AS w (item_id, content_hash) "
            "JOIN digest d ON d.item_id = w.item_id AND d.content_hash = w.content_hash WHERE d.version_id IN "
            "(SELECT id FROM index_version WHERE status <> 'retired' AND summary_model = %s AND prompt_version = %s)",
            [[item.id for item in items], [item.content_hash for item in items], version.summary_model, version.prompt_version],
        )
        return {item_id: bytes(key) for item_id, key in await cursor.fetchall()}


async def store_digests(connection: AsyncConnection, version_id: int, digests: Sequence[Digest], run_id: int) -> None:
    """Vectors, in the caller's transaction; those written before for the same items are replaced.

    By COPY, which fills page by page, into the version's own partition: rows that come in by way of `digest` are written one by one,
    because it has triggers. Nobody else writes these digests meanwhile: the lease is ours.
    """
    if not digests:
        return
    table = sql.Identifier(f"digest_v{version_id}")
    items = [digest.item for digest in digests]
    replaced = sql.SQL("DELETE FROM {} WHERE version_id = %s AND item_id = ANY (%b::bigint[])").format(table)
    await connection.execute(replaced, [version_id, [item.id for item in items]])
    rows = digest_rows(version_id, run_id, items, [digest.summary.key for digest in digests], [digest.vector for digest in digests])
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, sql.SQL(COLUMNS))
    async with connection.cursor() as cursor, cursor.copy(statement) as copy:
        await copy.write(rows)


async def _held(connection: AsyncConnection, version_id: int, batch: Batch) -> set[int]:
    """The fence: the batch's items whose lease is still ours, locked until the transaction ends.

    The items themselves first, in the order in which store_rows locks them: it goes from items to what is due, so we may not come
    from the other side.
    """
    ids = [item.id for item in batch.items]
    await connection.execute("SELECT FROM item WHERE id = ANY (%s) ORDER BY repository_id, number FOR KEY SHARE", [ids])
    cursor = await connection.execute(
        "SELECT item_id FROM due WHERE version_id = %s AND item_id = ANY (%s) AND lease_token = %s ORDER BY item_id FOR UPDATE",
        [version_id, ids, batch.token],
    )
    return {row[0] for row in await cursor.fetchall()}


async def _store_summaries(connection: AsyncConnection, version: IndexVersion, made: Sequence[Summary], run_id: int) -> None:
    summaries = sorted({summary.key: summary for summary in made}.items())
    await connection.execute(
        "INSERT INTO summary "
        "(key, text, source, gate_reason, gate_detail, prompt_tokens, completion_tokens, model, prompt_version, run_id) "
        "SELECT *, %s, %s, %s FROM unnest(%b::bytea[], %s::text[], %s::text[], %s::text[], %s::text[], %s::integer[], %s::integer[]) "
        "ON CONFLICT (key) DO NOTHING",
        [
            version.summary_model,
            version.prompt_version,
            run_id,
            [key for key, _ in summaries],
            [summary.text for _, summary in summaries],
            [summary.source for _, summary in summaries],
            [summary.gate_reason for _, summary in summaries],
            [summary.gate_detail and summary.gate_detail[:MAX_DETAIL] for _, summary in summaries],
            [summary.prompt_tokens for _, summary in summaries],
            [summary.completion_tokens for _, summary in summaries],
        ],
    )


async def _record_latency(connection: AsyncConnection, version_id: int, digests: Sequence[Digest]) -> None:
    """How long it took from the change on GitHub; only of items that changed while they were followed, not of history."""
    await connection.execute(
        "INSERT INTO latency (version_id, seconds) "
        "SELECT %s, array_agg(extract(epoch FROM now() - i.updated_at)::real) FROM item i JOIN repository r ON r.id = i.repository_id "
        "WHERE i.id = ANY (%s) AND i.updated_at >= r.follow_from HAVING count(*) > 0",
        [version_id, [digest.item.id for digest in digests]],
    )


async def _end_lease(connection: AsyncConnection, version_id: int, digests: Sequence[Digest]) -> None:
    """Done items leave the queue; one whose content changed while it was digested is due again at once."""
    ids = [digest.item.id for digest in digests]
    hashes = [digest.item.content_hash for digest in digests]
    await connection.execute(
        "DELETE FROM due d USING item i, unnest(%s::bigint[], %s::bytea[]) AS done (id, content_hash) "
        "WHERE d.version_id = %s AND d.item_id = done.id AND i.id = done.id AND i.content_hash = done.content_hash",
        [ids, hashes, version_id],
    )
    await connection.execute(
        "UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now(), attempts = 0 WHERE version_id = %s AND item_id = ANY (%s)",
        [version_id, ids],
    )
    await connection.execute("DELETE FROM dead_letter WHERE version_id = %s AND item_id = ANY (%s)", [version_id, ids])


async def _store_failures(connection: AsyncConnection, version_id: int, failures: Sequence[Failure]) -> list[Failure]:
    """Count an attempt against each failed item; returns those that it was counted against.

    Not against one whose text has changed meanwhile: what failed was the older one, so the new one is due with all its attempts.
    """
    changed = await _free_changed(connection, version_id, failures) if failures else set()
    counted = [failure for failure in failures if failure.item.id not in changed]
    for failure in counted:
        values = {
            "version": version_id,
            "item": failure.item.id,
            "stage": failure.stage,
            "reason": failure.error.reason,
            "detail": failure.error.detail[:MAX_DETAIL],
            "attempts": failure.attempts,
            "hash": failure.item.content_hash,
            "wait": RETRY_AFTER * 4 ** (failure.attempts - 1),
        }
        if not failure.dead:
            await connection.execute(
                "UPDATE due SET lease_token = NULL, lease_worker = NULL, attempts = %(attempts)s, reason = %(reason)s, "
                "detail = %(detail)s, due_at = now() + %(wait)s WHERE version_id = %(version)s AND item_id = %(item)s",
                values,
            )
            continue
        await connection.execute(
            "INSERT INTO dead_letter AS x (version_id, item_id, stage, reason, detail, attempts, content_hash) "
            "VALUES (%(version)s, %(item)s, %(stage)s, %(reason)s, %(detail)s, %(attempts)s, %(hash)s) "
            "ON CONFLICT (version_id, item_id) DO UPDATE SET stage = excluded.stage, reason = excluded.reason, "
            "detail = excluded.detail, attempts = excluded.attempts, content_hash = excluded.content_hash, created_at = now()",
            values,
        )
        await connection.execute("DELETE FROM due WHERE version_id = %(version)s AND item_id = %(item)s", values)
    return counted


async def _free_changed(connection: AsyncConnection, version_id: int, failures: Sequence[Failure]) -> set[int]:
    """End the leases of those with another text by now; returns their ids.

    `_held` has locked the items, so a newer text is either committed, and seen here, or waits for us (store_items.sql) and is made due
    after us.
    """
    cursor = await connection.execute(
        "UPDATE due d SET lease_token = NULL, lease_worker = NULL, due_at = now(), attempts = 0 "
        "FROM item i, unnest(%s::bigint[], %s::bytea[]) AS failed (id, content_hash) "
        "WHERE d.version_id = %s AND d.item_id = failed.id AND i.id = failed.id AND i.content_hash <> failed.content_hash "
        "RETURNING d.item_id",
        [[failure.item.id for failure in failures], [failure.item.content_hash for failure in failures], version_id],
    )
    return {item_id for (item_id,) in await cursor.fetchall()}
