"""Advisory locks of a session that are polled: a session that waits inside pg_advisory_lock holds a snapshot.

CREATE INDEX CONCURRENTLY waits for every older snapshot, so its builder and whoever waited for it would wait for each other, for ever.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from psycopg import AsyncConnection

POLL_SECONDS = 0.05


@asynccontextmanager
async def polled_lock(connection: AsyncConnection, key: int, number: int) -> AsyncIterator[None]:
    """`connection` must be in autocommit mode. The lock ends with the block, or with the session."""
    while True:
        row = await (await connection.execute("SELECT pg_try_advisory_lock(%s, %s)", [key, number])).fetchone()
        if row and row[0]:
            break
        await asyncio.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s, %s)", [key, number])
