"""The one reader of the environment: which key goes where, what wins, and what a wrong value is told."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from starsearch.errors import PreconditionMissing
from starsearch.settings import SECRETS, Settings, read_settings
from starsearch.storage import open_store

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "https://engine.example/v1"
PACKAGES = ("starsearch", "tasks", "flows")
IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch):
    """A developer's own .env must not decide a test."""
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture
def given(monkeypatch):
    """Settings from these variables; upper-case names without a prefix get ours."""

    def read(**values: str | Path) -> Settings:
        foreign = {"OPENAI_API_KEY", "GH_TOKEN", "GITHUB_TOKEN", "PREFECT_API_URL"}
        for name, value in values.items():
            monkeypatch.setenv(name if name in foreign else f"STARSEARCH_{name}", str(value))
        return read_settings()

    return read


def test_an_empty_environment_is_enough(given):
    settings = given()
    assert settings.database_url is settings.llm_base_url is settings.embedding_base_url is None
    assert settings.llm_key is settings.embedding_key is settings.github_token is None
    assert settings.github_rest_url == "https://api.github.com"


@pytest.mark.parametrize(
    ("values", "llm", "embedding"),
    [
        ({}, None, None),  # the embedded engine needs none
        ({"LLM_BASE_URL": ENGINE}, "sk-plain", None),
        ({"EMBEDDING_BASE_URL": ENGINE}, None, "sk-plain"),
        ({"LLM_BASE_URL": ENGINE, "LLM_API_KEY": "sk-own"}, "sk-own", None),
        ({"LLM_BASE_URL": ENGINE, "EMBEDDING_BASE_URL": ENGINE, "LLM_API_KEY": "sk-own"}, "sk-own", "sk-plain"),
    ],
)
def test_the_environments_openai_key_goes_only_to_an_engine_that_was_named(given, values, llm, embedding):
    settings = given(OPENAI_API_KEY="sk-plain", **values)
    assert (settings.llm_key, settings.embedding_key) == (llm, embedding)


@pytest.mark.parametrize(
    ("values", "lent"),
    [
        ({"LLM_BASE_URL": "https://api.openai.com/v1"}, False),  # its own
        ({"LLM_BASE_URL": ENGINE}, True),
        ({"LLM_BASE_URL": f"https://api.openai.com/v1,{ENGINE}"}, True),
        ({"LLM_BASE_URL": "https://api.openai.com@engine.example/v1"}, True),  # a user name, not a host
        ({"LLM_BASE_URL": ENGINE, "LLM_API_KEY": "sk-own"}, False),
        ({}, False),
    ],
)
def test_where_openais_key_goes_to_somebody_else_is_known(given, values, lent):
    assert given(OPENAI_API_KEY="sk-plain", **values).lends_openai_key("llm") is lent
    assert not given(OPENAI_API_KEY="sk-plain", **values).lends_openai_key("embedding")


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("https://api.github.com", "gho_plain"),
        ("https://api.github.com/", "gho_plain"),
        ("https://git.example/api/v3", None),
        ("http://127.0.0.1:8080", None),  # a stand-in
        ("https://api.github.com.example", None),
        ("https://api.github.com@git.example", None),  # a user name, not a host
    ],
)
@pytest.mark.parametrize("name", ["GH_TOKEN", "GITHUB_TOKEN"])
def test_the_environments_github_token_goes_only_to_github(given, name, url, token):
    assert given(**{name: "gho_plain"}, GITHUB_REST_URL=url).github_token == token


@pytest.mark.parametrize(
    ("values", "token"),
    [
        ({"GITHUB_TOKENS": "gho_own"}, "gho_own"),
        ({"GITHUB_TOKENS": " gho_own , gho_second"}, "gho_own"),
        ({"GITHUB_TOKENS": "gho_own", "GITHUB_REST_URL": "https://git.example"}, "gho_own"),  # named for it
        ({"GITHUB_TOKENS": ""}, "gho_plain"),
    ],
)
def test_our_own_setting_of_tokens_wins(given, values, token):
    assert given(GH_TOKEN="gho_plain", GITHUB_TOKEN="gho_other", **values).github_token == token


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_lie_in_a_file(given, tmp_path, name):
    path = tmp_path / "secret"
    path.write_text("from-file\n")
    settings = given(**{f"{name}_FILE": path})
    assert getattr(settings, name.lower()).get_secret_value() == "from-file"


def test_an_explicit_setting_wins_over_the_file(given, tmp_path):
    path = tmp_path / "key"
    path.write_text("from-file\n")
    assert given(LLM_API_KEY="explicit", LLM_API_KEY_FILE=path).llm_key == "explicit"


def test_an_explicit_setting_does_not_even_need_the_file(given, tmp_path):
    assert given(LLM_API_KEY="explicit", LLM_API_KEY_FILE=tmp_path / "missing").llm_key == "explicit"


