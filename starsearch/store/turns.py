"""Whose turn it is to ask for a summary: the same text is summarized once, by whichever batch of whichever process meets it first.

A turn is a lease on the summary's key. It is committed before the prompt is sent, and ends in the transaction that stores the
summary, or hands the batch back. Items of a batch that comes second are not waited for (two batches could wait for each other):
they are due again in a moment, and find the summary made. A worker that died holds no turn, nor one whose lease ran out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from psycopg import AsyncConnection

from starsearch.models import Summary
from starsearch.store.database import Pool
from starsearch.store.leases import LEASE, Batch

POSTPONED = timedelta(seconds=1)


@dataclass(frozen=True)
class Turns:
    """made: summaries that exist; they cost nothing now. ours: keys that this batch asks for. postponed: items of all other keys."""

    made: Mapping[bytes, Summary]
    ours: frozenset[bytes]
    postponed: frozenset[int]


async def take_turns(pool: Pool, version_id: int, batch: Batch, worker: int, keys: Mapping[int, bytes]) -> Turns:
    """Lease those of the items' summary keys that nobody made or asks for; hand back the items whose summary another batch makes."""
    parameters = {"keys": sorted(set(keys.values())), "token": batch.token, "worker": worker, "lease": LEASE}
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "INSERT INTO summary_lease AS l (key, lease_token, worker, expires_at) "
            "SELECT key, %(token)s, %(worker)s, now() + %(lease)s FROM unnest(%(keys)s::bytea[]) AS wanted (key) "
            "WHERE NOT EXISTS (SELECT FROM summary s WHERE s.key = wanted.key) ORDER BY key "
            "ON CONFLICT (key) DO UPDATE "
            "SET lease_token = excluded.lease_token, worker = excluded.worker, expires_at = excluded.expires_at "
            "WHERE l.expires_at < now() OR l.worker NOT IN (SELECT worker FROM living_worker) RETURNING key",
            parameters,
        )
        ours = {bytes(key) for (key,) in await cursor.fetchall()}
        # read after the turns are taken: whoever had one before us has committed its summary by now
        cursor = await connection.execute("SELECT key, text, source FROM summary WHERE key = ANY (%(keys)s)", parameters)
        made = {bytes(key): Summary(bytes(key), text, source) for key, text, source in await cursor.fetchall()}
        postponed = frozenset(item for item, key in keys.items() if key not in made and key not in ours)
        if postponed:
            await connection.execute(
                "UPDATE due SET lease_token = NULL, lease_worker = NULL, due_at = now() + %s "
                "WHERE version_id = %s AND lease_token = %s AND item_id = ANY (%s)",
                [POSTPONED, version_id, batch.token, sorted(postponed)],
            )
    return Turns(made, frozenset(ours - made.keys()), postponed)


async def end_turns(connection: AsyncConnection, batch: Batch) -> None:
    await connection.execute("DELETE FROM summary_lease WHERE lease_token = %s", [batch.token])
