"""One item to one summary: what an engine may answer, and what becomes of it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from starsearch.errors import DigestFailed, EngineUnavailable
from starsearch.inference.client import Engine, open_client
from starsearch.inference.prompts import MAX_SUMMARY_TOKENS
from starsearch.inference.summarize import SHRINKS, summarize, summary_key
from starsearch.models import DueItem
from tests.stub_engine import completion, failure

LONG_BODY = "word " * 20_000
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


async def test_a_summary_tells_its_key_and_what_it_cost():
    item = due()
    async with engine(completion("  The totals are doubled.\n")) as (opened, asked):
        summary = await summarize(opened, item)
        assert summary.key == summary_key(opened, item)
    assert (summary.text, summary.source) == ("The totals are doubled.", "model")
    assert (summary.prompt_tokens, summary.completion_tokens) == (10, 5)
    [body] = asked
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0, MAX_SUMMARY_TOKENS)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


async def test_summaries_of_the_embedded_engine_are_marked():
    async with engine(completion("The totals are doubled."), model="embedded-extractive-v1") as (opened, _):
        assert (await summarize(opened, due())).source == "extractive"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (completion(""), "empty summary"),
        (completion(" \n"), "empty summary"),
        (answer(choices=[choice(None)]), "empty summary"),
        (completion("The totals are", "length"), "cut-off summary"),
        (completion("", "length"), "cut-off summary"),  # all of it was thinking
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
            await summarize(opened, due())
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
            await summarize(opened, due())


async def test_a_text_that_is_too_long_is_halved_until_it_fits():
    item = due(body=LONG_BODY)
    async with engine(httpx2.Response(400, json=TOO_LONG), httpx2.Response(400, json=TOO_LONG), completion("Words.")) as (opened, asked):
        summary = await summarize(opened, item)
        assert summary.key == summary_key(opened, item)  # known by the whole text, however much of it was read
    assert summary.text == "Words."
    first, second, third = (len(body["messages"][1]["content"]) for body in asked)
    assert first / second == pytest.approx(2, rel=0.02)
    assert second / third == pytest.approx(2, rel=0.02)


async def test_a_text_that_is_refused_at_any_length_is_given_up():
    async with engine(httpx2.Response(400, json=TOO_LONG)) as (opened, asked):
        with pytest.raises(DigestFailed, match="too long") as caught:
            await summarize(opened, due(body=LONG_BODY))
    assert (caught.value.reason, caught.value.permanent) == ("HTTP 400", True)
    assert len(asked) == SHRINKS + 1


async def test_what_no_database_takes_is_cleaned():
    async with engine(answer(choices=[choice("A\0B\ud800C\r\nD")])) as (opened, _):
        assert (await summarize(opened, due())).text == "A\ufffdB\ufffdC\nD"


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}])
async def test_an_engine_that_does_not_tell_its_tokens_costs_nothing(usage):
    async with engine(answer(choices=[choice("Words.")], usage=usage)) as (opened, _):
        summary = await summarize(opened, due())
    assert (summary.prompt_tokens, summary.completion_tokens) == (0, 0)


async def test_a_second_attempt_may_answer_at_greater_length():
    async with engine(completion("Words.")) as (opened, asked):
        await summarize(opened, due())
        await summarize(opened, due(attempts=1))
    first, second = (body["max_tokens"] for body in asked)
    assert second > first
