"""Connections of the role that reads everything, adds feedback, and can do nothing else (migration 0011).

The role is taken on when a connection begins, so whatever this process is made to do, it is done with a reader's rights.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from starsearch.errors import DatabaseUnsuitable
from starsearch.store.database import SESSION, Pool

ROLE = "starsearch_reader"
STATEMENT_SECONDS = 10
WAIT_SECONDS = 3.0  # for a connection, until somebody is told that the database does not answer
READER = f"{SESSION} -c role={ROLE} -c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout=60s"


@asynccontextmanager
async def open_reader_pool(dsn: str, *, size: int) -> AsyncIterator[Pool]:
    pool = AsyncConnectionPool(
        dsn,
        kwargs={"options": READER},
        min_size=1,
        max_size=size,
        configure=register_vector_async,
        check=AsyncConnectionPool.check_connection,
        timeout=WAIT_SECONDS,
        open=False,
    )
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def check_role(connection: AsyncConnection) -> None:
    """Raises DatabaseUnsuitable where this user cannot take the role on."""
    cursor = await connection.execute("SELECT pg_has_role(rolname, 'MEMBER') FROM pg_roles WHERE rolname = %s", [ROLE])
    row = await cursor.fetchone()
    if row is None or not row[0]:
        raise DatabaseUnsuitable(
            f"the role {ROLE} is {'missing' if row is None else 'not granted to this user'}: as an administrator of the server, "
            "run the statements of docs/operations.md, “The reader role”"
        )
