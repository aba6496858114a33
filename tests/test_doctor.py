"""`doctor`: of a whole system it says that nothing is wrong; of each thing planted wrong it says that one line, with what to do."""

import re

import numpy as np
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from starsearch import doctor
from starsearch.engines import open_engines
from starsearch.settings import Settings
from starsearch.store import migrate
from starsearch.store.identity import check_models
from starsearch.store.pauses import pause
from starsearch.store.versions import ensure_version
from tests.model_server import running

NOBODY = "http://127.0.0.1:1"
KEY = "sk-asked-for"


@pytest.fixture(scope="module")
def model_server():
    with running(keys=[KEY]) as (_, url):
        yield url


@pytest.fixture
def sound(home, dsn, standin, model_server):
    """The settings of a system in which nothing is wrong; keyword arguments plant something."""
    values = {
        "home": home,
        "database_url": dsn,
        "github_graphql_url": standin.graphql_url,
        "github_rest_url": standin.url,
        "github_tokens": "token-a",
    } | {
        f"{purpose}_{name}": value
        for purpose, model in (("llm", "extractive"), ("embedding", "words-64"))
        for name, value in (("base_url", model_server), ("model", model), ("api_key", KEY))
    }

    def build(**planted):
        return Settings(_env_file=None, **values | planted)

    return build


async def found_wrong(settings):
    """name → (level, message) of what is not as it should be."""
    return {check.name: (check.level, check.message) async for check in doctor.checks(settings) if check.level != "ok"}


async def test_nothing_is_found_where_nothing_is_wrong(sound):
    assert await found_wrong(sound()) == {}


