"""The database as CloudNativePG makes it from cluster.yaml: its owner is no superuser, and everybody gets the role that the docs promise."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from starsearch.embedded import postgres
from starsearch.errors import PreconditionMissing
from starsearch.store.database import connect, open_database
from starsearch.store.migrate import migrate
from starsearch.store.reader import check_role, open_reader_pool
from starsearch.store.roles import set_up_roles
from starsearch.store.web import create_key
from tests.k8s.manifests import K8S, read


@pytest.fixture
def application() -> Iterator[str]:
    """The owner's address. On a server of its own, for roles belong to the server."""
    home = Path(tempfile.mkdtemp(prefix="starsearch-test-"))
    home.chmod(0o755)
    server = postgres.start(home)
    try:
        made = yaml.safe_load((K8S / "base/postgres/cluster.yaml").read_text())["spec"]["bootstrap"]["initdb"]
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {made['owner']} LOGIN")
            connection.execute(f"CREATE DATABASE application OWNER {made['owner']}")
        with psycopg.connect(server.place.dsn("application"), autocommit=True) as superuser:
            for statement in made["postInitApplicationSQL"]:
                superuser.execute(statement)
        yield make_conninfo(server.place.dsn("application"), user=made["owner"])
    finally:
        server.close()
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)


async def test_what_an_administrator_is_told_to_run_is_enough(application):
    with psycopg.connect(application, user="postgres", autocommit=True) as administrator:
        administrator.execute("ALTER ROLE starsearch NOCREATEROLE")
        async with await connect(application) as connection:
            await migrate(connection)
            with pytest.raises(PreconditionMissing) as told:
                await set_up_roles(connection)
            for statement in str(told.value).split('"')[1].split(";"):
                administrator.execute(statement)
            await set_up_roles(connection)
            await check_role(connection)


async def test_an_owner_that_may_make_roles_only_later_serves_after_making_them(application):
    with psycopg.connect(application, user="postgres", autocommit=True) as administrator:
        administrator.execute("ALTER ROLE starsearch NOCREATEROLE")
        async with await connect(application) as connection:
            await migrate(connection)
            administrator.execute("ALTER ROLE starsearch CREATEROLE")
            await set_up_roles(connection)
    async with open_reader_pool(application, size=1) as pool, pool.connection() as connection:
        assert await (await connection.execute("SELECT current_user")).fetchone() == ("starsearch_reader",)


def test_from_an_empty_database_on_each_process_does_its_work_in_its_own_role(application, home, tmp_path):
    """What the Job migrate runs, as the owner; then the writer digests and the reader searches: nobody else is needed."""
    owner = {"STARSEARCH_HOME": str(home), "STARSEARCH_DATABASE_URL": application}
    role = {
        each: owner | {"STARSEARCH_DATABASE_URL": make_conninfo(application, user=f"starsearch_{each}")} for each in ("writer", "reader")
    }
    [job] = read((K8S / "base/migrate/job.yaml").read_text())
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert "made index version" in _run(owner, command)
    assert "made index version" not in _run(owner, command)
    items = tmp_path / "items.jsonl"
    url = "https://github.com/quillcap/marlframe/issues/1"
    row = {"repo": "quillcap/marlframe", "number": 1, "type": "issue", "title": "Totals are wrong", "url": url, "state": "open"}
    items.write_text(json.dumps(row | {"body": "The sum is doubled.", "created_at": "2026-01-01T00:00:00Z"}))
    counts = json.loads(_run(role["writer"], ["starsearch", "ingest", str(items), "--json"]))
    assert counts["embedded"] == 1
    assert json.loads(_run(role["writer"], ["starsearch", "status", "--full", "--json"]))["complete"]
    [hit] = json.loads(_run(role["reader"], ["starsearch", "search", "totals", "--json"]))["hits"]
    assert hit["number"] == 1
    assert _run(role["writer"], ["starsearch", "keys", "create", "me"])


def _run(environment: dict[str, str], command: list[str]) -> str:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("STARSEARCH_")}
    done = subprocess.run(
        [sys.executable, "-m", "starsearch.cli", *command[1:]],
        env=plain | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_the_owner_serves_makes_the_roles_and_their_logins_do_what_they_are_for(application):
    async with await connect(application) as connection:
        await migrate(connection)
        await check_role(connection)  # what `serve` asks for
        assert await set_up_roles(connection) == ["starsearch_owner", "starsearch_writer"]
        assert await set_up_roles(connection) == []
        await connection.execute("SELECT 1 FROM item")
    login = {role: make_conninfo(application, user=f"starsearch_{role}") for role in ("owner", "writer", "reader")}
    async with await connect(login["owner"]) as connection:
        await connection.execute("ALTER TABLE item ADD COLUMN added int")
    async with open_database(login["writer"]) as pool:
        await create_key(pool, "me", None)
    async with open_reader_pool(login["reader"], size=1) as pool:
        async with pool.connection() as connection:
            await check_role(connection)
            assert await (await connection.execute("SELECT name FROM api_key")).fetchone() == ("me",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await create_key(pool, "you", None)
