"""Connections of the role that reads everything, adds feedback, and can do nothing else (migration 0011).

The role is taken on when a connection begins, so whatever this process is made to do, it is done with a reader's rights.
"""

from contextlib import AbstractAsyncContextManager

from psycopg import AsyncConnection

from starsearch.errors import DatabaseUnsuitable
from starsearch.store.database import SESSION, Pool, open_pool

ROLE = "starsearch_reader"
STATEMENT_SECONDS = 10
WAIT_SECONDS = 3.0  # for a connection, until somebody is told that the database does not answer
READER = f"{SESSION} -c role={ROLE} -c statement_timeout={STATEMENT_SECONDS}s -c idle_in_transaction_session_timeout=60s"


def open_reader_pool(dsn: str, *, size: int) -> AbstractAsyncContextManager[Pool]:
    return open_pool(dsn, size=size, options=READER, wait_seconds=WAIT_SECONDS)


async def check_role(connection: AsyncConnection) -> None:
    """Raises DatabaseUnsuitable where this user cannot take the role on."""
    cursor = await connection.execute("SELECT pg_has_role(rolname, 'MEMBER') FROM pg_roles WHERE rolname = %s", [ROLE])
    row = await cursor.fetchone()
    if row is None or not row[0]:
        raise DatabaseUnsuitable(
            f"the role {ROLE} is {'missing' if row is None else 'not granted to this user'}: as an administrator of the server, "
            "run the statements of docs/operations.md, Roles"
        )
