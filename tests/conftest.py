"""Shared fixtures: one real PostgreSQL for the session, a migrated database cloned for each test, fakes at the wire."""

import asyncio
import itertools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from starsearch import logs
from starsearch.embedded import postgres
from starsearch.engines import Engines
from starsearch.settings import Settings
from starsearch.storage import Store
from starsearch.store import digests
from starsearch.store.database import connect, open_database
from starsearch.store.migrate import migrate
from tests.standin.server import StandIn
from tests.standin.world import World

TEMPLATE = "starsearch_template"
SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
_numbers = itertools.count()

for _name in [name for name in os.environ if name.startswith("STARSEARCH_") or name in {"OPENAI_API_KEY", "GH_TOKEN", "GITHUB_TOKEN"}]:
    if _name != "STARSEARCH_TEST_KUBECONFIG":  # meant for them: tests/k8s/cluster.py
        del os.environ[_name]


SLOW = ("tests/flows/", "tests/test_bad_database.py", "tests/test_crawl_command.py", "tests/starsearch/web/test_browser.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of few and long tests come first: else one worker is left alone with them at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(SLOW))


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """An empty home folder; its server is stopped at the end. Reachable for the user that root's PostgreSQL runs as."""
    folder = Path(tempfile.mkdtemp(prefix="starsearch-test-"))
    folder.chmod(0o755)
    yield folder
    postgres.stop(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[postgres.EmbeddedPostgres]:
    running = postgres.start(home)
    yield running
    running.close()


@pytest.fixture(scope="session")
def template(server: postgres.EmbeddedPostgres) -> str:
    """A database built once by the real migrations."""
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {TEMPLATE}")

    async def build() -> None:
        async with await connect(server.place.dsn(TEMPLATE)) as connection:
            await migrate(connection)

    asyncio.run(build())
    return TEMPLATE


@pytest.fixture
def empty_dsn(server: postgres.EmbeddedPostgres) -> Iterator[str]:
    yield from cloned(server, "template1")


@pytest.fixture
def dsn(server: postgres.EmbeddedPostgres, template: str) -> Iterator[str]:
    yield from cloned(server, template)


def cloned(server: postgres.EmbeddedPostgres, template: str) -> Iterator[str]:
    """The address of a copy of a database, gone after its use."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield server.place.dsn(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[Store]:
    async with open_database(dsn) as pool:
        yield Store(dsn, pool)


@pytest.fixture
def settings(home: Path, dsn: str) -> Settings:
    return Settings(_env_file=None, home=home, database_url=dsn)


@pytest.fixture
def environment(home: Path, dsn: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a command or flow that uses this test's database."""
    values = {"STARSEARCH_HOME": str(home), "STARSEARCH_DATABASE_URL": dsn}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
async def engines(settings: Settings) -> AsyncIterator[Engines]:
    from starsearch.engines import open_engines

    async with open_engines(settings) as opened:
        yield opened


@pytest.fixture
def shared_data() -> Path:
    if not SHARED_DATA.exists():
        pytest.skip("no ../shared/data beside this checkout: real issues are not part of the project")
    return SHARED_DATA


@pytest.fixture
def row() -> Callable[..., dict[str, Any]]:
    """Builds one JSON Lines record; keyword arguments replace fields."""

    def build(number: int = 1, **fields: Any) -> dict[str, Any]:
        return {
            "repo": "quillcap/marlframe",
            "number": number,
            "type": "issue",
            "title": f"Totals are wrong in report {number}",
            "body": f"The sum of column {number} is doubled when the clocks go back. It happens every autumn in every report.",
            "state": "open",
            "url": f"https://github.com/quillcap/marlframe/issues/{number}",
            "created_at": "2026-03-01T10:00:00Z",
            "updated_at": "2026-03-02T10:00:00Z",
        } | fields

    return build


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes records (or raw lines) to a file, one a line."""

    def write(*records: dict[str, Any] | str, name: str = "items.jsonl") -> Path:
        path = tmp_path / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    return write


@pytest.fixture
def logs_restored() -> Iterator[None]:
    """What `write_logs` changes in this process is undone."""
    root, names = logging.getLogger(), ("", *logs.OURS)
    handlers, levels = root.handlers[:], [logging.getLogger(name).level for name in names]
    yield
    root.handlers[:] = handlers
    for name, level in zip(names, levels, strict=True):
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def told(logs_restored: None) -> list[dict[str, Any]]:
    """What is logged from now on, line by line as STARSEARCH_LOG=json writes it."""
    lines: list[dict[str, Any]] = []
    handler = logs.Stderr(logs.Json())
    handler.emit = lambda record: lines.append(json.loads(handler.format(record)))  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    for name in logs.OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    return lines


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """An item that failed is due again at once."""
    monkeypatch.setattr(digests, "RETRY_AFTER", digests.RETRY_AFTER / 1000)


@pytest.fixture
def no_naps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two tries of a question to GitHub."""
    monkeypatch.setattr("starsearch.github.client.NAPS_SECONDS", (0.0, 0.0, 0.0))


@pytest.fixture
def world() -> World:
    """What the stand-in GitHub holds: nothing yet."""
    return World()


@pytest.fixture
def standin(world: World) -> Iterator[StandIn]:
    with StandIn(world) as running:
        yield running
