"""Secrets stay where they were put: a canary is planted in every secret setting, and everything that was written is searched for them."""

import base64
import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from starsearch.settings import SECRETS
from tests.crawls import key_pair
from tests.model_server import running

pytestmark = pytest.mark.flows

CANARY = "canary-5f1e"
PRIVATE_KEY, PUBLIC_KEY = key_pair()
CANARIES = {name: f"{CANARY}-{name}" for name in SECRETS} | {
    "GITHUB_APP_PRIVATE_KEY": PRIVATE_KEY,
    "PREFECT_API_AUTH_STRING": f"admin:{CANARY}-PREFECT",
}
CRASHING_SECONDS = 120


def signs(name):
    """What gives a secret away: itself, any line of a key, and what goes over the wire in place of a login."""
    secret = CANARIES[name]
    found = [line for line in secret.splitlines() if len(line) > 20 and "PRIVATE KEY" not in line]
    return [*found, secret.partition(":")[2] or secret, base64.b64encode(secret.encode()).decode()]


SIGNS = {name: [sign for sign in signs(name) if sign] for name in CANARIES}


def told(places):
    """(secret, place) of each secret that is written somewhere; `places`: name → text or bytes."""
    texts = {place: text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for place, text in places.items()}
    return [(name, place) for name in CANARIES for place, text in texts.items() if any(sign.encode() in text for sign in SIGNS[name])]


@pytest.fixture(scope="module")
def prefect_server():
    """One that asks for its password; its database."""
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_DATABASE_CONNECTION_URL,
        PREFECT_SERVER_API_AUTH_STRING,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    import flows  # noqa: F401  its defaults must be set before Prefect is imported

    login = dict.fromkeys((PREFECT_SERVER_API_AUTH_STRING, PREFECT_API_AUTH_STRING), CANARIES["PREFECT_API_AUTH_STRING"])
    with temporary_settings(login), prefect_test_harness(server_startup_timeout=180), temporary_settings(login):
        yield Path(PREFECT_API_DATABASE_CONNECTION_URL.value().split("///")[1])


@pytest.fixture
def engine():
    """One that refuses whoever has none of its keys, on every page; and its address."""
    with running(keys=[CANARIES["LLM_API_KEY"], CANARIES["EMBEDDING_API_KEY"]]) as served:
        yield served


@pytest.fixture
def planted(environment, engine, standin, world, monkeypatch):
    """An environment with a canary in each secret; one repository to crawl, by a token and by an App."""
    repository = world.add_repository("quillcap/marlframe")
    for n in range(1, 4):
        world.add_item(repository, "issue", title=f"Totals are wrong in report {n}", body="The sum is doubled in every report of autumn.")
    standin.tokens.add(CANARIES["GITHUB_TOKENS"])
    standin.limits.register_app("4711", PUBLIC_KEY, ["77"])
    formed = {
        "DATABASE_URL": f"{environment['STARSEARCH_DATABASE_URL']} password={CANARIES['DATABASE_URL']}",
        "ENGINE_API_KEYS": f"elsewhere.example={CANARIES['ENGINE_API_KEYS']}",
    }
    settings = {
        "GITHUB_GRAPHQL_URL": standin.graphql_url,
        "GITHUB_REST_URL": standin.url,
        "GITHUB_APP_ID": "4711",
        "GITHUB_APP_INSTALLATION_ID": "77",
        "LLM_BASE_URL": engine[1],
        "EMBEDDING_BASE_URL": engine[1],
        "LLM_MODEL": "extractive",
        "EMBEDDING_MODEL": "words-64",
        "SINCE": "2020-01-01",
    }
    for name, value in ({name: CANARIES[name] for name in SECRETS} | formed | settings).items():
        monkeypatch.setenv(f"STARSEARCH_{name}", value)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", CANARIES["PREFECT_API_AUTH_STRING"])
    return dict(os.environ)


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


