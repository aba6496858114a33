"""One web process for a module's tests, over a real database that the real pipeline filled with the bundled sample."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from starsearch.embedded import postgres
from starsearch.store.database import open_database
from starsearch.store.web import create_key
from tests.starsearch.web.serving import Served, environment_of, run_command, serving

SAMPLE = Path(__file__).resolve().parents[3] / "starsearch" / "embedded" / "sample.jsonl"
_numbers = itertools.count()


@pytest.fixture(scope="session")
def filled(server: postgres.EmbeddedPostgres, template: str, home: Path) -> str:
    """A database with the bundled sample, digested once; tests that write get a copy of it."""
    with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE web_sample TEMPLATE {template}")
    run_command(environment_of(home, server.place.dsn("web_sample")), "ingest", str(SAMPLE))
    return "web_sample"


@pytest.fixture(scope="session")
def copy_of(server: postgres.EmbeddedPostgres) -> Callable[[str], str]:
    def make(template: str) -> str:
        name = f"web_{next(_numbers)}"
        with psycopg.connect(server.place.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return server.place.dsn(name)

    return make


@pytest.fixture(scope="module")
def sample_dsn(filled: str, copy_of: Callable[[str], str]) -> str:
    return copy_of(filled)


@pytest.fixture(scope="module")
def served(home: Path, sample_dsn: str) -> Iterator[Served]:
    with serving(home, sample_dsn) as running:
        yield running


@pytest.fixture
def key(sample_dsn: str) -> Callable[..., str]:
    def make(name: str, per_minute: int | None = None) -> str:
        async def create() -> str:
            async with open_database(sample_dsn, size=1) as pool:
                return await create_key(pool, name, per_minute)

        return asyncio.run(create())

    return make
