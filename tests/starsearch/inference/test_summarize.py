"""One item to one summary: what an engine may answer, and what becomes of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from starsearch.errors import DigestFailed, EngineUnavailable
from starsearch.inference.client import Engine, counting, open_client
from starsearch.inference.prompts import MAX_SUMMARY_TOKENS, instructions
from starsearch.inference.summarize import SHRINKS, first_prompt, summarize
from starsearch.models import DueItem, Summary
from tests.stub_engine import completion, failure

LONG_BODY = "word " * 20_000
GOOD = "The totals are wrong: they are doubled in autumn."
UNFOUNDED = "The totals are doubled since version 7.3.1."
NO_ROLES = {"error": {"message": "Conversation roles must alternate user/assistant/user/assistant/...", "code": 400}}
NO_SEED = {"error": {"message": "Unsupported parameter", "param": "seed", "code": "unsupported_parameter"}}
TOO_LONG = {"error": {"message": "This model's maximum context length is 8192 tokens: too long", "code": 400}}


def due(**fields: Any) -> DueItem:
    values = {"id": 1, "type": "issue", "state": "open", "title": "Totals are wrong", "body": "Doubled in autumn.", "comments": ()}
    return DueItem(**values | {"content_hash": b"", "partition_at": datetime(2025, 3, 1, tzinfo=UTC)} | fields)


@asynccontextmanager
async def engine(*answers: httpx2.Response | Exception, model: str = "m") -> AsyncIterator[tuple[Engine, list[dict[str, Any]]]]:
    """Gives the answers in order, the last one for ever; and the requests' bodies."""
    asked: list[dict[str, Any]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        answer = answers[min(len(asked), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with open_client("http://engine.example/v1", transport=httpx2.MockTransport(handle), patience_seconds=0) as opened:
        yield Engine(opened, "http://engine.example/v1", model), asked


def answer(**fields: Any) -> httpx2.Response:
    # json.dumps escapes what no encoder of a response would let through
    return httpx2.Response(200, content=json.dumps(fields).encode(), headers={"content-type": "application/json"})


def choice(content: Any, finish_reason: str = "stop") -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}


async def summary_of(engine: Engine, item: DueItem) -> Summary:
    return await summarize(engine, item, first_prompt(engine, item))


async def test_a_summary_tells_its_key_and_what_it_cost():
    item = due()
    async with engine(completion("  The totals\nare doubled in autumn.\n")) as (opened, asked):
        summary = await summary_of(opened, item)
        assert summary.key == first_prompt(opened, item).key(opened.model)
    assert (summary.text, summary.source, summary.gate_reason) == ("The totals are doubled in autumn.", "model", None)
    assert (summary.prompt_tokens, summary.completion_tokens) == (10, 5)
    [body] = asked
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("m", 0, 0, MAX_SUMMARY_TOKENS)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


async def test_summaries_of_the_embedded_engine_are_marked():
    async with engine(completion("The totals are doubled."), model="embedded-extractive-v1") as (opened, _):
        assert (await summary_of(opened, due())).source == "extractive"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(choices=[]), "unreadable answer"),
        (answer(choices=None), "unreadable answer"),
        (answer(), "unreadable answer"),
        (answer(choices=[{}]), "unreadable answer"),  # a choice without a message
        (answer(choices=[choice(5)]), "unreadable answer"),
        (httpx2.Response(200, html="<h1>Sign in</h1>"), "unreadable answer"),  # a proxy's page
        (httpx2.Response(200, content=b"{cut off", headers={"content-type": "application/json"}), "unreadable answer"),
        (failure(500), "HTTP 500"),
    ],
)
async def test_a_useless_answer_fails_the_item_and_may_be_tried_again(said, reason):
    async with engine(said) as (opened, _):
        with pytest.raises(DigestFailed) as caught:
            await summary_of(opened, due())
    assert (caught.value.reason, caught.value.permanent) == (reason, False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx2.ReadTimeout("slow"), DigestFailed),
        (httpx2.ConnectError("refused"), EngineUnavailable),
    ],
)
async def test_no_answer_is_translated(error, kind):
    async with engine(error) as (opened, _):
        with pytest.raises(kind):
            await summary_of(opened, due())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (completion(""), "empty"),
        (completion(" \n"), "empty"),
        (answer(choices=[choice(None)]), "empty"),
        (completion("The totals are", "length"), "cut off"),
        (completion("", "length"), "cut off"),  # all of it was thinking
        (completion("I'm sorry, but I cannot summarize the totals."), "speaks of itself"),
        (completion(UNFOUNDED), "unfounded version"),
    ],
)
async def test_after_two_answers_that_do_not_pass_the_items_own_sentences_stand(said, reason):
    async with engine(said) as (opened, asked):
        item = due()
        summary = await summary_of(opened, item)
        assert summary.key == first_prompt(opened, item).key(opened.model)
    assert (summary.text, summary.source, summary.gate_reason) == ("Doubled in autumn.", "extractive", reason)
    assert [body["messages"][0]["content"] for body in asked] == [instructions("v2"), instructions("v2", again=True)]
    assert [body["max_tokens"] for body in asked] == [MAX_SUMMARY_TOKENS, 2 * MAX_SUMMARY_TOKENS]