def everything_below(folder):
    """The bytes of every file."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a database tidies up
            if path.is_file():
                found[str(path)] = path.read_bytes()
    return found


@pytest.mark.parametrize("name", CANARIES)
def test_a_secret_that_is_written_is_seen(name):
    """By the search that the tests below rely on: each secret alone, in the middle of a line, as text and as bytes."""
    for sign in SIGNS[name]:
        assert told({"log": f"user=x {sign}, and more", "other": "nothing"}) == [(name, "log")]
        assert told({"core": b"\0\xff" + sign.encode() + b"\0"}) == [(name, "core")]


async def test_no_secret_is_in_anything_that_a_run_writes(prefect_server, planted, engine, standin, caplog, capfd, monkeypatch):
    from flows.crawl import crawl

    assert {f"STARSEARCH_{name}" for name in SECRETS} < set(planted)
    counts = await crawl(repositories=["quillcap/marlframe"])
    assert counts["embedded"] == 3
    assert standin.counters.tokens_issued == 1  # the App's key was used, too
    engine[0].keys = {"Bearer another"}
    with pytest.raises(Exception, match="refuses the key"):
        await crawl(repositories=["quillcap/marlframe"])
    for name in ("APP_ID", "APP_PRIVATE_KEY", "APP_INSTALLATION_ID"):
        monkeypatch.delenv(f"STARSEARCH_GITHUB_{name}")
    standin.tokens.clear()
    standin.tokens.add("another")
    with pytest.raises(Exception, match="refuses token 1 of 1"):
        await crawl(repositories=["quillcap/marlframe"])

    prefect = everything_of_prefect(prefect_server)
    assert "quillcap" in prefect["artifact"] + prefect["flow_run"]  # it was looked at after the fact
    database = everything_in(planted["STARSEARCH_DATABASE_URL"])
    assert "quillcap" in database
    written = capfd.readouterr()
    places = {"database": database, "log": caplog.text, "out": written.out, "err": written.err}
    assert told(prefect | places | everything_below(prefect_server.parent)) == []


def test_no_secret_is_left_behind_by_a_process_that_crashes(planted, engine, tmp_path):
    """With requests under way, aborted; where the machine would keep a core dump, which is all that a process knew."""

    allowed, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))  # inherited
    engine[0].held.clear()
    command = [sys.executable, "-X", "faulthandler", "-X", "dev", "-m", "starsearch.cli", "crawl", "--repo", "quillcap/marlframe"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    home = tmp_path / "home"
    environment = planted | {"STARSEARCH_HOME": str(home), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes) as process:
        resource.setrlimit(resource.RLIMIT_CORE, (allowed, most))
        deadline = time.monotonic() + CRASHING_SECONDS
        while not engine[0].requests["chat"] and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate(timeout=CRASHING_SECONDS)
    engine[0].held.set()
    assert engine[0].requests["chat"], "it crashed with a request under way"
    assert process.returncode == -signal.SIGABRT, err
    assert b"Fatal Python error: Aborted" in err
    assert b"starsearch" in err  # the stack was told
    places = {"out": out, "err": err, "database": everything_in(planted["STARSEARCH_DATABASE_URL"])}
    assert told(places | everything_below(tmp_path)) == []


@pytest.mark.parametrize(
    ("broken", "arguments"),
    [
        ({"STARSEARCH_DATABASE_URL": f"postgresql://somebody:{CANARIES['DATABASE_URL']}@127.0.0.1:1/x"}, ["status"]),
        ({"STARSEARCH_DATABASE_URL": f"postgresql://somebody:{CANARIES['DATABASE_URL']}/@127.0.0.1:1/x"}, ["status"]),
        ({"STARSEARCH_GITHUB_GRAPHQL_URL": "http://127.0.0.1:1/graphql"}, ["crawl", "--repo", "quillcap/marlframe"]),
        ({"STARSEARCH_LLM_BASE_URL": "http://127.0.0.1:1/v1", "STARSEARCH_ENGINE_PATIENCE_SECONDS": "0"}, ["digest"]),
        ({"STARSEARCH_GITHUB_TOKENS": f"{CANARIES['GITHUB_TOKENS']}\nevil: header"}, ["crawl", "--repo", "quillcap/marlframe"]),
        ({}, ["doctor"]),
        ({"PREFECT_API_URL": "http://127.0.0.1:1/api", "STARSEARCH_DISPATCH": "deployment"}, ["doctor"]),
        ({"STARSEARCH_LLM_API_KEY": f"{CANARIES['LLM_API_KEY']}-old"}, ["digest"]),  # the engine refuses it
        ({"STARSEARCH_GITHUB_APP_PRIVATE_KEY": PRIVATE_KEY[:300]}, ["crawl", "--repo", "quillcap/marlframe"]),  # cut off
        ({"STARSEARCH_CONCURRENCY": "none"}, ["status"]),  # a setting that is refused, beside secrets
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_no_error_tells_a_secret(planted, broken, arguments):
    command = [sys.executable, "-X", "faulthandler", "-m", "starsearch.cli", *arguments]
    done = subprocess.run(command, env=planted | broken, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout + done.stderr
    assert told({"out": done.stdout, "err": done.stderr}) == []
