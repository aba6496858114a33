"""The real OpenAI client on a fake wire: which engine is accepted, what is counted, and whose fault an error is."""

import asyncio
import json
from typing import Any

import httpx2
import openai
import pytest

from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed
from starsearch.inference import client, endpoints
from starsearch.inference.client import Engine, complete, counting, open_client, preflight, translate
from tests.stub_engine import completion, failure

BASE = "http://engine.example/v1"


def engine(answer: Any, **options: Any):
    def handle(request: httpx2.Request) -> httpx2.Response:
        found = answer(request) if callable(answer) else answer
        if isinstance(found, Exception):
            raise found
        return found

    return open_client(BASE, transport=httpx2.MockTransport(handle), **options)


def models(*names: str, **fields: Any) -> httpx2.Response:
    return httpx2.Response(200, json={"object": "list", "data": [{"id": name, "object": "model"} | fields for name in names]})


async def check(answer: Any, wanted: str | None = None, purpose: str = "LLM") -> Engine:
    async with engine(answer) as opened:
        return await preflight(opened, wanted, purpose=purpose)


async def ask(opened: openai.AsyncOpenAI) -> str | None:
    answer = await complete(Engine(opened, BASE, "m"), [{"role": "user", "content": "Hello"}])
    return answer.choices[0].message.content


@pytest.fixture
def no_retries(monkeypatch):
    """Preflight waits half a second and more before it asks again."""
    monkeypatch.setattr(client, "PREFLIGHT_TRIES", 1)


@pytest.mark.parametrize(
    ("served", "wanted", "taken"),
    [
        (["small", "large"], "large", "large"),
        (["small"], "small", "small"),
        (["small"], None, "small"),  # the only one need not be named
    ],
)
async def test_a_served_model_is_taken(served, wanted, taken):
    found = await check(models(*served), wanted)
    assert (found.model, found.base_url) == (taken, BASE)


@pytest.mark.parametrize(
    ("served", "wanted", "message"),
    [
        (["small", "large"], "huge", r"serves small, large; set STARSEARCH_LLM_MODEL.*it is huge"),
        (["small", "large"], None, r"serves small, large; set STARSEARCH_LLM_MODEL"),  # choosing for you could cost money
        ([], None, "serves no model"),
        ([], "small", r"serves no model.*it is small"),
    ],
)
async def test_a_model_that_is_not_served_is_named_with_those_that_are(served, wanted, message):
    with pytest.raises(ModelNotServed, match=message) as caught:
        await check(models(*served), wanted)
    assert caught.value.exit_code == 3


async def test_the_setting_of_the_right_engine_is_named():
    with pytest.raises(ModelNotServed, match="STARSEARCH_EMBEDDING_MODEL"):
        await check(models("a", "b"), purpose="EMBEDDING")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx2.ConnectError("refused"), r"no engine answers at http://engine.example/v1: start it, or correct STARSEARCH_LLM_BASE_URL"),
        (httpx2.ReadTimeout("slow"), "no engine answers"),
        (httpx2.Response(404, html="<h1>Not Found</h1>"), r"answered 404: check STARSEARCH_LLM_BASE_URL.*/v1"),
        (httpx2.Response(401, json={"error": {"message": "no key"}}), "refuses the key.*401.*set STARSEARCH_LLM_API_KEY"),
        (httpx2.Response(200, html="<h1>Welcome</h1>"), "did not answer with a list of models.*/v1"),  # a web server's start page
        (httpx2.Response(200, json=[]), "did not answer with a list of models"),
        (httpx2.Response(307, headers={"location": "http://elsewhere.example/"}), "answered 307"),  # a key must not follow
    ],
)
@pytest.mark.usefixtures("no_retries")
async def test_an_engine_that_is_not_one_is_refused_with_what_to_do(answer, message):
    with pytest.raises(EngineUnavailable, match=message) as caught:
        await check(answer)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_model_len": 4096}, 4096),  # vLLM tells
        ({}, None),  # OpenAI, Ollama and llama.cpp do not
        ({"max_model_len": None}, None),
        ({"max_model_len": "long"}, None),
    ],
)
async def test_the_context_is_what_the_engine_says(fields, tokens):
    assert (await check(models("m", **fields))).context_tokens == tokens


@pytest.mark.parametrize(("key", "sent"), [(None, "Bearer none"), ("sk-given", "Bearer sk-given")])
async def test_a_key_that_merely_is_in_the_environment_is_never_sent(key, sent, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "sk-environment")
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return models("m")

    async with engine(answer, key=key) as opened:
        await preflight(opened, None, purpose="LLM")
    assert [request.headers["authorization"] for request in asked] == [sent]
    assert "sk-environment" not in str(asked[0].headers.raw)


async def test_retries_are_counted():
    answers = [failure(500), failure(500), completion("Hello")]
    async with engine(lambda _: answers.pop(0)) as opened:
        with counting() as spent:
            assert await ask(opened) == "Hello"
    assert (spent.requests, spent.unanswered) == (3, 0)


