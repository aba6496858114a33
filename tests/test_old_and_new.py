"""Code of an earlier commit at work on a database that this one takes over: neither harms the other, and nothing is done twice."""

import json
import os
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import psycopg
import pytest

from tests.model_server import running

ROOT = Path(__file__).resolve().parents[1]
OLD = "e7008e8"  # its schema is 0019: jobs of it know nothing of what came later
ITEMS, LATER, CHANGED = 500, 40, 20
SOME = 64


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory):
    found = subprocess.run(["git", "archive", OLD, "starsearch"], cwd=ROOT, capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"this checkout has no history: {found.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def engine():
    """Embeds the first texts at once, and the others when it is let go: a job is at work for as long as the test wants."""
    with running() as (server, url):
        server.url, server.unheld = url, ITEMS // 2
        server.held.clear()
        yield server
        server.held.set()


@pytest.fixture
def commands(old_tree, home, empty_dsn, engine):
    """Starts a command of the old code, or of this one, on the same new database and engine."""
    environment = dict(os.environ) | {"STARSEARCH_HOME": str(home), "STARSEARCH_DATABASE_URL": empty_dsn}
    environment |= {"STARSEARCH_EMBEDDING_BASE_URL": engine.url, "STARSEARCH_EMBEDDING_MODEL": "random-384"}

    def start(tree, *arguments):
        command = [sys.executable, "-m", "starsearch.cli", *arguments]
        return subprocess.Popen(
            command, cwd=tree, env=environment | {"PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    return lambda *arguments: start(old_tree, *arguments), lambda *arguments: start(ROOT, *arguments)


def ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def number(dsn, query):
    with psycopg.connect(dsn) as connection:
        return connection.execute(query).fetchone()[0]


def wait_for(process, enough):
    deadline = time.monotonic() + 120
    while not enough():
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("told", [True, False], ids=["by migrate", "by a new job"])
def test_a_job_of_the_old_code_goes_on_while_the_new_code_takes_over(commands, engine, empty_dsn, row, jsonl, told):
    old, new = commands
    assert ended(old("ingest", str(jsonl(*(row(n) for n in range(1, ITEMS + 1)))), "--no-digest"))[0] == 0
    working = old("digest")
    wait_for(working, lambda: number(empty_dsn, "SELECT count(*) FROM digest") >= SOME)
    before = number(empty_dsn, "SELECT max(version) FROM schema_migration")
    if told:
        assert ended(new("migrate"))[0] == 0
    later = [row(n, body=f"Column {n} is right again.", updated_at="2026-05-01T00:00:00Z") for n in range(1, CHANGED + 1)]
    later += [row(n) for n in range(ITEMS + 1, ITEMS + LATER + 1)]
    beside = new("ingest", str(jsonl(*later)))
    wait_for(beside, lambda: number(empty_dsn, "SELECT max(version) FROM schema_migration") > before)
    assert working.poll() is None, "the old job is still at work"
    engine.held.set()
    code, _, error = ended(beside)
    assert (code, ended(working)[0]) == (0, 0), error

    refused = ended(old("digest"))
    assert refused[0] == 3
    assert "which this version does not know: update starsearch" in refused[2]
    assert ended(new("digest"))[0] == 0
    status = json.loads(ended(new("status", "--json", "--full"))[1])
    assert status["complete"]
    assert (status["stored"], status["embedded"], status["dead_letters"]) == (ITEMS + LATER, ITEMS + LATER, 0)
    assert number(empty_dsn, "SELECT count(*) FROM engine_call WHERE outcome <> 'ok'") == 0
    asked = number(empty_dsn, "SELECT sum(items) FROM engine_call WHERE purpose = 'embedding'")
    assert ITEMS + LATER <= asked <= ITEMS + LATER + CHANGED  # nothing twice, but what changed after its first digest
    assert number(empty_dsn, "SELECT count(*) FROM due") == 0