@pytest.mark.parametrize("name", ["missing", ""])  # the folder itself
def test_a_file_that_cannot_be_read_is_named(given, tmp_path, name):
    with pytest.raises(PreconditionMissing, match=f"cannot read {tmp_path / name}"):
        given(LLM_API_KEY_FILE=tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONCURRENCY", "hunter2"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "65"),
        ("WORKERS", "17"),
        ("EMBEDDING_DIMENSIONS", "4001"),  # halfvec's HNSW index ends at 4000
        ("ENGINE_TIMEOUT_SECONDS", "0"),
        ("SINCE", "hunter2"),
        ("ALLOW_OLD_PGVECTOR", "hunter2"),
        ("LLM_BASE_URL", "engine.example/v1"),
        ("LLM_BASE_URL", "https://"),
        ("EMBEDDING_BASE_URL", "ftp://user:hunter2@engine.example"),  # pragma: allowlist secret
        ("GITHUB_REST_URL", "file:///etc/passwd"),
        ("LOG", "yaml"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_names_its_variable_and_echoes_nothing(given, name, value):
    with pytest.raises(PreconditionMissing, match=f"STARSEARCH_{name}: ") as caught:
        given(DATABASE_URL="postgresql://u:hunter2@db.example/x", LLM_API_KEY="hunter2", **{name: value})  # pragma: allowlist secret
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is None  # a traceback would print the values


def test_every_bad_value_is_told_at_once(given):
    with pytest.raises(PreconditionMissing, match=r"STARSEARCH_CONCURRENCY: .*; STARSEARCH_WORKERS: "):
        given(CONCURRENCY="x", WORKERS="x")


def test_secrets_do_not_show(given):
    settings = given(**dict.fromkeys(SECRETS, "hunter2"), LLM_BASE_URL=ENGINE)
    assert "hunter2" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("value", "repositories"),
    [
        ("", ()),
        ("duckdb/duckdb", ("duckdb/duckdb",)),
        (" duckdb/duckdb , pgvector/pgvector,,", ("duckdb/duckdb", "pgvector/pgvector")),
    ],
)
def test_repositories_are_comma_separated(given, value, repositories):
    assert given(REPOSITORIES=value).repositories == repositories


@pytest.mark.parametrize(
    ("value", "since"),
    [
        ("2025-03-01", datetime(2025, 3, 1, tzinfo=UTC)),  # a day is UTC's
        ("2025-03-01T12:00:00", datetime(2025, 3, 1, 12, tzinfo=UTC)),
        ("2025-03-01T12:00:00Z", datetime(2025, 3, 1, 12, tzinfo=UTC)),
        ("2025-03-01T12:00:00+02:00", datetime(2025, 3, 1, 10, tzinfo=UTC)),
    ],
)
def test_since_is_in_utc(given, value, since):
    found = given(SINCE=value).since
    assert (found, found.utcoffset()) == (since, since.utcoffset())


def test_addresses_lose_their_last_slash(given):
    assert given(LLM_BASE_URL=f"{ENGINE}/").llm_base_url == ENGINE


def test_prefects_own_setting_is_read_by_its_own_name(given):
    assert given(PREFECT_API_URL="http://127.0.0.1:4200/api").prefect_api_url == "http://127.0.0.1:4200/api"


@pytest.fixture(scope="module")
def imports(tmp_path_factory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """One process a package, side by side: Prefect takes seconds to import."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home"))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = {
        package: subprocess.Popen([sys.executable, "-c", IMPORT_ALL, package], env=environment, cwd=ROOT, **pipes) for package in PACKAGES
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_imports_with_an_empty_environment(imports, package):
    count, errors = imports[package].communicate(timeout=120)
    assert imports[package].returncode == 0, errors
    assert int(count) > 0


def test_a_key_follows_a_version_only_to_the_host_it_was_set_for(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-happens-to-be-set")
    settings = Settings(
        _env_file=None,
        embedding_base_url="https://one.example/v1",
        embedding_api_key="sk-one",
        engine_api_keys="two.example=sk-two, three.example:8000=sk-three",
    )
    assert settings.embedding_key == "sk-one"
    expected = {
        "https://one.example/other/v1": "sk-one",
        "https://two.example/v1": "sk-two",
        "http://three.example:8000/v1": "sk-three",
        "http://three.example/v1": None,
        "https://one.example.evil/v1": None,
    }
    for url, key in expected.items():
        moved = settings.with_engine("embedding", url, "m")
        assert (moved.embedding_base_url, moved.embedding_model, moved.embedding_key) == (url, "m", key)
    assert settings.with_engine("llm", "https://api.openai.com/v1", "m").llm_key is None


async def test_a_job_in_a_cluster_does_not_keep_its_results_to_itself(tmp_path):
    with pytest.raises(PreconditionMissing, match="pipeline-secrets of namespace starsearch"):
        async with open_store(Settings(_env_file=None, home=tmp_path, kubernetes_namespace="starsearch")):
            pass
