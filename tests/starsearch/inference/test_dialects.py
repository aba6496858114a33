"""What each engine says of itself, and what is made of it. The answers are shortened from the engines' documentation."""

import httpx2
import pytest

from starsearch.errors import ContextTooSmall, ModelNotServed
from starsearch.inference.client import check_context, open_client, preflight
from starsearch.inference.dialects import OPENAI, UNKNOWN, VLLM, field

VLLM_SAYS = {"id": "m", "object": "model", "owned_by": "vllm", "root": "Qwen/Qwen3-4B-Instruct-2507", "max_model_len": 4096, "created": 1}
LLAMA_CPP_SAYS = {
    "id": "m",
    "object": "model",
    "owned_by": "llamacpp",
    "meta": {"n_ctx": 16384, "n_ctx_train": 131072, "n_params": 8, "size": 4, "n_vocab": 3, "n_embd": 2},
}
OLLAMA_SAYS = {"id": "m", "object": "model", "owned_by": "library", "created": 1735142223}
LM_STUDIO_SAYS = {"id": "m", "object": "model", "owned_by": "organization_owner"}


async def serve(entry, pages=None, base_url="http://engine.example/v1", others=None):
    def handle(request):
        if request.url.path.endswith("/models"):
            said = (others or {}).get(request.url.host, entry)
            return httpx2.Response(200, json={"object": "list", "data": [said]})
        page = (pages or {}).get(request.url.path)
        return httpx2.Response(404) if page is None else httpx2.Response(200, json=page)

    async with open_client(base_url, transport=httpx2.MockTransport(handle)) as client:
        return await preflight(client, None, purpose="LLM")


@pytest.mark.parametrize(
    ("entry", "pages", "kind", "context", "identity"),
    [
        (VLLM_SAYS, {}, "vLLM", 4096, {"root": "Qwen/Qwen3-4B-Instruct-2507"}),
        # the page tells of one slot, the list of all of them together
        (
            LLAMA_CPP_SAYS,
            {"/props": {"default_generation_settings": {"n_ctx": 4096}}},
            "llama.cpp",
            4096,
            {"meta.n_params": 8, "meta.size": 4, "meta.n_vocab": 3, "meta.n_embd": 2},
        ),
        (LLAMA_CPP_SAYS, {}, "llama.cpp", 16384, {"meta.n_params": 8, "meta.size": 4, "meta.n_vocab": 3, "meta.n_embd": 2}),
        (OLLAMA_SAYS, {}, "Ollama", 4096, {"created": 1735142223}),  # its default; more would be cut silently
        (LM_STUDIO_SAYS, {"/api/v0/models/m": {"loaded_context_length": 16384}}, "LM Studio", 16384, {}),
        (LM_STUDIO_SAYS, {}, "LM Studio", 4096, {}),
        ({"id": "m"}, {}, "OpenAI-compatible", None, {}),
    ],
)
async def test_an_engine_is_recognized_by_what_it_says(entry, pages, kind, context, identity):
    engine = await serve(entry, pages)
    assert (engine.dialect.kind, engine.context_tokens, engine.identity) == (kind, context, identity)


async def test_openai_is_recognized_by_its_host():
    engine = await serve({"id": "gpt-4.1-nano", "owned_by": "system", "created": 7}, base_url="https://api.openai.com/v1")
    assert (engine.dialect, engine.identity) == (OPENAI, {"created": 7})


@pytest.mark.parametrize(
    ("dialect", "model", "parameters"),
    [
        (VLLM, "m", {"max_tokens": 200, "temperature": 0}),
        (UNKNOWN, "gpt-5", {"max_tokens": 200, "temperature": 0}),  # only a name, on somebody else's engine
        (OPENAI, "gpt-4.1-nano", {"max_completion_tokens": 200, "temperature": 0}),
        (OPENAI, "gpt-5-nano", {"max_completion_tokens": 200}),
        (OPENAI, "o4-mini", {"max_completion_tokens": 200}),
    ],
)
def test_parameters_are_what_the_engine_takes(dialect, model, parameters):
    assert dialect.sampling(model, 200) == parameters


@pytest.mark.parametrize(
    ("entry", "advice"),
    [
        (VLLM_SAYS | {"max_model_len": 512}, "takes 512 tokens of context.*raise --max-model-len"),
        (LLAMA_CPP_SAYS | {"meta": {"n_ctx": 512}}, "raise --ctx-size"),
    ],
)
async def test_a_context_without_room_for_an_item_is_refused_with_the_flag_to_raise(entry, advice):
    engine = await serve(entry)
    with pytest.raises(ContextTooSmall, match=advice) as caught:
        check_context(engine)
    assert caught.value.exit_code == 3


async def test_a_context_that_nobody_tells_is_not_refused():
    check_context(await serve({"id": "m"}))


async def test_the_smallest_context_of_all_addresses_counts():
    two = "http://a/v1,http://b/v1"
    engine = await serve(VLLM_SAYS, base_url=two, others={"b": VLLM_SAYS | {"max_model_len": 2048}})
    assert engine.context_tokens == 2048
    assert engine.addresses == ("http://a/v1", "http://b/v1")


@pytest.mark.parametrize("other", [VLLM_SAYS | {"root": "another/model"}, VLLM_SAYS | {"id": "n"}])
async def test_addresses_that_serve_different_models_are_refused(other):
    with pytest.raises(ModelNotServed, match="different models"):
        await serve(VLLM_SAYS, base_url="http://a/v1,http://b/v1", others={"b": other})


async def test_two_ollamas_that_pulled_a_model_at_different_times_are_one_engine():
    other = OLLAMA_SAYS | {"created": 1}
    assert (await serve(OLLAMA_SAYS, base_url="http://a/v1,http://b/v1", others={"b": other})).model == "m"


async def test_an_address_that_does_not_answer_is_named_and_the_others_serve():
    def handle(request):
        if request.url.host == "b":
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json={"object": "list", "data": [VLLM_SAYS]})

    async with open_client("http://a/v1,http://b/v1", transport=httpx2.MockTransport(handle)) as client:
        engine = await preflight(client, None, purpose="LLM")
    assert (engine.addresses, engine.silent) == (("http://a/v1",), ("http://b/v1",))


@pytest.mark.parametrize(("path", "value"), [("a.b", 1), ("a.c", None), ("a.b.c", None), ("x", None)])
def test_a_path_that_leads_nowhere_gives_nothing(path, value):
    assert field({"a": {"b": 1}}, path) == value
