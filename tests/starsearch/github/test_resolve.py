"""Names to node ids: renamed, private, gone, and what is not known to be any of these."""

import json
from typing import Any

import httpx2
import pytest

from starsearch.errors import RateLimited, SourceUnavailable
from starsearch.github.batches import Failed, Missing
from starsearch.github.resolve import NAMES, resolve
from starsearch.models import RepositoryFacts
from tests.starsearch.github.wire import Response, Wire, data, error, failure, quota, refused

pytestmark = pytest.mark.usefixtures("time")


def repository(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"R_{name}",
        "databaseId": 71,
        "nameWithOwner": name,
        "isArchived": False,
        "isPrivate": False,
        "stargazerCount": 1_234,
    } | fields


def facts(name: str) -> RepositoryFacts:
    return RepositoryFacts(f"R_{name}", name, 71, False, 1_234)


def asked_names(variables: dict[str, str]) -> list[str]:
    return [f"{variables[f'o{n}']}/{variables[f'n{n}']}" for n in range(len(variables) // 2)]


def answering(request: httpx2.Request, *, most: int = NAMES) -> Response:
    names = asked_names(json.loads(request.content)["variables"])
    return data(**{f"r{n}": repository(name) for n, name in enumerate(names)}) if len(names) <= most else failure(502)


async def ask(wire: Wire, *names: str):
    async with wire.open() as github:
        return await resolve(github, names)


async def test_names_become_facts():
    wire = Wire(answering)
    assert await ask(wire, "quillcap/marlframe", "duckdb/duckdb") == {
        "quillcap/marlframe": facts("quillcap/marlframe"),
        "duckdb/duckdb": facts("duckdb/duckdb"),
    }
    assert len(wire.asked) == 1


async def test_a_hundred_names_are_asked_at_a_time():
    wire = Wire(answering)
    names = [f"owner/repo-{n}" for n in range(250)]
    assert await ask(wire, *names) == {name: facts(name) for name in names}
    assert [asked_names(asked.variables) for asked in wire.asked] == [names[:100], names[100:200], names[200:]]


async def test_no_names_ask_nothing():
    wire = Wire(answering)
    assert await ask(wire) == {}
    assert not wire.asked


async def test_a_renamed_repository_tells_its_new_name():
    wire = Wire(data(r0=repository("new/name")))
    assert await ask(wire, "old/name") == {"old/name": facts("new/name")}
    assert "followRenames: true" in wire.asked[0].query


async def test_a_name_is_a_variable_and_never_part_of_the_query():
    wire = Wire(answering)
    await ask(wire, 'x") { id } #/y')
    assert wire.asked[0].variables == {"o0": 'x") { id } #', "n0": "y"}
    assert "x" not in wire.asked[0].query.split("{", 1)[1].replace("nextPage", "")


@pytest.mark.parametrize("cut", [{"r0", "r1", "r2"}, {"r1", "r2"}, {"r2"}])
@pytest.mark.parametrize("reason", ["RESOURCE_LIMITS_EXCEEDED", None])
async def test_names_that_an_answer_was_cut_short_before_are_asked_again(cut, reason):
    def reply(request: httpx2.Request) -> Response:
        names = asked_names(json.loads(request.content)["variables"])
        told = {f"r{n}": repository(name) for n, name in enumerate(names)}
        if len(names) < 3:
            return data(**told)
        return data(**told | dict.fromkeys(cut), errors=[error(reason, [alias]) for alias in sorted(cut)] if reason else [])

    names = ["a/a", "b/b", "c/c"]
    wire = Wire(reply)
    assert await ask(wire, *names) == {name: facts(name) for name in names}
    assert len(wire.asked) == (3 if len(cut) == 3 else 2)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (data(r0=None, r1=repository("b/b"), errors=[error("NOT_FOUND", ["r0"])]), Missing()),
        (data(r0=repository("a/a", isPrivate=True), r1=repository("b/b")), Missing()),  # its existence is nobody's business
        (data(r0=None, r1=repository("b/b"), errors=[error("FORBIDDEN", ["r0"], "SAML")]), Failed("FORBIDDEN", "SAML")),
        (data(r0=None, r1=repository("b/b"), errors=[error("", ["r0"], "oops")]), Failed("error", "oops")),
        (
            data(r0=None, r1=repository("b/b"), errors=[error("RESOURCE_LIMITS_EXCEEDED", ["r0"], "cut")]),
            Failed("RESOURCE_LIMITS_EXCEEDED", "cut"),
        ),
        (data(r0=None, r1=repository("b/b")), Failed("null without a reason", "'id'")),
        (data(r1=repository("b/b")), Failed("null without a reason", "'id'")),
        (data(r0="x", r1=repository("b/b")), Failed("null without a reason", "string indices must be integers, not 'str'")),
    ],
)
async def test_one_name_that_is_not_told_does_not_touch_the_others(reply, expected):
    assert await ask(Wire(reply), "a/a", "b/b") == {"a/a": expected, "b/b": facts("b/b")}


async def test_too_many_names_are_asked_in_halves():
    wire = Wire(lambda request: answering(request, most=2))
    names = [f"a/{n}" for n in range(5)]
    async with wire.open() as github:
        assert await resolve(github, names) == {name: facts(name) for name in names}
    assert github.usage.splits == 2


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (failure(502), "QueryTooHeavy"),
        (failure(500), "AnswerUnusable"),
        (Response(200, html="<html>"), "AnswerUnusable"),
        (refused(error("undefinedField")), "QueryRefused"),
    ],
)
async def test_what_github_does_not_answer_is_not_missing(reply, reason):
    found = await ask(Wire(reply), "a/a")
    assert isinstance(found["a/a"], Failed)
    assert found["a/a"].reason == reason


async def test_limits_and_an_outage_are_raised():
    with pytest.raises(RateLimited):
        await ask(Wire(failure(403, **quota(0, resets_in=3_000))), "a/a")
    with pytest.raises(SourceUnavailable):
        await ask(Wire(failure(500)), *[f"a/{n}" for n in range(200)])
