"""GitHub opened as the settings say: which source, who asks, and where a token may go."""

import itertools
import logging
from contextlib import AsyncExitStack

import pytest

from starsearch.errors import PreconditionMissing
from starsearch.github.client import GitHub
from starsearch.github.credentials import AppInstallation, Token
from starsearch.github.rest import RestSource
from starsearch.settings import Settings
from starsearch.sources import crawl_options, credentials, open_any, open_graphql

APP = {"github_app_id": "4711", "github_app_private_key": "canary-key", "github_app_installation_id": "77"}
ENTERPRISE = {"github_graphql_url": "https://git.example/api/graphql", "github_rest_url": "https://git.example/api/v3"}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in ("GH_TOKEN", "GITHUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def given(**values: object) -> Settings:
    return Settings(_env_file=None, **values)


async def opened(settings: Settings, **how: int) -> GitHub | RestSource:
    async with AsyncExitStack() as stack:
        return await stack.enter_async_context(open_any(settings, **how))


@pytest.mark.parametrize(
    ("values", "newest", "source"),
    [
        ({}, None, RestSource),  # a handful of repositories needs no credential
        ({"github_tokens": "ghp_a"}, None, GitHub),
        (APP, None, GitHub),
        ({"github_tokens": "ghp_a"}, 30, RestSource),  # only its listing gives the newest so many
        ({"github_tokens": " , "}, None, RestSource),
        (ENTERPRISE, None, RestSource),
        (ENTERPRISE | {"github_tokens": "ghp_a"}, None, GitHub),
    ],
)
async def test_which_source_for_which_settings(values, newest, source):
    assert type(await opened(given(**values), newest=newest)) is source


@pytest.mark.parametrize("name", ["GH_TOKEN", "GITHUB_TOKEN"])
async def test_a_token_from_the_plain_environment_goes_to_api_github_com_only(monkeypatch, name):
    monkeypatch.setenv(name, "gho_plain\n")  # a line break that came with a secret
    [credential] = credentials(given())
    assert credential.source == Token("token 1 of 1", "gho_plain")
    assert type(await opened(given())) is GitHub
    assert credentials(given(**ENTERPRISE)) == []
    assert credentials(given(github_graphql_url="https://api.github.com.example/graphql")) == []
    assert type(await opened(given(**ENTERPRISE))) is RestSource
    assert given(**ENTERPRISE).github_token is None


@pytest.mark.parametrize("separator", [",", ", ", "\n", ",\n", " "])
def test_every_token_becomes_a_credential_of_its_own(separator):
    found = credentials(given(github_tokens=separator.join(["ghp_a", "ghp_b", "ghp_c"]), github_in_flight=7))
    assert [credential.source for credential in found] == [
        Token("token 1 of 3", "ghp_a"),
        Token("token 2 of 3", "ghp_b"),
        Token("token 3 of 3", "ghp_c"),
    ]
    assert {credential.most for credential in found} == {credential.allowed for credential in found} == {7}


def test_an_app_is_asked_beside_the_tokens_once_for_each_installation():
    values = APP | {"github_tokens": "ghp_a", "github_app_installation_id": "77, 78,", "github_app_private_key": "first\\nsecond"}
    found = [credential.source for credential in credentials(given(**values))]
    assert found == [
        Token("token 1 of 1", "ghp_a"),
        AppInstallation("4711", "77", "first\nsecond", "https://api.github.com"),
        AppInstallation("4711", "78", "first\nsecond", "https://api.github.com"),
    ]


def test_an_apps_proof_goes_to_the_server_of_the_settings():
    [credential] = credentials(given(**APP, **ENTERPRISE))
    assert credential.source == AppInstallation("4711", "77", "canary-key", "https://git.example/api/v3")


@pytest.mark.parametrize("missing", [*itertools.combinations(APP, 1), *itertools.combinations(APP, 2)])
@pytest.mark.parametrize("tokens", [{}, {"github_tokens": "ghp_a"}])
async def test_half_an_app_is_refused(missing, tokens):
    settings = given(**{name: value for name, value in APP.items() if name not in missing}, **tokens)
    with pytest.raises(
        PreconditionMissing, match="needs all of STARSEARCH_GITHUB_APP_ID, _APP_PRIVATE_KEY and _APP_INSTALLATION_ID"
    ) as caught:
        await opened(settings)
    assert caught.value.exit_code == 3
    assert "canary" not in str(caught.value)


async def test_graphql_without_a_credential_names_what_to_set():
    with pytest.raises(PreconditionMissing, match="STARSEARCH_GITHUB_TOKENS"):
        async with open_graphql(given()):
            pass


@pytest.mark.parametrize(
    "addresses",
    [
        {"github_graphql_url": "https://git.example/api/graphql"},
        {"github_rest_url": "https://git.example/api/v3"},
        ENTERPRISE | {"github_rest_url": "https://old.example/api/v3"},
        {"github_rest_url": "https://api.github.com.example"},
    ],
)
async def test_two_different_servers_are_refused(addresses):
    with pytest.raises(PreconditionMissing, match="name different servers"):
        await opened(given(github_tokens="ghp_a", **addresses))


@pytest.mark.parametrize(
    "addresses",
    [
        {},
        ENTERPRISE,
        {"github_graphql_url": "http://127.0.0.1:8001/graphql", "github_rest_url": "http://127.0.0.1:8002"},
        {"github_rest_url": "https://API.github.com/"},
    ],
)
async def test_one_server_is_opened(addresses):
    assert isinstance(await opened(given(github_tokens="ghp_a", **addresses)), GitHub)


async def test_a_secret_is_never_printed(caplog):
    caplog.set_level(logging.DEBUG)
    settings = given(github_tokens="canary-token", **APP)
    async with open_graphql(settings) as github:
        assert "canary" not in f"{settings!r} {credentials(settings)!r} {github.pool.credentials} {crawl_options(settings)} {caplog.text}"


def test_crawl_options_are_the_settings():
    options = crawl_options(given(github_host="git.example", comments=3, github_batch=25, since="2026-03-01T00:00:00Z"), newest=30)
    assert (options.host, options.comments, options.batch, options.newest) == ("git.example", 3, 25, 30)
    assert options.since.isoformat() == "2026-03-01T00:00:00+00:00"
