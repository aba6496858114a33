"""Bring the schema up to date: numbered .sql files, once each, under one lock.

`CREATE … IF NOT EXISTS` is not safe from several processes (6 of 24 died of it), so one process at a time looks what is
missing. The lock is polled (locks.py), because a `-- no-transaction` file may create an index concurrently.
"""

import asyncio
import hashlib
import random
import time
from dataclasses import dataclass
from importlib import resources

import psycopg
from psycopg import AsyncConnection, sql

from starsearch.errors import DatabaseUnsuitable, StarsearchError
from starsearch.store.locks import polled_lock

LOCK = 78_273  # first key of an advisory lock, beside those of leases.py and versions.py
LOCK_TIMEOUT = "10s"  # for one statement: a migration waits for readers, and everybody waits behind the migration
LET_GO_AFTER = "700ms"  # sooner than deadlock_timeout, 1 s
LOCKED_WITHIN_SECONDS = 60.0
MINIMUM_PGVECTOR = (0, 8, 4)
NO_TRANSACTION = "-- no-transaction"


@dataclass(frozen=True)
class Migration:
    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def migrations() -> list[Migration]:
    folder = resources.files("starsearch.store") / "migrations"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [Migration(int(f.name.split("_")[0]), f.name, f.read_text("utf-8")) for f in files]


async def migrate(connection: AsyncConnection, *, allow_old_pgvector: bool = False) -> list[str]:
    """Apply what is missing; returns the names applied. `connection` must be in autocommit mode.

    Raises DatabaseUnsuitable for a missing or old pgvector, an edited file, or a schema newer than this code.
    """
    if not await pending(connection):
        await check_pgvector(connection, allow_old=allow_old_pgvector)
        return []
    async with polled_lock(connection, LOCK, 0):
        await check_pgvector(connection, allow_old=allow_old_pgvector)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration ("
            "version integer PRIMARY KEY, name text NOT NULL, sha256 text NOT NULL, applied_at timestamptz DEFAULT now())"
        )
        missing = await pending(connection)
        for migration in missing:
            await _apply(connection, migration)
    return [migration.name for migration in missing]


async def pending(connection: AsyncConnection) -> list[Migration]:
    """The migrations not applied yet; raises DatabaseUnsuitable where the applied ones are not ours."""
    ours = {migration.number: migration for migration in migrations()}
    try:
        cursor = await connection.execute("SELECT version, name, sha256 FROM schema_migration")
    except psycopg.errors.UndefinedTable:
        return list(ours.values())
    applied = await cursor.fetchall()
    for version, name, sha256 in applied:
        if version not in ours:
            raise DatabaseUnsuitable(f"the database has migration {name}, which this version does not know: update starsearch")
        if ours[version].sha256 != sha256:
            raise DatabaseUnsuitable(
                f"migration {name} was edited after it was applied: restore the file and put the change into a new one"
            )
    return [migration for number, migration in ours.items() if number not in {row[0] for row in applied}]


async def check_pgvector(connection: AsyncConnection, *, allow_old: bool) -> str:
    """The version of pgvector in use, or that would be; refuses versions known to corrupt HNSW indexes."""
    cursor = await connection.execute(
        "SELECT coalesce(installed_version, default_version) FROM pg_available_extensions WHERE name = 'vector'"
    )
    row = await cursor.fetchone()
    if row is None:
        raise DatabaseUnsuitable(
            "this PostgreSQL has no pgvector: install it on the server (or allow the extension `vector`, on managed ones), "
            "or unset STARSEARCH_DATABASE_URL to use the embedded PostgreSQL"
        )
    version = str(row[0])
    if tuple(int(part) for part in version.split(".")[:3]) < MINIMUM_PGVECTOR and not allow_old:
        raise DatabaseUnsuitable(
            f"pgvector {version} can damage HNSW indexes under insert and vacuum (fixed in 0.8.4): upgrade the extension on the "
            "server, then ALTER EXTENSION vector UPDATE; or set STARSEARCH_ALLOW_OLD_PGVECTOR=1 to take the risk"
        )
    return version


async def _apply(connection: AsyncConnection, migration: Migration) -> None:
    try:
        if migration.text.startswith(NO_TRANSACTION):
            for statement in migration.text.split(";\n"):
                if statement.strip():
                    await connection.execute(sql.SQL(statement))
            await _record(connection, migration)
            return
        async with connection.transaction():
            await _lock_tables(connection)
            await connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(LOCK_TIMEOUT))
            await connection.execute(migration.text.encode())
            await _record(connection, migration)
    except (psycopg.errors.LockNotAvailable, TimeoutError) as error:
        raise StarsearchError(f"{migration.name} waited too long for a lock; run `starsearch migrate` again") from error


async def _lock_tables(connection: AsyncConnection) -> None:
    """All of them, before anything is changed: table by table, a migration would wait for a job that waits for the migration.

    Taken at once they would, too; but then nothing is lost yet, so the migration lets go, before PostgreSQL ends one of the two, and tries
    again. Raises TimeoutError.
    """
    cursor = await connection.execute(
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE nspname = current_schema() "
        "AND relkind IN ('r', 'p') AND pg_has_role(relowner, 'USAGE') ORDER BY pg_class.oid"
    )
    tables = sql.SQL(", ").join([sql.Identifier(name) for (name,) in await cursor.fetchall()])  # schema_migration at least
    deadline = time.monotonic() + LOCKED_WITHIN_SECONDS
    await connection.execute(sql.SQL("SET LOCAL statement_timeout = {}").format(LET_GO_AFTER))
    while True:
        try:
            async with connection.transaction():  # a savepoint: what was locked before the timeout is free again
                await connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(tables))
            break
        except psycopg.errors.QueryCanceled as error:
            if time.monotonic() > deadline:
                raise TimeoutError from error
            await asyncio.sleep(random.uniform(0.05, 0.25))
    await connection.execute("SET LOCAL statement_timeout TO DEFAULT")


async def _record(connection: AsyncConnection, migration: Migration) -> None:
    await connection.execute(
        "INSERT INTO schema_migration (version, name, sha256) VALUES (%s, %s, %s)",
        [migration.number, migration.name, migration.sha256],
    )
