"""A pool of connections to PostgreSQL, ready for vectors; and how this project wants its sessions."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import psycopg
from pgvector.psycopg import register_vector_async
from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from starsearch.errors import DatabaseUnavailable, DatabaseUnsuitable
from starsearch.store.migrate import migrate

CONNECT_SECONDS = 10
# force_custom_plan: a plan cached for one repository is wrong for the next; iterative scans: a filter must not lose rows
# keepalives: a machine that is switched off says nothing, and its leases would be its own for two hours
SESSION = (
    "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 "
    "-c plan_cache_mode=force_custom_plan -c hnsw.ef_search=200 -c hnsw.iterative_scan=relaxed_order "
    "-c timezone=UTC -c application_name=starsearch"
)
# an @ or / left as it is in a password: libpq then takes the rest of the password for the host, and names it in its errors
UNENCODED = re.compile(r"postgres(ql)?://([^@/]*@)?+[^?]*@")

Pool = AsyncConnectionPool[AsyncConnection]


@asynccontextmanager
async def open_database(dsn: str, *, size: int = 4, allow_old_pgvector: bool = False) -> AsyncIterator[Pool]:
    """A pool on a database whose schema is up to date. Raises DatabaseUnavailable or DatabaseUnsuitable, also for its user's errors."""
    with explained(dsn):
        async with await connect(dsn) as connection:
            await migrate(connection, allow_old_pgvector=allow_old_pgvector)
        async with open_pool(dsn, size=size) as pool:
            yield pool


@asynccontextmanager
async def open_pool(dsn: str, *, size: int, options: str = SESSION, wait_seconds: float = CONNECT_SECONDS) -> AsyncIterator[Pool]:
    """Connections that know vectors. wait_seconds: for a free one, until PoolTimeout."""
    pool = AsyncConnectionPool(
        dsn,
        kwargs={"options": options},
        min_size=1,
        max_size=size,
        configure=register_vector_async,
        check=AsyncConnectionPool.check_connection,
        timeout=wait_seconds,
        open=False,
    )
    await pool.open()
    try:
        yield pool
    finally:
        await pool.close()


async def keep_plans(connection: AsyncConnection) -> None:
    """For a transaction that writes many rows: let plans be kept until it ends.

    SESSION has each statement planned anew, and so each check of a foreign key, row by row: half the CPU time of writing 500 digests.
    """
    await connection.execute("SET LOCAL plan_cache_mode = auto")


@contextmanager
def explained(dsn: str) -> Iterator[None]:
    """What PostgreSQL refuses, in words that say what to do; the transaction it happened in has left nothing behind."""
    try:
        yield
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise DatabaseUnsuitable(
            f"{describe(dsn)} does not let this user do that ({str(error).strip().splitlines()[0]}): use one that may (docs/operations.md, "
            "Roles), or a database that is not read-only"
        ) from error
    except psycopg.errors.UndefinedTable as error:
        raise DatabaseUnsuitable(
            f"{describe(dsn)}: {error.diag.message_primary}; `starsearch migrate` brings the schema up to date"
        ) from error
    except psycopg.errors.QueryCanceled as error:
        raise DatabaseUnavailable(
            f"{describe(dsn)} stopped a statement ({error.diag.message_primary}); narrow it, or raise the limit"
        ) from error
    except psycopg.errors.DiskFull as error:
        raise DatabaseUnavailable(
            f"{describe(dsn)} has no space left on its disk ({error.diag.message_primary}): free some, then run the same command again"
        ) from error
    except (PoolTimeout, psycopg.OperationalError) as error:
        raise DatabaseUnavailable(
            f"{describe(dsn)} does not answer any more ({str(error).strip()}): see its log, then run the same command again"
        ) from error


async def connect(dsn: str) -> AsyncConnection:
    """One connection in autocommit mode, for what needs a session of its own: migrations, leases."""
    try:
        if UNENCODED.match(dsn):
            raise psycopg.ProgrammingError("unencoded character")
        return await AsyncConnection.connect(dsn, autocommit=True, connect_timeout=CONNECT_SECONDS, options=SESSION)
    except psycopg.OperationalError as error:
        if "FATAL" in str(error):  # its own answer: too many clients, wrong password, no such database, starting up
            raise DatabaseUnavailable(
                f"PostgreSQL at {describe(dsn)} refuses the connection ({_reason(error)}): check STARSEARCH_DATABASE_URL; where it has "
                "too many clients, stop some or raise its max_connections"
            ) from error
        raise DatabaseUnavailable(
            f"no PostgreSQL at {describe(dsn)} ({_reason(error)}): start it, correct "
            "STARSEARCH_DATABASE_URL, or unset it to use the embedded PostgreSQL"
        ) from error
    except psycopg.ProgrammingError as error:  # its text may quote the password
        raise DatabaseUnavailable(
            "STARSEARCH_DATABASE_URL is not a PostgreSQL address: write postgresql://user:password"
            "@host:port/database, and in the password %40 for @, %2F for /, %25 for %"
        ) from error


def _reason(error: psycopg.OperationalError) -> str:
    """The last line that is not one of libpq's indented hints."""
    return [line for line in str(error).strip().splitlines() if not line.startswith("\t")][-1]


def describe(dsn: str) -> str:
    """The address without its password."""
    if UNENCODED.match(dsn):
        return "an address that cannot be read"
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "an address that cannot be read"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"
