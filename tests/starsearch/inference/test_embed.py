"""Texts to unit vectors: both encodings, any order, and vectors that are none."""

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import numpy as np
import pytest

from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed, VersionMismatch
from starsearch.inference import embed as embed_module
from starsearch.inference.client import Engine, open_client
from starsearch.inference.embed import PROBE, embed, embed_each, take_probe
from tests.stub_engine import failure

THREE_FOUR, UP = [3.0, 4.0], [0.0, 2.0]
UNIT = np.array([[0.6, 0.8], [0.0, 1.0]], np.float32)


@asynccontextmanager
async def engine(answer: httpx2.Response) -> AsyncIterator[tuple[Engine, list[dict[str, Any]]]]:
    asked: list[dict[str, Any]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        return answer

    async with open_client("http://engine.example/v1", transport=httpx2.MockTransport(handle)) as opened:
        yield Engine(opened, "http://engine.example/v1", "m"), asked


def packed(vector: list[float]) -> str:
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode()


def answer(*vectors: Any, order: list[int] | None = None, **fields: Any) -> httpx2.Response:
    data = [{"object": "embedding", "index": i, "embedding": vectors[i]} for i in order or range(len(vectors))]
    whole = {"object": "list", "model": "m", "data": data, "usage": {"prompt_tokens": 7, "total_tokens": 7}} | fields
    return httpx2.Response(200, content=json.dumps(whole).encode(), headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    "said",
    [
        answer(packed(THREE_FOUR), packed(UP)),
        answer(THREE_FOUR, UP),  # an engine that knows lists only
        answer(packed(THREE_FOUR), UP),
        answer(THREE_FOUR, UP, order=[1, 0]),
        answer(packed(THREE_FOUR), packed(UP), order=[1, 0]),
    ],
)
async def test_vectors_come_in_the_texts_order_at_unit_length(said):
    async with engine(said) as (opened, asked):
        vectors, tokens = await embed(opened, ["a", "b"], dimensions=None)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, UNIT, rtol=1e-6)
    assert tokens == 7
    assert asked == [{"model": "m", "input": ["a", "b"], "encoding_format": "base64"}]


@pytest.mark.parametrize(("dimensions", "sent"), [(None, {}), (2, {"dimensions": 2})])
async def test_dimensions_are_sent_only_where_configured(dimensions, sent):
    async with engine(answer(UP)) as (opened, asked):
        await embed(opened, ["a"], dimensions=dimensions)
    assert {key: asked[0][key] for key in asked[0] if key == "dimensions"} == sent


async def test_other_dimensions_than_configured_are_a_wrong_setting():
    async with engine(answer(UP)) as (opened, _):
        with pytest.raises(VersionMismatch, match="2 dimensions, not the configured 3: correct STARSEARCH_EMBEDDING_DIMENSIONS") as caught:
            await embed(opened, ["a"], dimensions=3)
    assert caught.value.exit_code == 3


async def test_vectors_of_another_length_than_the_index_are_unusable():
    """From one engine of several, they would end the run at the database instead of costing an attempt."""
    async with engine(answer(UP, UP)) as (opened, _):
        outcomes, _ = await embed_each(opened, ["a", "b"], dimensions=None, width=3)
        with pytest.raises(DigestFailed, match="of 2 dimensions, where the index has 3"):
            await embed(opened, ["a", "b"], dimensions=None, width=3)
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, DigestFailed)] == ["unusable vector"] * 2


