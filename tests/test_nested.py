"""JSON nested deeper than Python's stack, a number that no float holds, a file that is no text: each was an error of Python's own once."""

import httpx2
import pytest

from starsearch.cost import read_prices
from starsearch.errors import AnswerUnusable, DigestFailed, EngineUnavailable, PreconditionMissing, StarsearchError
from starsearch.evaluate import read_questions
from starsearch.github.credentials import AppInstallation, Clock
from starsearch.github.rest import _rows
from starsearch.inference.client import open_client, preflight
from starsearch.inference.endpoints import out_of_credit
from starsearch.inference.prompts import prompt_for
from starsearch.inference.summarize import summarize
from tests.crawls import key_pair
from tests.stub_engine import StubEngine, completion
from tests.test_fuzz import DUE

NESTED = b"[" * 100_000


@pytest.mark.parametrize("line", [b"\xff", NESTED, b'{"question": 5, "url": "u"}', b'{"question": "q", "url": "u", "also_ok": "v"}', b"5"])
def test_a_bad_line_of_questions_is_named(tmp_path, line):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(b'{"question": "q", "url": "u"}\n' + line)
    with pytest.raises(StarsearchError, match=r"questions.jsonl:2: "):
        read_questions(path)


def test_a_nested_price_table_is_refused(tmp_path):
    path = tmp_path / "prices.toml"
    path.write_bytes(b"deep = " + NESTED)
    with pytest.raises(PreconditionMissing, match="no price table"):
        read_prices(path)


async def test_nested_models_are_no_models():
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=NESTED))) as client:
        with pytest.raises(EngineUnavailable, match="did not answer with a list of models"):
            await preflight(client, None, purpose="LLM")


@pytest.mark.parametrize(("owner", "name", "page"), [("organization_owner", "a\0b", b"{}"), ("llamacpp", "stub", NESTED)])
async def test_an_engine_whose_context_cannot_be_asked_for_is_used_all_the_same(owner, name, page):
    def answer(request):
        models = {"data": [{"id": name, "owned_by": owner}]}
        return httpx2.Response(200, json=models) if request.url.path == "/v1/models" else httpx2.Response(200, content=page)

    async with open_client("http://stub/v1", transport=httpx2.MockTransport(answer)) as client:
        engine = await preflight(client, None, purpose="LLM")
        assert (engine.model, engine.context_tokens) == (name, engine.dialect.default_context)


async def test_a_nested_answer_costs_its_item_alone():
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(StubEngine(lambda *_: nested()))) as client:
        with pytest.raises(DigestFailed):
            await summarize(await preflight(client, "stub", purpose="LLM"), DUE, prompt_for(DUE, context_tokens=None))


async def test_a_queue_that_no_float_holds_is_not_heeded():
    def answer(*_):
        good = completion("The sum is doubled.")
        return httpx2.Response(200, json=good.json(), headers={"endpoint-load-metrics": report})

    report = 'JSON {"named_metrics": {"num_requests_waiting": 1' + "0" * 400 + "}}"
    async with open_client("http://stub/v1", transport=httpx2.MockTransport(StubEngine(answer))) as client:
        assert await summarize(await preflight(client, "stub", purpose="LLM"), DUE, prompt_for(DUE, context_tokens=None))


def test_a_nested_refusal_says_nothing_of_credit_and_nested_rows_are_none():
    assert not out_of_credit(httpx2.Response(429, content=NESTED))
    with pytest.raises(StarsearchError, match="did not answer with a list"):
        _rows(httpx2.Response(200, content=NESTED, request=httpx2.Request("GET", "http://stub/issues")))


async def test_a_nested_token_is_none():
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(201, content=NESTED))) as http:
        with pytest.raises(AnswerUnusable, match="something else"):
            await AppInstallation("1", "2", key_pair()[0], "http://stub").issue(http, Clock())


def nested():
    return httpx2.Response(200, content=NESTED, headers={"content-type": "application/json; nested"})
