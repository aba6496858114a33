"""Secrets stay where they were put: canaries are planted in every secret setting, and everything that a run wrote is searched for them."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

pytestmark = pytest.mark.flows

CANARY = "canary-5f1e"
TOKEN, KEY, PASSWORD = (f"{CANARY}-{what}" for what in ("token", "key", "password"))


@pytest.fixture(scope="module")
def prefect_server():
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its defaults must be set before Prefect is imported

    with prefect_test_harness(server_startup_timeout=180):
        yield Path(PREFECT_API_DATABASE_CONNECTION_URL.value().split("///")[1])


@pytest.fixture
def planted(environment, standin, world, monkeypatch):
    """An environment with a canary in each secret; one repository to crawl, and an engine that asks for its key."""
    from tests.processes import embedded_engine

    repository = world.add_repository("quillcap/marlframe")
    for n in range(1, 4):
        world.add_item(repository, "issue", title=f"Totals are wrong in report {n}", body="The sum is doubled in every report of autumn.")
    standin.tokens.add(TOKEN)
    values = {
        "DATABASE_URL": f"{environment['STARSEARCH_DATABASE_URL']} password={PASSWORD}",
        "GITHUB_GRAPHQL_URL": standin.graphql_url,
        "GITHUB_REST_URL": standin.url,
        "GITHUB_TOKENS": TOKEN,
        "LLM_API_KEY": KEY,
        "EMBEDDING_API_KEY": KEY,
        "LLM_MODEL": "embedded-extractive-v1",
        "EMBEDDING_MODEL": "minilm-l6-v2",
        "SINCE": "2020-01-01",
    }
    with embedded_engine(environment) as address:
        values |= {"LLM_BASE_URL": f"{address}/v1", "EMBEDDING_BASE_URL": f"{address}/v1"}
        for name, value in values.items():
            monkeypatch.setenv(f"STARSEARCH_{name}", value)
        yield dict(os.environ)


def everything_in(dsn):
    """Every row of every table of ours, as text."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public'").fetchall()
        return "\n".join(str(row[0]) for (table,) in tables for row in connection.execute(f"SELECT t::text FROM {table} AS t"))


def everything_of_prefect(database):
    """Every row of Prefect's own database: runs, parameters, states, logs, artifacts, events."""
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: "\n".join(map(str, connection.execute(f'SELECT * FROM "{name}"'))) for name in tables}


async def test_no_secret_is_in_anything_that_a_run_writes(prefect_server, planted, standin, caplog, capfd):
    from flows.crawl import crawl

    counts = await crawl(repositories=["quillcap/marlframe"])
    assert counts["embedded"] == 3
    standin.tokens.clear()
    standin.tokens.add("another")
    with pytest.raises(Exception, match="refuses"):
        await crawl(repositories=["quillcap/marlframe"])

    prefect = everything_of_prefect(prefect_server)
    assert "quillcap" in prefect["artifact"] + prefect["flow_run"]  # it was looked at after the fact
    assert "quillcap" in everything_in(planted["STARSEARCH_DATABASE_URL"])
    written = capfd.readouterr()
    places = {"database": everything_in(planted["STARSEARCH_DATABASE_URL"]), "log": caplog.text, "out": written.out, "err": written.err}
    assert [name for name, text in (prefect | places).items() if CANARY in text] == []


@pytest.mark.parametrize(
    ("broken", "arguments"),
    [
        ({"STARSEARCH_DATABASE_URL": f"postgresql://somebody:{PASSWORD}@127.0.0.1:1/x"}, ["status"]),
        ({"STARSEARCH_DATABASE_URL": f"postgresql://somebody:{PASSWORD}/@127.0.0.1:1/x"}, ["status"]),
        ({"STARSEARCH_GITHUB_GRAPHQL_URL": "http://127.0.0.1:1/graphql"}, ["crawl", "--repo", "quillcap/marlframe"]),
        ({"STARSEARCH_LLM_BASE_URL": "http://127.0.0.1:1/v1", "STARSEARCH_ENGINE_PATIENCE_SECONDS": "0"}, ["digest"]),
        ({"STARSEARCH_GITHUB_TOKENS": f"{TOKEN}\nevil: header"}, ["crawl", "--repo", "quillcap/marlframe"]),
        ({}, ["doctor"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_no_error_tells_a_secret(planted, broken, arguments):
    command = [sys.executable, "-X", "faulthandler", "-m", "starsearch.cli", *arguments]
    done = subprocess.run(command, env=planted | broken, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
