"""Many ids at once: what is halved, what is asked again, what is remembered, and what is never taken for a deletion."""

import asyncio
import json
from collections.abc import Callable, Collection
from typing import Any

import httpx2
import pytest

from starsearch.errors import RateLimited, SourceUnavailable
from starsearch.github.batches import BATCH, LARGEST, Batches, Failed, Missing
from starsearch.github.client import FAILED_REQUESTS, NAPS_SECONDS
from tests.starsearch.github.wire import URL, Response, Wire, data, error, failure, quota, refused

pytestmark = pytest.mark.usefixtures("time")

IDS = [f"R_{n}" for n in range(50)]
NULL = object()


def node(node_id: str) -> dict[str, Any]:
    return {"__typename": "Repository", "id": node_id}


def nodes(ids: Collection[str], special: dict[str, Any] | None = None) -> Response:
    """Every id's node; special: an error's type for null with that error, NULL for null without one."""
    told, errors = [], []
    for position, node_id in enumerate(ids):
        how = (special or {}).get(node_id)
        told.append(None if how else node(node_id))
        if isinstance(how, str):
            errors.append(error(how, ["nodes", position], f"{how} of {node_id}"))
    return data(nodes=told, errors=errors)


def answering(special: dict[str, Any] | None = None, *, heavy: Callable[[list[str]], bool] = lambda _: False, how: Any = None):
    """A GitHub that fails where a request is `heavy`, in the way `how`."""

    def answer(request: httpx2.Request) -> Response:
        ids = json.loads(request.content)["variables"]["ids"]
        if not heavy(ids):
            return nodes(ids, special)
        if isinstance(how, Exception):
            raise how
        return how or failure(502)

    return answer


def sizes(wire: Wire) -> list[int]:
    return [len(ids) for ids in wire.ids]


async def ask(wire: Wire, ids: Collection[str] = IDS, **how: Any):
    async with wire.open() as github:
        return await Batches(github, "check", **how).ask(list(ids))


async def test_each_id_gets_its_own_node():
    wire = Wire(answering())
    async with wire.open() as github:
        batches = Batches(github, "sweep")
        assert batches.size == BATCH
        found = await batches.ask(IDS, since="2026-03-01T00:00:00Z", newest=10)
    assert found == {node_id: node(node_id) for node_id in IDS}
    [asked] = wire.asked
    assert asked.variables == {"ids": IDS, "since": "2026-03-01T00:00:00Z", "newest": 10}
    assert "query Sweep" in asked.query


async def test_no_request_carries_more_ids_than_github_takes():
    async with Wire(answering()).open() as github:
        assert Batches(github, "check", size=1_000).size == LARGEST == 100


@pytest.mark.parametrize(
    "how",
    [
        failure(502),
        failure(504),
        httpx2.ReadTimeout("timed out"),
        refused(error("RESOURCE_LIMITS_EXCEEDED")),
        data(nodes=[None] * 50, errors=[error("RESOURCE_LIMITS_EXCEEDED")]),  # nobody in particular
        data(nodes=[node(node_id) for node_id in IDS], errors=[error("RESOURCE_LIMITS_EXCEEDED")]),  # then none is known to be whole
    ],
)
async def test_a_batch_that_is_too_heavy_is_asked_in_halves(how):
    wire = Wire(answering(heavy=lambda ids: len(ids) > 13, how=how))
    async with wire.open() as github:
        found = await Batches(github, "check").ask(IDS)
    assert found == {node_id: node(node_id) for node_id in IDS}
    assert sizes(wire) == [50, 25, 13, 12, 25, 13, 12]
    assert github.usage.splits == 3
    assert not any(wire.waits)  # smaller is another question: no need to wait


async def test_one_heavy_id_fails_alone():
    wire = Wire(answering(heavy=lambda ids: "R_17" in ids))
    found = await ask(wire)
    assert found.pop("R_17") == Failed("QueryTooHeavy", "too heavy, alone")
    assert found == {node_id: node(node_id) for node_id in IDS if node_id != "R_17"}
    assert wire.ids.count(["R_17"]) == 3
    assert sum(wire.waits) == sum(NAPS_SECONDS[:2]) / 2


async def test_one_heavy_id_that_recovers_is_found():
    wire = Wire(failure(502), failure(502), answering())
    assert await ask(wire, ["R_1"]) == {"R_1": node("R_1")}