@pytest.mark.parametrize(
    "vector",
    [
        [0.0, 0.0],
        [float("nan"), 1.0],
        [float("inf"), 1.0],
        [1e300, 1.0],  # infinite once it is a float32
        [None, 1.0],
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
async def test_a_vector_without_a_direction_is_unusable(vector):
    async with engine(answer(UP, vector)) as (opened, _):
        with pytest.raises(DigestFailed) as caught:
            await embed(opened, ["a", "b"], dimensions=None)
    assert caught.value.reason == "unusable vector"


@pytest.mark.parametrize(
    "said",
    [
        answer(),
        answer(UP),
        answer(UP, UP, UP),
        answer(UP, [1.0, 2.0, 3.0]),  # of different lengths
        answer([UP], [UP]),  # a vector a token: an engine without pooling
        answer(1.0, 2.0),
        answer(None, None),
        answer(["x"], ["y"]),
        answer("not base64!", "not base64!"),
        answer(base64.b64encode(b"12345").decode(), packed(UP)),  # not whole floats
        answer(data=None),
        answer(data=[1, 2]),
        httpx2.Response(200, html="<h1>Sign in</h1>"),  # a proxy's page
        httpx2.Response(200, content=b"{cut off", headers={"content-type": "application/json"}),
    ],
)
async def test_an_answer_that_is_not_one_vector_a_text_is_unreadable(said):
    async with engine(said) as (opened, _):
        with pytest.raises(DigestFailed) as caught:
            await embed(opened, ["a", "b"], dimensions=None)
    assert caught.value.reason == "unreadable answer"


@pytest.mark.parametrize(("status", "kind"), [(400, DigestFailed), (500, DigestFailed), (401, EngineUnavailable)])
async def test_errors_are_translated(status, kind):
    async with engine(failure(status)) as (opened, _):
        with pytest.raises(kind):
            await embed(opened, ["a"], dimensions=None)


@pytest.mark.parametrize("usage", [None, {}])
async def test_an_engine_that_does_not_tell_its_tokens_costs_nothing(usage):
    async with engine(answer(UP, usage=usage)) as (opened, _):
        assert (await embed(opened, ["a"], dimensions=None))[1] == 0


async def test_the_probe_is_one_request_and_tells_the_dimensions():
    async with engine(answer(UP, THREE_FOUR, UP)) as (opened, asked):
        assert (await take_probe(opened, None)).shape == (3, 2)
    assert len(asked) == 1


async def test_an_engine_without_embeddings_is_a_wrong_setting():
    async with engine(failure(404)) as (opened, _):
        with pytest.raises(ModelNotServed, match="STARSEARCH_EMBEDDING_MODEL"):
            await take_probe(opened, None)


@asynccontextmanager
async def judging(refuses: Callable[[str], bool], status: int = 400) -> AsyncIterator[tuple[Engine, list[list[str]]]]:
    """An engine that refuses every batch with a text it does not like."""
    asked: list[list[str]] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        texts = json.loads(request.content)["input"]
        asked.append(texts)
        return failure(status) if any(map(refuses, texts)) else answer(*([float(len(text)), 1.0] for text in texts))

    async with open_client("http://engine.example/v1", transport=httpx2.MockTransport(handle), patience_seconds=0) as opened:
        yield Engine(opened, "http://engine.example/v1", "m"), asked


async def test_a_text_that_is_refused_costs_only_itself():
    texts = [f"text {n}" for n in range(64)]
    async with judging(lambda text: "50" in text or text == "tex") as (opened, asked):
        vectors, tokens = await embed_each(opened, texts, dimensions=None)
    failed = [n for n, vector in enumerate(vectors) if isinstance(vector, DigestFailed)]
    assert failed == [50]
    assert (vectors[50].reason, vectors[50].permanent) == ("HTTP 400", True)
    assert len(asked) <= 2 * 6 + 2  # halves down to the one, and that one cut
    assert tokens == 7 * sum(not any("50" in text or text == "tex" for text in batch) for batch in asked)


async def test_a_text_that_is_too_long_is_cut_once():
    async with judging(lambda text: len(text) > 60) as (opened, asked):
        [vector], _ = await embed_each(opened, ["x" * 100], dimensions=None)
    assert not isinstance(vector, DigestFailed)
    assert [len(batch[0]) for batch in asked] == [100, 50]


async def test_an_engine_in_trouble_is_not_asked_in_halves():
    async with judging(lambda _: True, 500) as (opened, asked):
        vectors, _ = await embed_each(opened, ["a", "b", "c"], dimensions=None)
    assert [vector.reason for vector in vectors] == ["HTTP 500"] * 3
    assert asked == [["a", "b", "c"], [PROBE[0]]]


async def test_an_engine_that_is_overloaded_or_gone_is_asked_nothing_more():
    async with judging(lambda _: True, 503) as (opened, asked):
        with pytest.raises(EngineUnavailable):
            await embed_each(opened, ["a", "b", "c"], dimensions=None)
    assert len(asked) == 1


async def test_a_text_that_the_engine_fails_over_costs_only_itself():
    texts = [f"text {n}" for n in range(64)]
    async with judging(lambda text: text == "text 50", 500) as (opened, asked):
        vectors, tokens = await embed_each(opened, texts, dimensions=None)
    assert [n for n, vector in enumerate(vectors) if isinstance(vector, DigestFailed)] == [50]
    assert (vectors[50].reason, vectors[50].permanent, vectors[50].attempt) == ("HTTP 500", False, True)
    assert len(asked) == 1 + 2 * 6 + 6  # halves down to the one, and a harmless text for each that failed
    assert tokens == 7 * sum("text 50" not in batch for batch in asked)


@pytest.mark.parametrize("spoilt", [[], [None], [[[1.0]]]])
async def test_a_text_that_spoils_the_answer_costs_no_other(spoilt):
    """A vector too few, null, or of another shape, with status 200: whose it is turns out by halves."""

    def handle(request: httpx2.Request) -> httpx2.Response:
        texts = json.loads(request.content)["input"]
        return answer(*[vector for text in texts for vector in (spoilt if text == "text 5" else [UP])])

    async with open_client("http://engine.example/v1", transport=httpx2.MockTransport(handle)) as client:
        vectors, _ = await embed_each(Engine(client, "http://engine.example/v1", "m"), [f"text {n}" for n in range(8)], dimensions=None)
    assert {n: vector.reason for n, vector in enumerate(vectors) if isinstance(vector, DigestFailed)} == {5: "unreadable answer"}


async def test_halving_ends_in_time(monkeypatch):
    monkeypatch.setattr(embed_module, "HALVING_SECONDS", 0.0)
    async with judging(lambda text: text == "b", 500) as (opened, asked):
        vectors, _ = await embed_each(opened, ["a", "b", "c"], dimensions=None)
    assert [vector.attempt for vector in vectors] == [True] * 3
    assert len(asked) == 2


async def test_one_vector_without_a_direction_spoils_no_other():
    async with engine(answer(UP, [float("nan"), 1.0], THREE_FOUR)) as (opened, _):
        first, second, third = (await embed_each(opened, ["a", "b", "c"], dimensions=None))[0]
    assert second.reason == "unusable vector"
    np.testing.assert_allclose([third, first], UNIT, rtol=1e-6)


@pytest.mark.parametrize("order", [[0, 0], [0, 2], [1, 2]])
async def test_vectors_numbered_wrongly_are_unreadable(order):
    async with engine(answer(UP, UP, UP, order=order)) as (opened, _):
        with pytest.raises(DigestFailed) as caught:
            await embed(opened, ["a", "b"], dimensions=None)
    assert caught.value.reason == "unreadable answer"