@pytest.mark.parametrize(
    ("planted", "name", "level", "message"),
    [
        ({"llm_base_url": f"{NOBODY}/v1"}, "summaries", "error", "no engine answers at .*start it, or correct STARSEARCH_LLM_BASE_URL"),
        ({"llm_api_key": "sk-old"}, "summaries", "error", r"refuses the key \(HTTP 401\): set STARSEARCH_LLM_API_KEY"),
        ({"embedding_api_key": "sk-old"}, "embeddings", "error", "refuses the key.*set STARSEARCH_EMBEDDING_API_KEY"),
        ({"llm_base_url": f"{{}},{NOBODY}/v1"}, "summaries", "warning", f"silent: {NOBODY}/v1: start them, or take them out"),
        (
            {"llm_model": "no-such"},
            "summaries",
            "error",
            r"serves extractive, .*set STARSEARCH_LLM_MODEL to one of these \(it is no-such\)",
        ),
        ({"database_url": "postgresql://a@127.0.0.1:1/x"}, "database", "error", "no PostgreSQL at 127.0.0.1:1/x .*STARSEARCH_DATABASE_URL"),
        ({"github_graphql_url": f"{NOBODY}/graphql", "github_rest_url": NOBODY}, "GitHub", "warning", f"{NOBODY}.*does not answer"),
        ({"github_tokens": "token-x"}, "GitHub", "warning", "refuses token 1 of 1: replace it .STARSEARCH_GITHUB_TOKENS"),
        ({"budget_usd": 5.0}, "prices", "error", "nobody knows the price of extractive, words-64.*STARSEARCH_PRICES"),
        ({"prices": "/missing.toml"}, "prices", "error", "STARSEARCH_PRICES: /missing.toml is no price table"),
        ({"PREFECT_API_URL": f"{NOBODY}/api"}, "Prefect", "warning", "no Prefect server answers there.*start it, or correct or unset"),
        ({"dispatch": "deployment"}, "Prefect", "error", "STARSEARCH_DISPATCH=deployment needs PREFECT_API_URL"),
        ({"dispatch": "deployment", "PREFECT_API_URL": f"{NOBODY}/api"}, "Prefect", "error", "no Prefect server answers"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
async def test_what_is_planted_wrong_is_found_and_nothing_else(sound, model_server, no_naps, planted, name, level, message):
    values = {key: value.format(model_server) if isinstance(value, str) else value for key, value in planted.items()}
    found = await found_wrong(sound(**values))
    assert list(found) == [name]
    assert found[name][0] == level
    assert re.search(message, found[name][1]), found[name][1]


async def test_openais_key_on_its_way_to_somebody_else_is_found(sound, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = await found_wrong(sound(llm_api_key=None))
    assert list(found) == ["summaries"]
    assert re.search("it gets OPENAI_API_KEY: set STARSEARCH_LLM_API_KEY", found["summaries"][1])


async def test_a_pgvector_that_is_too_old_is_found(sound, monkeypatch):
    monkeypatch.setattr(migrate, "MINIMUM_PGVECTOR", (99, 0, 0))
    found = await found_wrong(sound())
    assert list(found) == ["database"]
    assert re.search(r"pgvector .* can damage HNSW indexes.*STARSEARCH_ALLOW_OLD_PGVECTOR=1", found["database"][1])


async def test_a_new_database_of_our_own_wants_nothing_done(sound):
    """The first command that needs it sets it up."""
    [database] = [check async for check in doctor.checks(sound(database_url=None)) if check.name == "database"]
    assert (database.level, "new: the first command" in database.message) == ("ok", True)


async def test_a_schema_that_is_out_of_date_is_found_and_left_as_it_is(sound, empty_dsn):
    found = await found_wrong(sound(database_url=empty_dsn))
    assert list(found) == ["database"]
    assert re.search("migrations missing: run `starsearch migrate`", found["database"][1])
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


async def test_an_address_that_may_only_read_is_found(sound, dsn):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET default_transaction_read_only = on")
    found = await found_wrong(sound())
    assert list(found) == ["database"]
    assert re.search("may only read: crawl and digest need the writer's", found["database"][1])


@pytest.mark.parametrize(("sslmode", "warned"), [("prefer", True), ("require", True), ("verify-ca", True), ("verify-full", False)])
async def test_a_server_elsewhere_that_nobody_verifies_is_found(sound, dsn, monkeypatch, sslmode, warned):
    """The test's server is on a Unix socket, where libpq looks at none of this."""
    address = make_conninfo(dsn, sslmode=sslmode)
    assert await found_wrong(sound(database_url=address)) == {}
    monkeypatch.setattr(doctor, "_local", lambda host: False)
    found = await found_wrong(sound(database_url=address))
    assert list(found) == ["database"] * warned
    assert not warned or re.search(rf"sslmode={sslmode}\): add sslmode=verify-full", found["database"][1])


@pytest.mark.parametrize(
    ("host", "local"),
    [("/run/postgresql", True), ("localhost", True), ("127.0.0.1", True), ("::1", True), ("db.example", False), ("10.0.0.7", False)],
)
def test_which_addresses_are_this_machine(host, local):
    assert doctor._local(host) is local


async def test_a_pause_is_found_with_its_reason(sound, store):
    await pause(store.pool, "disk is full")
    found = await found_wrong(sound())
    assert list(found) == ["work"]
    assert re.search("work is paused since .*disk is full.*starsearch resume", found["work"][1])


async def test_dimensions_other_than_the_databases_are_found(sound, store):
    await made_by(sound(), store)
    assert await found_wrong(sound()) == {}
    found = await found_wrong(sound(embedding_model="words-96"))
    assert list(found) == ["index"]
    assert re.search("64 dimensions, by words-64 .*`starsearch reprocess` builds it, or set them back", found["index"][1])


@pytest.mark.parametrize("dimensions", [32, 64])
async def test_another_model_behind_the_same_name_is_found(sound, store, dimensions):
    """With vectors of another length, too."""
    await made_by(sound(), store, probe=np.eye(dimensions, dtype=np.float32)[:3])
    found = await found_wrong(sound())
    assert list(found) == ["index"]
    assert found["index"][0] == "error"
    assert re.search("behind the name words-64 there is another model.*starsearch reprocess", found["index"][1])


async def made_by(settings, store, probe=None):
    """A version in the database, made by the settings' engines, or by a model that made `probe` of the fixed texts."""
    async with open_engines(settings) as engines:
        version = await ensure_version(store.pool, engines.version)
        await check_models(store.pool, version, probe=engines.probe if probe is None else probe)