async def test_only_what_was_cut_short_is_asked_again():
    cut = {"R_3": "RESOURCE_LIMITS_EXCEEDED", "R_7": "RESOURCE_LIMITS_EXCEEDED", "R_9": NULL}
    wire = Wire(nodes(IDS, cut), answering())
    assert await ask(wire) == {node_id: node(node_id) for node_id in IDS}
    assert wire.ids[1:] == [["R_3", "R_7"], ["R_9"]]


async def test_a_node_with_a_part_cut_off_is_not_whole():
    within = data(nodes=[node("R_1") | {"issues": None}, node("R_2")], errors=[error("RESOURCE_LIMITS_EXCEEDED", ["nodes", 0, "issues"])])
    wire = Wire(within, answering())
    assert await ask(wire, ["R_1", "R_2"]) == {"R_1": node("R_1"), "R_2": node("R_2")}
    assert wire.ids[1:] == [["R_1"]]


async def test_a_single_overload_is_bad_luck():
    wire = Wire(failure(502), answering())
    async with wire.open() as github:
        batches = Batches(github, "check")
        await batches.ask(IDS)
        assert batches.size == 50


@pytest.mark.parametrize(
    ("between", "size"),
    [
        (0, 25),
        (16, 25),  # with the two halves: the first and the last of twenty
        (17, 50),
    ],
)
async def test_two_overloads_within_twenty_requests_halve_the_size(between, size):
    replies = [failure(502), *[answering()] * (between + 2), failure(502), answering()]
    wire = Wire(*replies)
    async with wire.open() as github:
        batches = Batches(github, "check")
        await batches.ask(["R_1", "R_2"])  # the first overload, and two halves
        for _ in range(between):
            await batches.ask(["R_1"])
        await batches.ask(["R_1", "R_2"])
        assert batches.size == size
    assert len(wire.asked) == between + 6


async def test_the_size_has_a_floor_of_one_and_grows_back():
    wire = Wire(answering(heavy=lambda _: True))
    async with wire.open() as github:
        batches = Batches(github, "check")
        await batches.ask(IDS)
        assert batches.size == 1
        wire.replies = [answering()]
        grown = []
        for _ in range(500):
            await batches.ask(["R_1"])
            grown.append(batches.size)
    assert grown == sorted(grown)
    assert grown[8] == 1  # not yet: ten good answers for a tenth
    assert grown.index(2) >= 60
    assert grown[-1] == BATCH  # and never more than was asked for


async def test_not_found_is_believed_the_second_time():
    wire = Wire(answering({"R_3": "NOT_FOUND", "R_4": "NOT_FOUND"}))
    found = await ask(wire)
    assert found["R_3"] == found["R_4"] == Missing()
    assert wire.ids == [IDS, ["R_3", "R_4"]]


async def test_not_found_once_is_a_replica_that_lags():
    wire = Wire(nodes(IDS, {"R_3": "NOT_FOUND"}), answering())
    assert await ask(wire) == {node_id: node(node_id) for node_id in IDS}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (nodes(["R_3"], {"R_3": "FORBIDDEN"}), "FORBIDDEN"),
        (nodes(["R_3"], {"R_3": NULL}), "QueryTooHeavy"),
        (failure(502), "QueryTooHeavy"),
        (Response(200, html="<html>"), "AnswerUnusable"),
    ],
)
async def test_not_found_and_then_something_else_is_not_missing(second, reason):
    found = await ask(Wire(nodes(IDS, {"R_3": "NOT_FOUND"}), second))
    assert isinstance(found["R_3"], Failed)
    assert found["R_3"].reason == reason
    assert found["R_4"] == node("R_4")


