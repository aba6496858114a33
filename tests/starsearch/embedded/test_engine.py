"""The embedded engine under the real OpenAI client, and on a port: the protocol that every other engine speaks."""

import base64
import json
from collections.abc import AsyncIterator, Iterator

import httpx2
import numpy as np
import openai
import pytest

from starsearch import extractive
from starsearch.embedded import minilm
from starsearch.embedded.engine import BASE_URL, CONTEXT_TOKENS, MAX_INPUTS, EmbeddedEngine
from starsearch.errors import PreconditionMissing
from starsearch.inference.client import open_client, preflight
from starsearch.inference.embed import embed
from tests.processes import embedded_engine

TEXT = "Totals are wrong\nThe sum of every column is doubled when the clocks go back. It happens every autumn in every report."


@pytest.fixture
def engine(home) -> EmbeddedEngine:
    return EmbeddedEngine(home / "cache")


@pytest.fixture
async def client(engine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with open_client(BASE_URL, transport=httpx2.ASGITransport(app=engine.app)) as opened:
        yield opened


@pytest.fixture
async def http(engine) -> AsyncIterator[httpx2.AsyncClient]:
    """Without the SDK, which sends no bad bodies."""
    async with httpx2.AsyncClient(base_url="http://embedded", transport=httpx2.ASGITransport(app=engine.app)) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(home) -> Iterator[str]:
    """The command on a free port of this machine."""
    with embedded_engine({"HOME": str(home), "STARSEARCH_HOME": str(home)}) as address:
        yield address


def chat_body(**fields) -> dict:
    return {"model": extractive.MODEL, "messages": [{"role": "user", "content": TEXT}]} | fields


def embeddings_body(**fields) -> dict:
    return {"model": minilm.MODEL, "input": ["a"]} | fields


@pytest.fixture
async def keyed(home) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=EmbeddedEngine(home / "cache", "the-key").app)
    async with httpx2.AsyncClient(base_url="http://embedded", transport=transport) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings", "/v1/chat/completions", "/requests", "/nowhere", "/health/"])
@pytest.mark.parametrize("sent", [None, "Bearer another", "Bearer", "Basic the-key", "the-key", "Bearer thé-key"])
async def test_without_its_key_the_engine_answers_nothing_and_says_what_to_send(keyed, path, sent):
    answer = await keyed.post(path, json=embeddings_body(), headers={"Authorization": sent.encode()} if sent else {})
    assert answer.status_code == 401
    assert "STARSEARCH_SERVED_ENGINE_KEY" in answer.json()["error"]["message"]


async def test_a_probe_needs_no_key(keyed):
    assert (await keyed.get("/health")).status_code == 200


async def test_with_its_key_the_engine_answers_as_ever(home):
    transport = httpx2.ASGITransport(app=EmbeddedEngine(home / "cache", "the-key").app)
    async with open_client(BASE_URL, key="the-key", transport=transport) as client:
        assert await preflight(client, extractive.MODEL, purpose="LLM")
    async with open_client(BASE_URL, key="another", transport=transport) as client:
        with pytest.raises(PreconditionMissing, match=r"401\): set STARSEARCH_LLM_API_KEY"):
            await preflight(client, extractive.MODEL, purpose="LLM")


def test_the_command_takes_its_key_from_a_file(home, tmp_path):
    (tmp_path / "key").write_text("the-key\n")
    with embedded_engine(
        {"HOME": str(home), "STARSEARCH_HOME": str(home), "STARSEARCH_SERVED_ENGINE_KEY_FILE": str(tmp_path / "key")}
    ) as at:
        assert httpx2.get(f"{at}/requests").status_code == 401
        assert httpx2.get(f"{at}/requests", headers={"Authorization": "Bearer the-key"}).json() == {}


async def test_both_models_are_listed(client):
    assert [model.id async for model in await client.models.list()] == [extractive.MODEL, minilm.MODEL]


async def test_the_preflight_of_any_engine_accepts_it(client):
    llm = await preflight(client, extractive.MODEL, purpose="LLM")
    embedding = await preflight(client, minilm.MODEL, purpose="EMBEDDING")
    assert (llm.context_tokens, embedding.context_tokens) == (CONTEXT_TOKENS, None)


async def test_chat_summarizes_the_last_message_of_the_user(client):
    messages = [
        {"role": "system", "content": "You write search summaries."},
        {"role": "user", "content": "Earlier\nSomething else was asked for before this."},
        {"role": "user", "content": TEXT},
    ]
    answer = await client.chat.completions.create(model=extractive.MODEL, messages=messages, temperature=0, max_tokens=200)
    [choice] = answer.choices
    assert choice.message.content == extractive.summarize(TEXT)
    assert (choice.finish_reason, answer.model) == ("stop", extractive.MODEL)


async def test_usage_is_counted(client):
    chat = await client.chat.completions.create(**chat_body())
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens
    assert min(chat.usage.prompt_tokens, chat.usage.completion_tokens) > 0
    one = await client.embeddings.create(model=minilm.MODEL, input="clocks")
    two = await client.embeddings.create(model=minilm.MODEL, input=["clocks", "clocks"])
    assert two.usage.prompt_tokens == 2 * one.usage.prompt_tokens > 0


