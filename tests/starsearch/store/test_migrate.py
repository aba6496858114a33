"""Migrations from many processes at once, on databases that are not what they should be, and with files that fail."""

import asyncio
import contextlib
import socket
import subprocess
import sys

import psycopg
import pytest

from starsearch.errors import DatabaseUnavailable, DatabaseUnsuitable
from starsearch.store import migrate as module
from starsearch.store.database import connect
from starsearch.store.migrate import Migration, migrate, migrations

MIGRATE = """
import asyncio, sys
from starsearch.store.database import connect
from starsearch.store.migrate import migrate
async def main():
    async with await connect(sys.argv[1]) as connection:
        print("ready", flush=True)
        sys.stdin.readline()
        print(len(await migrate(connection)), flush=True)
asyncio.run(main())
"""


@pytest.fixture
async def connection(dsn):
    """To a database that is up to date."""
    async with await connect(dsn) as opened:
        yield opened


@pytest.fixture
async def empty(empty_dsn):
    """To a database without any table."""
    async with await connect(empty_dsn) as opened:
        yield opened


@pytest.fixture
def add_migration(monkeypatch):
    """Adds one file after the real ones."""

    def add(text: str) -> Migration:
        ours = migrations()
        number = ours[-1].number + 1
        added = Migration(number, f"{number:04}_added.sql", text)
        monkeypatch.setattr(module, "migrations", lambda: [*ours, added])
        return added

    return add


async def column(connection, statement):
    return [row[0] for row in await (await connection.execute(statement)).fetchall()]


async def applied(connection):
    return await column(connection, "SELECT name FROM schema_migration ORDER BY version")


async def exists(connection, relation):
    return (await column(connection, f"SELECT to_regclass('{relation}') IS NOT NULL"))[0]


def closed_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def test_24_processes_at_once_migrate_an_empty_database_once(empty_dsn):
    command = [sys.executable, "-c", MIGRATE, empty_dsn]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(24):
            process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            processes.append(process)
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        counts = [int(process.stdout.readline()) for process in processes]
        assert {process.wait(60) for process in processes} == {0}
    assert sorted(counts) == [0] * 23 + [len(migrations())]
    with psycopg.connect(empty_dsn) as connection:
        rows = connection.execute("SELECT name, sha256 FROM schema_migration ORDER BY version").fetchall()
    assert rows == [(migration.name, migration.sha256) for migration in migrations()]


async def test_second_migrate_applies_nothing(empty):
    assert await migrate(empty) == [migration.name for migration in migrations()]
    assert await migrate(empty) == []


async def test_edited_migration_is_refused(connection):
    await connection.execute("UPDATE schema_migration SET sha256 = 'another'")
    with pytest.raises(DatabaseUnsuitable, match=r"0001_\w+.sql was edited"):
        await migrate(connection)


async def test_migration_of_a_newer_version_is_refused(connection):
    await connection.execute("INSERT INTO schema_migration (version, name, sha256) VALUES (9999, '9999_later.sql', '')")
    with pytest.raises(DatabaseUnsuitable, match=r"9999_later.sql.*update starsearch"):
        await migrate(connection)


async def test_old_pgvector_is_refused_with_the_reason_and_creates_nothing(empty, monkeypatch):
    monkeypatch.setattr(module, "MINIMUM_PGVECTOR", (99, 0, 0))
    with pytest.raises(DatabaseUnsuitable, match=r"can damage HNSW indexes.*STARSEARCH_ALLOW_OLD_PGVECTOR"):
        await migrate(empty)
    assert not await exists(empty, "schema_migration")


async def test_old_pgvector_is_refused_in_a_database_that_is_up_to_date_too(connection, monkeypatch):
    monkeypatch.setattr(module, "MINIMUM_PGVECTOR", (99, 0, 0))
    with pytest.raises(DatabaseUnsuitable, match="can damage HNSW indexes"):
        await migrate(connection)


async def test_old_pgvector_can_be_allowed(empty, monkeypatch):
    monkeypatch.setattr(module, "MINIMUM_PGVECTOR", (99, 0, 0))
    assert await migrate(empty, allow_old_pgvector=True)


async def test_index_is_built_concurrently_while_another_process_waits_for_its_turn(connection, dsn, add_migration):
    added = add_migration("-- no-transaction\nCREATE INDEX CONCURRENTLY added_one ON item (author);\nCREATE TABLE added_two (a int);\n")
    async with await connect(dsn) as other:
        done = await asyncio.wait_for(asyncio.gather(migrate(connection), migrate(other)), 60)
    assert sorted(done) == [[], [added.name]]
    assert await column(connection, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'added_one'::regclass") == [True]
    assert await exists(connection, "added_two")
    assert (await applied(connection))[-1] == added.name


async def test_failing_migration_leaves_nothing_behind(connection, dsn, add_migration):
    before = await applied(connection)
    add_migration("CREATE TABLE half_done (a int);\nSELECT 1 / 0;\n")
    with pytest.raises(psycopg.errors.DivisionByZero):
        await migrate(connection)
    assert not await exists(connection, "half_done")
    assert await applied(connection) == before
    added = add_migration("CREATE TABLE corrected (a int);\n")
    async with await connect(dsn) as other:  # while the failed session lives: it no longer holds the lock
        assert await asyncio.wait_for(migrate(other), 60) == [added.name]


async def test_server_that_does_not_answer_is_named_without_the_password():
    port = closed_port()
    with pytest.raises(DatabaseUnavailable) as caught:
        await connect(f"postgresql://someone:s3cret@127.0.0.1:{port}/issues")  # pragma: allowlist secret
    message = str(caught.value)
    assert f"127.0.0.1:{port}/issues" in message
    assert "Connection refused" in message
    assert "correct STARSEARCH_DATABASE_URL, or unset it" in message
    assert "s3cret" not in message


@pytest.mark.parametrize("password", ["s3cret%zz", "s3/cret", "s3@cret", "s3@/cret", "s3/cr?et"])
async def test_password_that_breaks_the_address_is_not_shown(password):
    with pytest.raises(DatabaseUnavailable, match="postgresql://user:password@host") as caught:  # pragma: allowlist secret
        await connect(f"postgresql://someone:{password}@127.0.0.1:{closed_port()}/issues")
    assert "s3" not in str(caught.value)
    assert "cret" not in str(caught.value)


async def test_encoded_password_and_user_name_with_an_at_sign_are_an_address():
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        server = f"127.0.0.1:{closed_port()}/issues?application_name=a@b"
        await connect(f"postgresql://someone%40here:s3%40%2Fcret@{server}")  # pragma: allowlist secret