@pytest.mark.parametrize(
    "reply",
    [
        data(nodes=[None]),  # null, and no word why
        data(nodes=[]),
        data(nodes=None),
        data(nodes={"0": None}),
        data(nodes=[{}]),
        data(nodes=["R_1"]),
        data(nodes=[None, None]),
        data(nodes=[None], errors=[error("NOT_FOUND")]),  # nobody knows what
        data(nodes=[None], errors=[error("NOT_FOUND", ["nodes"])]),
        data(nodes=[None], errors=[error("NOT_FOUND", ["nodes", 0, "owner"])]),
        data(nodes=[None], errors=[error("NOT_FOUND", ["nodes", 5])]),
        data(nodes=[None], errors=[error("NOT_FOUND", ["nodes", "0"])]),
        data(nodes=[None], errors=[error("NOT_FOUND", ["other", 0])]),
        data(nodes=[node("R_1")], errors=[error("NOT_FOUND", ["nodes", 0])]),
        data(nodes=[None], errors=[{"message": "no", "path": ["nodes", [0]]}]),
        data(nodes=[None], errors=[error("FORBIDDEN", ["nodes", 0]), error("NOT_FOUND", ["nodes", 0])]),
        refused(error("NOT_FOUND", ["nodes", 0])),
    ],
)
async def test_only_a_clear_not_found_is_a_deletion(reply):
    found = await ask(Wire(reply), ["R_1"])
    assert isinstance(found["R_1"], Failed)


async def test_an_id_that_is_forbidden_fails_alone():
    wire = Wire(answering({"R_3": "FORBIDDEN"}))
    found = await ask(wire)
    assert found.pop("R_3") == Failed("FORBIDDEN", "FORBIDDEN of R_3")
    assert len(found) == 49
    assert not any(isinstance(each, Failed) for each in found.values())
    assert len(wire.asked) == 1


async def test_an_error_without_a_type_fails_its_id_alone():
    wire = Wire(data(nodes=[None, node("R_2")], errors=[error("", ["nodes", 0], "Something went wrong")]))
    assert await ask(wire, ["R_1", "R_2"]) == {"R_1": Failed("error", "Something went wrong"), "R_2": node("R_2")}


async def test_a_query_that_github_refuses_fails_its_ids_and_is_not_repeated():
    wire = Wire(refused(error("undefinedField", message="Field 'x' doesn't exist")))
    found = await ask(wire)
    assert set(found.values()) == {Failed("QueryRefused", "undefinedField: Field 'x' doesn't exist")}
    assert len(wire.asked) == 1


@pytest.mark.parametrize("reply", [failure(500), httpx2.RemoteProtocolError("peer closed"), Response(200, html="<html>")])
async def test_a_lost_answer_is_asked_for_again_in_full(reply):
    wire = Wire(reply, reply, answering())
    assert await ask(wire) == {node_id: node(node_id) for node_id in IDS}
    assert sizes(wire) == [50, 50, 50]
    assert wire.waits == [seconds / 2 for seconds in NAPS_SECONDS[:2]]


async def test_an_answer_lost_three_times_fails_its_ids():
    found = await ask(Wire(Response(200, html="<html>")))
    assert len(found) == 50
    assert {each.reason for each in found.values()} == {"AnswerUnusable"}
    assert URL in found["R_0"].detail


async def test_batch_after_batch_lost_means_that_github_is_down():
    wire = Wire(httpx2.ReadError("reset"))
    async with wire.open() as github:
        batches = Batches(github, "check")
        await batches.ask(IDS)
        with pytest.raises(SourceUnavailable, match="6 requests in a row"):
            await batches.ask(IDS)
    assert len(wire.asked) == FAILED_REQUESTS


async def test_a_limit_is_no_overload():
    wire = Wire(failure(429, retry_after="10"), failure(403, retry_after="10"), answering())
    async with wire.open() as github:
        batches = Batches(github, "check")
        assert await batches.ask(IDS) == {node_id: node(node_id) for node_id in IDS}
        assert batches.size == 50
    assert sizes(wire) == [50, 50, 50]


async def test_a_limit_beyond_patience_is_raised_and_nothing_is_called_missing():
    with pytest.raises(RateLimited):
        await ask(Wire(nodes(IDS, {"R_3": "NOT_FOUND"}), failure(403, **quota(0, resets_in=3_000))))


async def test_batches_at_the_same_time_stay_within_what_is_allowed():
    wire = Wire(answering(heavy=lambda ids: len(ids) > 10), latency=0.5)
    async with wire.open() as github:
        batches = Batches(github, "check")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(batches.ask([f"R_{task}_{n}" for n in range(40)])) for task in range(6)]
        assert github.pool.most_in_flight == wire.most_in_flight == 2
    assert sum(len(task.result()) for task in tasks) == 240
    assert not any(isinstance(each, Failed | Missing) for task in tasks for each in task.result().values())