async def test_both_answers_are_paid_for_and_the_second_may_pass():
    async with engine(completion(UNFOUNDED), completion(GOOD)) as (opened, asked):
        summary = await summary_of(opened, due())
    assert (summary.text, summary.source, summary.gate_reason) == (GOOD, "model", None)
    assert (summary.prompt_tokens, summary.completion_tokens) == (20, 10)
    assert len(asked) == 2


async def test_an_answer_that_cannot_be_read_costs_what_came_before_it():
    async with engine(completion(UNFOUNDED), answer(choices=[], usage=None)) as (opened, _):
        with counting() as spent, pytest.raises(DigestFailed, match="no choices"):
            await summary_of(opened, due())
    assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (2, 10, 5)


async def test_a_text_that_is_too_long_is_cut_once():
    item = due(body=LONG_BODY)
    async with engine(httpx2.Response(400, json=TOO_LONG), completion("Words and words, as the totals are wrong.")) as (opened, asked):
        summary = await summary_of(opened, item)
        assert summary.key == first_prompt(opened, item).key(opened.model)  # known by the whole text, however much of it was read
    assert summary.source == "model"
    first, second = (len(body["messages"][1]["content"]) for body in asked)
    assert first / second == pytest.approx(4, rel=0.05)


async def test_a_text_that_is_refused_at_any_length_is_given_up():
    async with engine(httpx2.Response(400, json=TOO_LONG)) as (opened, asked):
        with pytest.raises(DigestFailed, match="too long") as caught:
            await summary_of(opened, due(body=LONG_BODY))
    assert (caught.value.reason, caught.value.permanent) == ("HTTP 400", True)
    assert len(asked) == SHRINKS + 1


@pytest.mark.parametrize("message", ["Conversation roles must alternate user/assistant/...", "System role not supported"])
async def test_a_template_without_a_system_role_gets_the_same_text_in_one_turn_from_then_on(message):
    refused = httpx2.Response(400, json={"error": {"message": message, "code": 400}})
    async with engine(refused, completion(GOOD)) as (opened, asked):
        for _ in range(2):
            assert (await summary_of(opened, due())).text == GOOD
    roles = [[message["role"] for message in body["messages"]] for body in asked]
    assert roles == [["system", "user"], ["user"], ["user"]]
    system, user = asked[0]["messages"]
    assert asked[1]["messages"][0]["content"] == f"{system['content']}\n\n{user['content']}"


@pytest.mark.parametrize(
    ("model", "turns"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", 1),
        ("mistral-7b-instruct-v0.1.Q4_K_M.gguf", 1),
        ("google/gemma-2-9b-it", 1),
        ("mistralai/Mistral-7B-Instruct-v0.3", 2),
        ("Qwen/Qwen3-4B-Instruct-2507", 2),
    ],
)
async def test_models_known_to_have_no_system_role_are_asked_so_at_once(model, turns):
    async with engine(completion(GOOD), model=model) as (opened, asked):
        await summary_of(opened, due())
    assert [len(body["messages"]) for body in asked] == [turns]


async def test_an_engine_that_takes_no_seed_is_not_sent_one_again():
    async with engine(httpx2.Response(400, json=NO_SEED), completion(GOOD)) as (opened, asked):
        for _ in range(2):
            await summary_of(opened, due())
    assert ["seed" in body for body in asked] == [True, False, False]


async def test_a_400_about_roles_that_one_turn_does_not_cure_ends():
    async with engine(httpx2.Response(400, json=NO_ROLES)) as (opened, asked):
        with pytest.raises(DigestFailed, match="roles"):
            await summary_of(opened, due())
    assert len(asked) == 1 + SHRINKS + 1


async def test_what_no_database_takes_is_cleaned():
    async with engine(answer(choices=[choice("Totals\0 are doubled\ud800 in\r\nautumn")])) as (opened, _):
        assert (await summary_of(opened, due())).text == "Totals\ufffd are doubled\ufffd in autumn"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}])
async def test_an_engine_that_does_not_tell_its_tokens_costs_nothing(usage):
    async with engine(answer(choices=[choice(GOOD)], usage=usage)) as (opened, _):
        summary = await summary_of(opened, due())
    assert (summary.prompt_tokens, summary.completion_tokens) == (0, 0)