async def test_base64_and_float_agree_in_the_texts_order(client):
    texts = ["The clocks go back", "A much longer text about something else entirely, such as pancakes and how to turn them", "x"]
    engine = await preflight(client, minilm.MODEL, purpose="EMBEDDING")
    packed, _ = await embed(engine, texts, dimensions=None)
    plain = await client.embeddings.create(model=minilm.MODEL, input=texts, encoding_format="float")
    assert packed.shape == (3, minilm.DIMENSIONS)
    assert [row.index for row in plain.data] == [0, 1, 2]
    np.testing.assert_allclose(packed, np.array([row.embedding for row in plain.data]), atol=1e-6)


async def test_base64_is_little_endian_float32(http):
    answer = (await http.post("/v1/embeddings", json=embeddings_body(encoding_format="base64"))).json()
    assert len(base64.b64decode(answer["data"][0]["embedding"])) == 4 * minilm.DIMENSIONS


@pytest.mark.parametrize("dimensions", [minilm.DIMENSIONS, 256])
async def test_the_models_own_dimensions_or_fewer_may_be_asked_for(http, dimensions):
    answer = (await http.post("/v1/embeddings", json=embeddings_body(dimensions=dimensions))).json()
    vector = np.array(answer["data"][0]["embedding"])
    assert vector.shape == (dimensions,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("model", ["gpt-4o", minilm.MODEL])  # served, but not for this
async def test_an_unknown_chat_model_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError, match=f"there is {extractive.MODEL}"):
        await client.chat.completions.create(**chat_body(model=model))


@pytest.mark.parametrize("model", ["text-embedding-3-small", extractive.MODEL])
async def test_an_unknown_embedding_model_is_not_found(client, model):
    with pytest.raises(openai.NotFoundError, match=f"there is {minilm.MODEL}"):
        await client.embeddings.create(**embeddings_body(model=model))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b'{"model": "\\ud800"}',  # a lone surrogate
        b"[" * 100_000,
        [],
        None,
        "text",
        {},
        {"model": extractive.MODEL},
        chat_body(messages=[]),
        chat_body(messages=None),
        chat_body(messages=5),
        chat_body(messages="text"),
        chat_body(messages=["text"]),
        chat_body(messages={"role": "user", "content": "text"}),
        chat_body(messages=[{"role": "user"}]),
        chat_body(messages=[{"content": "text"}]),
        chat_body(messages=[{"role": "system", "content": "text"}]),  # nobody asks anything
    ],
)
async def test_a_bad_chat_request_is_told_so(http, body):
    await refused(http, "/v1/chat/completions", body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        [],
        None,
        {"model": minilm.MODEL},
        embeddings_body(input=None),
        embeddings_body(input=5),
        embeddings_body(input=True),
        embeddings_body(input=[]),
        embeddings_body(input=[1, 2]),  # token numbers, which OpenAI takes
        embeddings_body(input=["a", None]),
        embeddings_body(input={"a": 1}),
        embeddings_body(input=["a"] * (MAX_INPUTS + 1)),
        embeddings_body(dimensions=minilm.DIMENSIONS + 1),
        embeddings_body(dimensions=0),
        embeddings_body(dimensions=True),
        embeddings_body(dimensions="many"),
    ],
)
async def test_a_bad_embeddings_request_is_told_so(http, body):
    await refused(http, "/v1/embeddings", body)


async def refused(http: httpx2.AsyncClient, path: str, body: object) -> None:
    answer = await http.post(path, content=body if isinstance(body, bytes) else json.dumps(body).encode())
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


async def test_requests_are_counted_whatever_they_are_answered(client, http, engine):
    await client.chat.completions.create(**chat_body())
    await client.embeddings.create(**embeddings_body())
    await http.post("/v1/chat/completions", content=b"{")
    await client.models.list()  # costs nothing and is not counted
    counted = (await http.get("/requests")).json()
    assert counted == engine.requests
    assert (counted["chat"], counted["embeddings"]) == (2, 1)


async def test_the_model_is_loaded_once_and_only_when_needed(client, engine, monkeypatch):
    loaded = []
    monkeypatch.setattr("starsearch.embedded.engine.MiniLM", lambda cache: loaded.append(cache) or minilm.MiniLM(cache))
    await client.chat.completions.create(**chat_body())
    assert not loaded
    await client.embeddings.create(**embeddings_body())
    await client.embeddings.create(**embeddings_body())
    assert len(loaded) == 1


def test_the_command_serves_it_on_a_port(address):
    models = httpx2.get(f"{address}/v1/models").json()
    assert [model["id"] for model in models["data"]] == [extractive.MODEL, minilm.MODEL]
    assert httpx2.get(f"{address}/requests").json() == {}
    answer = httpx2.post(f"{address}/v1/chat/completions", json=chat_body()).json()
    assert answer["choices"][0]["message"]["content"] == extractive.summarize(TEXT)
    assert httpx2.get(f"{address}/requests").json()["chat"] == 1
