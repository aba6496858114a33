"""The command on a database that lets it down: restarted in mid-write, full, read-only, at another version. A clear answer, no partial write."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from starsearch.embedded import postgres

COMMAND = [sys.executable, "-m", "starsearch.cli"]
PATIENCE_SECONDS = 60


@pytest.fixture
def own_home():
    """A home folder whose server may be restarted: nobody else uses it."""
    folder = Path(tempfile.mkdtemp(prefix="starsearch-test-"))
    folder.chmod(0o755)
    yield folder
    postgres.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def starsearch(environment):
    def run(*arguments, **extra):
        return subprocess.run(
            [*COMMAND, *map(str, arguments)], env=environment | extra, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def few(dsn):
    """The address of a role that may do everything here, over two connections at a time."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = f"few_{os.getpid()}"
        connection.execute(f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 2 IN ROLE pg_read_all_data, pg_write_all_data")
        connection.execute(f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}")
        yield make_conninfo(dsn, user=name)
        connection.execute(f"DROP OWNED BY {name}")
        connection.execute(f"DROP ROLE {name}")


def rows(dsn, table):
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]


def refused(done, *messages):
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    for message in messages:
        assert message in done.stderr


@pytest.mark.parametrize(
    ("table", "stored"),
    [
        ("item", 0),  # the source is being stored
        ("digest_v1", 20),  # stored, and a batch of digests is being written
    ],
)
def test_restarted_in_mid_write_it_says_so_and_the_same_command_goes_on(own_home, row, jsonl, table, stored):
    server = postgres.start(own_home)
    environment = {name: value for name, value in os.environ.items() if name != "STARSEARCH_DATABASE_URL"}
    environment |= {"STARSEARCH_HOME": str(own_home)}
    path = jsonl(*(row(n) for n in range(1, 21)))
    subprocess.run(
        [*COMMAND, "ingest", str(jsonl(row(99, repo="else/where"), name="first.jsonl"))], env=environment, check=True, capture_output=True
    )
    holder = psycopg.connect(server.dsn)  # closed by the restart
    holder.execute(f"LOCK TABLE {table} IN SHARE MODE")
    writing = subprocess.Popen([*COMMAND, "ingest", str(path)], env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_a_writer(server.dsn, table)
    assert postgres.stop(own_home)
    told = writing.communicate(timeout=PATIENCE_SECONDS)[1]
    assert writing.returncode == 3, told
    assert "Traceback" not in told
    assert "run the same command again" in told
    server.close()

    server = postgres.start(own_home)
    assert rows(server.dsn, "item") == 1 + stored
    assert rows(server.dsn, "digest") == 1
    assert rows(server.dsn, "summary") in range(1, 2 + stored)  # those made before it ended are kept
    again = subprocess.run([*COMMAND, "ingest", str(path), "--json"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["inserted"] == 20 - stored
    assert json.loads(again.stdout)["embedded"] == 20
    status = subprocess.run([*COMMAND, "status", "--check"], env=environment, capture_output=True, text=True, check=False)
    assert status.returncode == 0, status.stdout
    server.close()


def wait_for_a_writer(dsn, table):
    deadline = time.monotonic() + PATIENCE_SECONDS
    with psycopg.connect(dsn, autocommit=True) as connection:
        while time.monotonic() < deadline:
            waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = %s::regclass"
            if connection.execute(waiting, [table]).fetchall():
                return
            time.sleep(0.05)
    raise AssertionError(f"nobody came to write into {table}")


def test_out_of_connections_it_says_so_and_writes_nothing(starsearch, few, dsn, row, jsonl):
    with psycopg.connect(few), psycopg.connect(few):
        done = starsearch("ingest", jsonl(row(1)), STARSEARCH_DATABASE_URL=few)
    refused(done, "too many connections", "max_connections")
    assert rows(dsn, "item") == rows(dsn, "run") == 0


def test_connections_that_run_out_in_mid_run_leave_whole_batches(starsearch, few, dsn, row, jsonl):
    """One connection is left: enough to store what was read, not to hold a lease beside it."""
    with psycopg.connect(few):
        done = starsearch("ingest", jsonl(*(row(n) for n in range(1, 4))), STARSEARCH_DATABASE_URL=few)
    refused(done, "connection")
    assert rows(dsn, "item") == 3
    assert rows(dsn, "digest") == rows(dsn, "summary") == 0
    assert starsearch("digest").returncode == 0
    assert rows(dsn, "digest") == 3


def test_a_full_disk_is_told_as_one_and_leaves_whole_batches(starsearch, dsn, row, jsonl):
    full = "RAISE disk_full USING MESSAGE = 'could not extend file'"
    with psycopg.connect(dsn) as connection:
        connection.execute(f"CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {full}; END $$")
        connection.execute("CREATE TRIGGER full_disk BEFORE INSERT ON digest FOR EACH ROW EXECUTE FUNCTION full_disk()")
    refused(starsearch("ingest", jsonl(row(1))), "no space left on its disk (could not extend file): free some")
    assert (rows(dsn, "item"), rows(dsn, "digest")) == (1, 0)
    with psycopg.connect(dsn) as connection:
        connection.execute("DROP TRIGGER full_disk ON digest")
    assert starsearch("digest").returncode == 0
    assert (rows(dsn, "digest"), rows(dsn, "dead_letter")) == (1, 0)


@pytest.fixture
def stranger(dsn):
    """The address of a role that may connect, and nothing else."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = f"stranger_{os.getpid()}"
        connection.execute(f"CREATE ROLE {name} LOGIN")
        yield name
        connection.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("command", [["migrate"], ["serve", "--port", "0"], ["status"]])
@pytest.mark.parametrize("database", ["dsn", "empty_dsn"])
def test_a_user_without_rights_is_told_so(request, starsearch, stranger, database, command):
    address = make_conninfo(request.getfixturevalue(database), user=stranger)
    refused(starsearch(*command, STARSEARCH_DATABASE_URL=address), "does not let this user do that", "docs/operations.md")


def test_doctor_tells_a_user_without_rights_and_goes_on(starsearch, stranger, dsn):
    checks = json.loads(starsearch("doctor", "--json", STARSEARCH_DATABASE_URL=make_conninfo(dsn, user=stranger)).stdout)
    assert (checks[0]["name"], checks[0]["level"]) == ("database", "error")
    assert "does not let this user do that" in checks[0]["message"]
    assert len(checks) > 3


def test_a_read_only_database_answers_questions_and_refuses_the_rest(starsearch, dsn, row, jsonl):
    assert starsearch("ingest", jsonl(row(1))).returncode == 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on")
    for command in (["ingest", jsonl(row(2), name="more.jsonl")], ["digest"], ["purge", "--author", "someone"]):
        refused(starsearch(*command), "read-only")
    assert rows(dsn, "item") == rows(dsn, "digest") == rows(dsn, "run") == 1
    found = starsearch("search", "totals in a report", "--json")
    assert json.loads(found.stdout)["hits"][0]["number"] == 1
    assert starsearch("status", "--check").returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("INSERT INTO schema_migration (version, name, sha256) VALUES (9999, '9999_later.sql', '')", "update starsearch"),
        ("UPDATE schema_migration SET sha256 = 'another' WHERE version = 1", "was edited after it was applied"),
    ],
)
@pytest.mark.parametrize("command", [["ingest", "FILE"], ["search", "totals"], ["status"], ["digest"]])
def test_a_database_at_another_version_is_left_alone(starsearch, dsn, row, jsonl, change, message, command):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(change)
    path = jsonl(row(1))
    refused(starsearch(*(path if word == "FILE" else word for word in command)), message)
    assert rows(dsn, "item") == rows(dsn, "run") == 0