async def test_each_counting_block_counts_its_own():
    async with engine(lambda _: completion("Hello")) as opened:
        with counting() as outer:
            await ask(opened)
            with counting() as inner:
                await ask(opened)
            await ask(opened)
        await ask(opened)  # outside of any block
    assert (outer.requests, inner.requests) == (2, 1)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (httpx2.ReadTimeout("slow"), DigestFailed, "timeout"),  # a text that takes too long is the item's fault
        (httpx2.ConnectError("refused"), EngineUnavailable, "does not answer any more"),
        (httpx2.RemoteProtocolError("closed"), EngineUnavailable, "does not answer any more"),
        (failure(401), EngineUnavailable, "refuses the key: correct STARSEARCH_LLM_API_KEY"),
        (failure(403), EngineUnavailable, "refuses the key"),
        (failure(404), ModelNotServed, "does not serve this model any more"),
        (failure(429), EngineUnavailable, "overloaded"),  # nobody's attempt is counted
        (failure(503), EngineUnavailable, "overloaded"),
        (failure(500), DigestFailed, "HTTP 500"),
        (failure(400), DigestFailed, "HTTP 400"),
        (httpx2.Response(429, json={"error": {"message": "pay", "code": "insufficient_quota"}}), EngineUnavailable, "out of credit"),
    ],
)
async def test_errors_are_the_engines_fault_or_the_items(answer, kind, message):
    async with engine(answer, patience_seconds=0) as opened:
        with pytest.raises(openai.OpenAIError) as caught:
            await ask(opened)
    translated = translate(caught.value)
    assert type(translated) is kind
    assert message in str(translated)


async def test_a_server_error_after_the_retries_is_the_items():
    async with engine(lambda _: failure(500)) as opened:
        with counting() as spent, pytest.raises(openai.InternalServerError) as caught:
            await ask(opened)
    translated = translate(caught.value)
    assert (translated.reason, translated.permanent) == ("HTTP 500", False)
    assert spent.requests == endpoints.TRIES


@pytest.mark.parametrize(
    ("answer", "reached"),
    [
        (httpx2.ConnectError("refused"), False),
        (failure(503), False),
        (httpx2.ReadError("closed"), True),  # perhaps this text is what killed it
    ],
)
async def test_an_item_is_blamed_only_where_the_engine_got_it(answer, reached):
    async with engine(answer, patience_seconds=0) as opened:
        with pytest.raises(openai.OpenAIError) as caught:
            await ask(opened)
    assert translate(caught.value).reached is reached


async def test_an_answer_without_what_nobody_needs_is_an_answer():
    bare = httpx2.Response(200, json={"choices": [{"message": {"content": "Hello"}}]})
    async with engine(bare) as opened:
        assert await ask(opened) == "Hello"


@pytest.mark.parametrize("body", ["<html>a proxy's page</html>", "[1]", '"Hello"', "null", ""])
async def test_a_200_that_holds_no_answer_is_told_apart_from_one_that_does(body):
    async with engine(httpx2.Response(200, text=body)) as opened:
        with pytest.raises((AttributeError, TypeError, ValueError)):
            await ask(opened)


async def test_a_request_is_what_the_sdk_would_have_sent():
    sent = []

    def answer(request):
        sent.append((request.method, str(request.url), json.loads(request.content), request.headers["authorization"]))
        return completion("Hello")

    async with engine(answer, key="sk-ours") as opened:
        messages = [{"role": "user", "content": "Hello"}]
        await complete(Engine(opened, BASE, "m"), messages, temperature=0, max_tokens=7)
        await opened.chat.completions.create(model="m", messages=messages, temperature=0, max_tokens=7)
    assert sent[0] == sent[1]


@pytest.mark.parametrize(("exempt", "asked"), [("", 1), ("127.0.0.9", 0)])
async def test_an_engine_is_reached_by_the_proxy_of_the_environment(exempt, asked, monkeypatch):
    lines = []

    async def proxy(reader, writer):
        lines.append((await reader.readline()).decode())
        body = models("m").content
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body))
        writer.close()

    monkeypatch.setattr(client, "PREFLIGHT_TRIES", 1)
    monkeypatch.setenv("NO_PROXY", exempt)
    monkeypatch.setenv("no_proxy", exempt)
    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        monkeypatch.setenv("HTTP_PROXY", address)
        monkeypatch.setenv("http_proxy", address)
        async with open_client("http://127.0.0.9:1/v1") as opened:
            if asked:
                assert (await preflight(opened, None, purpose="LLM")).model == "m"
            else:
                with pytest.raises(EngineUnavailable):
                    await preflight(opened, None, purpose="LLM")
    assert lines == ["GET http://127.0.0.9:1/v1/models HTTP/1.1\r\n"] * asked
