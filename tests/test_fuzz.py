"""Made-up foreign bytes at every parser of them: whatever comes, it is read, or refused in one of our own errors; never anything else.
What is read as an item goes on into a real PostgreSQL.

By default the same 150 cases each; `make fuzz` searches longer, elsewhere each time. No fuzzer guided by coverage is used: atheris, which
would do it, was not to be had offline, and was not tried.
"""

import contextlib
import gzip
import io
import json
import os
import random
import string
from datetime import UTC, datetime

import httpx2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from starsearch.cost import read_prices, total_cost
from starsearch.embedded.minilm import DIMENSIONS
from starsearch.errors import DigestFailed, EngineUnavailable, PreconditionMissing, QueryUnusable, Rejected, StarsearchError
from starsearch.evaluate import read_questions
from starsearch.explain import parse_address
from starsearch.github.client import open_github
from starsearch.github.credentials import Credential, Token
from starsearch.github.nodes import read_facts, read_item, read_page
from starsearch.github.rest import _parse_page
from starsearch.inference import gate
from starsearch.inference.answer import answer, checked
from starsearch.inference.client import check_context, open_client, preflight
from starsearch.inference.embed import embed_each
from starsearch.inference.prompts import PROMPT_VERSION, instructions, prompt_for
from starsearch.inference.summarize import summarize
from starsearch.jsonl import read_chunks
from starsearch.lists import read_list
from starsearch.models import Checkpoint, Chunk, DueItem, Hit, Item, Usage, clean, parse_item
from starsearch.settings import Settings
from starsearch.store.items import store_chunk
from starsearch.store.runs import start_run
from starsearch.store.search import clean_query
from starsearch.untrusted import fence, safe, visible, without_links
from starsearch.web.cursors import BadCursor, unpack
from tests.stub_engine import StubEngine

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    print_blob=True,
)

LETTERS = string.ascii_letters + string.digits + " "
text = st.text(st.characters(), max_size=200)  # lone surrogates, NUL and every plane included
nasty = st.sampled_from(
    ["\x1b]0;owned\x07", "<!--", "</item>", "\ud800", "\0", "\u202e", "javascript:alert(1)", "[x](//evil.example)", "%s{}$(id)"]
)
words = st.lists(text | nasty, max_size=8).map("".join)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4), max_leaves=20)
ITEM = {
    "repo": "quillcap/marlframe", "number": 1, "type": "issue", "title": "t", "body": "b", "state": "open", "url": "https://github.com/a/b/1",
    "author": "ada", "labels": ["bug"], "comments": [{"body": "c", "created_at": "2026-01-01T00:00:00Z", "author": "ada"}],
    "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T00:00:00Z", "closed_at": None, "merged_at": None,
}  # fmt: skip
NODE = {
    "__typename": "Issue", "id": "I_1", "number": 1, "title": "t", "body": "b", "state": "OPEN", "url": "https://github.com/a/b/issues/1",
    "author": {"login": "ada"}, "labels": {"nodes": [{"name": "bug"}]}, "repository": {"nameWithOwner": "a/b"}, "fullDatabaseId": "7",
    "comments": {"totalCount": 1, "nodes": [{"body": "c", "createdAt": "2026-01-01T00:00:00Z", "author": None}]},
    "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-02T00:00:00Z", "closedAt": None,
}  # fmt: skip
FACTS = {"id": "R_1", "nameWithOwner": "a/b", "databaseId": 7, "isArchived": False, "stargazerCount": 3}
QUESTION = {"question": "Why is the sum doubled?", "url": "https://github.com/a/b/issues/1", "also_ok": ["https://github.com/a/b/issues/2"]}
PRICES = {
    "models": {"small": {"source": "s", "date": "2026-01-01", "prompt": 0.1, "cached": 0.05, "completion": 0.4},
               "own": {"source": "s", "date": "2026-01-01", "engine": "card", "engines": 2}},
    "engines": {"card": {"source": "s", "date": "2026-01-01", "usd_per_hour": 2.5, "tokens_per_second": 1000.0}},
}  # fmt: skip
ENVELOPE = {
    "data": {"rateLimit": {"cost": 1, "remaining": 4_999}, "nodes": [None, {"id": "I_1"}]},
    "errors": [{"type": "NOT_FOUND", "path": ["nodes", 0], "message": "Could not resolve to a node"}],
    "message": "Bad credentials",
}
LIMITS = ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "date", "content-type"]
header = st.text(string.printable.strip(), max_size=20)
MODEL = {"id": "stub", "object": "model", "owned_by": "vllm", "max_model_len": 8_192, "root": "/models/stub", "meta": {"n_ctx": 4_096}}
MODELS = {"object": "list", "data": [MODEL]}
PAGE = {
    "issues": {
        "nodes": [{"id": "I_1", "number": 1, "updatedAt": "2026-01-02T00:00:00Z"}],
        "pageInfo": {"endCursor": None, "hasNextPage": False},
    }
}


def encoded(value):
    return value.encode("utf-8", "replace")


def lines_of(rows):
    return b"\n".join(encoded(json.dumps(row)) for row in rows)


def toml(value):
    """Inline; JSON's strings and lists are TOML's, so what cannot be written is a bad table, which is as well."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def bodies(whole):
    """Of an answer over HTTP."""
    return st.binary(max_size=200) | (values | damaged(whole)).map(lambda value: encoded(json.dumps(value)))


def damaged(whole):
    """The real shape with some of its values, at any depth, replaced or left out."""

    def replace(draw, value, depth=0):
        if draw(st.integers(0, 9)) == 0:
            return draw(values)
        if isinstance(value, dict):
            return {key: replace(draw, each, depth + 1) for key, each in value.items() if draw(st.integers(0, 19))}
        if isinstance(value, list):
            return [replace(draw, each, depth + 1) for each in value]
        return value

    return st.composite(lambda draw: replace(draw, whole))()


@FUZZ
@given(value=values | damaged(ITEM))
def test_a_record_is_an_item_or_rejected(value):
    try:
        item = parse_item(value)
    except Rejected as error:
        assert str(error).encode()  # a reason that can be written down
        return
    assert isinstance(item, Item)
    assert "\0" not in item.title + item.body + (item.author or "")
    (item.title + item.body + "".join(item.digest_comments)).encode()
    assert item.content_hash == parse_item(value).content_hash


def incompressible(seed, length, letters):
    """PostgreSQL compresses what it indexes: a letter repeated fits where other text of its length does not."""
    return "".join(random.Random(seed).choices(letters, k=length))


long = st.builds(  # lower() makes U+023A three bytes of two
    incompressible,
    st.integers(0, 99),
    st.sampled_from([250, 499, 999, 1_001, 1_999, 3_000, 10_000]),
    st.sampled_from([LETTERS, "\u023aǅé "]),
)
odd = words | long
moments = st.builds(
    lambda moment, offset: moment.isoformat() + offset, st.datetimes(), st.sampled_from(["", "Z", "+14:00", "-12:00", "+00:00:01"])
)
records = st.fixed_dictionaries(
    {},
    optional={
        "number": st.integers(1, 4) | st.integers(),
        "title": odd,
        "body": odd,
        "url": odd.map("https://github.com/".__add__),
        "author": odd,
        "labels": st.lists(odd, max_size=3),
        "node_id": st.sampled_from(["", "I_1", "I_2"]) | odd,
        "database_id": st.sampled_from([1, 2]) | st.integers(),
        "host": st.sampled_from(["github.com", "ghe.example"]) | odd,
        "comments": st.lists(st.fixed_dictionaries({"body": odd}, optional={"author": odd, "created_at": moments}), max_size=3),
        "comments_count": st.integers(),
        "type": st.sampled_from(["issue", "pull_request"]),
        **dict.fromkeys(("created_at", "updated_at", "closed_at", "merged_at"), moments),
    },
).map(ITEM.__or__)


@settings(FUZZ, max_examples=max(1, EXAMPLES // 3))  # each is a transaction
@given(values=st.lists(records | damaged(ITEM), min_size=1, max_size=5))
@example(values=[ITEM | {"number": n, "node_id": "I_1"} for n in (1, 2)])
@example(values=[ITEM | {"title": incompressible(0, 1_500_000, LETTERS)}])
@example(values=[ITEM | {"url": "https://github.com/" + incompressible(0, 3_000, LETTERS)}])
@example(values=[ITEM | {"author": incompressible(0, 3_000, LETTERS)}])
@example(values=[ITEM | {"labels": [incompressible(0, 3_000, LETTERS)]}])
@example(values=[ITEM | {"created_at": "0001-01-01T00:00:00+14:00"}])
@example(values=[ITEM | {"created_at": "0001-01-01T00:00:00Z", "database_id": 2**63 - 1}])
async def test_whatever_is_an_item_postgresql_stores_and_gives_back(store, values):
    items, rejected = [], 0
    for value in values:
        try:
            items.append(parse_item(value))
        except Rejected:
            rejected += 1
    async with store.pool.connection() as connection:  # node ids of an earlier case would be refused, and its numbers found
        await connection.execute("DELETE FROM item")
    counts = await store_chunk(store.pool, Chunk(tuple(items), name="fuzz"), run_id=await start_run(store.pool, "ingest"))
    assert counts.items + counts.rejected + rejected == len(values)
    async with store.pool.connection() as connection:
        cursor = await connection.execute("SELECT i.* FROM item i WHERE number = ANY (%s)", [[item.number for item in items]])
        assert bool(await cursor.fetchall()) == bool(counts.items)
        twice = "SELECT i.node_id FROM item i JOIN repository r ON r.id = repository_id GROUP BY host, 1 HAVING count(i.node_id) > 1"
        assert await (await connection.execute(twice)).fetchall() == []


@FUZZ
@given(
    lines=st.lists(st.binary(max_size=80) | damaged(ITEM).map(lambda value: json.dumps(value).encode("utf-8", "replace")), max_size=6),
    cut=st.integers(0, 60),
)
def test_a_file_gives_one_item_or_one_rejection_a_line(tmp_path_factory, lines, cut):
    lines = [line.replace(b"\n", b" ").replace(b"\r", b" ") for line in lines]
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(b"\n".join(lines))
    chunks = list(read_chunks(path))
    wanted = sum(bool(line.strip()) for line in lines)
    assert sum(len(chunk.items) + len(chunk.rejections) for chunk in chunks) == wanted
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb") as file:
        file.write(b"\n".join(lines))
    path = path.with_suffix(".jsonl.gz")
    path.write_bytes(packed.getvalue()[: -cut or None])
    assert sum(len(chunk.items) + len(chunk.rejections) for chunk in read_chunks(path)) <= wanted + 1


@FUZZ
@given(node=values | damaged(NODE))
def test_a_node_of_github_is_an_item_or_rejected(node):
    if not isinstance(node, dict):
        return
    try:
        assert isinstance(read_item(node, host="github.com"), Item)
    except Rejected as error:
        assert str(error)


@FUZZ
@given(node=values | damaged(PAGE))
@example(node={"issues": {"nodes": [{"id": "I_1", "number": float("inf"), "updatedAt": "2026-01-02T00:00:00Z"}]}})
@example(
    node=PAGE
    | {
        "issues": {
            "nodes": [{"id": "I_1", "number": 1, "updatedAt": "9999-12-31T23:59:59-14:00"}],
            "pageInfo": {"endCursor": None, "hasNextPage": False},
        }
    }
)
def test_a_page_of_github_is_read_or_no_page(node):
    if not isinstance(node, dict):
        return
    with contextlib.suppress(KeyError, TypeError, ValueError):  # what it says it raises
        for item in read_page(node, "issue", datetime(2026, 1, 1, tzinfo=UTC)).items:
            assert 0 < item.number < 2**31
            assert item.updated_at.astimezone(UTC)
            assert len(item.node_id.encode()) <= 1_000
            assert "\0" not in item.node_id


@FUZZ
@given(node=values | damaged(FACTS))
@example(node=FACTS | {"id": "\ud800"})
@example(node=FACTS | {"id": "R" * 1_001})
def test_a_repository_of_github_is_read_or_refused(node):
    if not isinstance(node, dict):
        return
    with contextlib.suppress(KeyError, TypeError, ValueError):  # what it says it raises
        facts = read_facts(node)
        assert "\0" not in facts.node_id + facts.full_name
        assert max(len(facts.node_id.encode()), len(facts.full_name.encode())) <= 1_000
        assert (facts.database_id or 0) < 2**63
        assert (facts.stars or 0) < 2**31


REST = ITEM | {"html_url": "https://github.com/quillcap/marlframe/issues/1", "user": {"login": "ada"}, "labels": [{"name": "bug"}]}


@FUZZ
@given(rows=st.lists(values | damaged(REST), max_size=4))
def test_rows_of_the_rest_api_are_items_or_rejections(rows):
    items, rejections = _parse_page(rows, Checkpoint("quillcap/marlframe", None))
    assert len(items) + len(rejections) <= len(rows)


@FUZZ
@given(content=st.binary(max_size=300) | words.map(lambda value: ("full_name,stars\n" + value).encode("utf-8", "replace")))
def test_a_list_of_repositories_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    try:
        read_list(path)
    except StarsearchError as error:
        assert str(error)


ANSWER = {
    "id": "c", "object": "chat.completion", "created": 0, "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "The sum is doubled."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
DUE = DueItem(
    1, "issue", "open", "Totals are wrong", "The sum is doubled when the clocks go back.", (), b"", datetime(2026, 1, 1, tzinfo=UTC)
)


async def engine_answering(response):
    async def answer(request):
        if request.url.path.endswith("/models"):
            return await StubEngine()(request)
        return response()

    async with open_client("http://stub/v1", transport=httpx2.MockTransport(answer), patience_seconds=0.0) as client:
        yield await preflight(client, "stub", purpose="LLM")


@FUZZ
@given(
    body=st.binary(max_size=200) | (values | damaged(ANSWER)).map(lambda value: json.dumps(value).encode("utf-8", "replace")),
    status=st.sampled_from([200, 200, 200, 400, 422, 500, 302]),
)
@example(body=b"[" * 100_000, status=200)
async def test_a_chat_engines_answer_is_a_summary_or_counted(body, status):
    async for engine in engine_answering(
        lambda: httpx2.Response(status, content=body, headers={"content-type": "application/json", "retry-after-ms": "1"})
    ):
        try:
            summary = await summarize(engine, DUE, prompt_for(DUE, context_tokens=None))
        except (DigestFailed, EngineUnavailable) as error:
            str(error).encode("utf-8", "replace")
        else:
            summary.text.encode()


VECTORS = {"object": "list", "model": "stub", "data": [{"object": "embedding", "index": 0, "embedding": [0.5] * DIMENSIONS}, {"object": "embedding", "index": 1, "embedding": [0.1] * DIMENSIONS}], "usage": {"prompt_tokens": 2, "total_tokens": 2}}  # fmt: skip


@settings(FUZZ, max_examples=max(1, EXAMPLES // 5))  # a bad answer is asked again, halved
@given(body=st.binary(max_size=200) | (values | damaged(VECTORS)).map(lambda value: json.dumps(value).encode("utf-8", "replace")))
@example(body=b"[" * 100_000)
async def test_an_embedding_engines_answer_is_vectors_or_counted(body):
    async for engine in engine_answering(lambda: httpx2.Response(200, content=body, headers={"content-type": "application/json"})):
        try:
            vectors, _ = await embed_each(engine, ["a", "b"], dimensions=None)
        except (DigestFailed, EngineUnavailable):
            continue
        assert len(vectors) == 2
        for vector in vectors:
            assert isinstance(vector, DigestFailed) or abs(float((vector**2).sum()) - 1) < 1e-3


@FUZZ
@given(summary=words, shown=words)
def test_the_gate_answers_whatever_it_is_shown(summary, shown):
    tidy = gate.tidy(clean(summary))
    gate.check(tidy, shown=clean(shown), system=instructions(PROMPT_VERSION), state="open")
    checked(clean(summary), [])


@FUZZ
@given(content=words, tag=st.sampled_from(["item", "source"]))
def test_nothing_closes_a_fence_or_reaches_a_terminal(content, tag):
    content = clean(content)
    fenced = fence(tag, content)
    assert fenced.lower().count(f"</{tag}") == 1
    assert "\x1b" not in safe(content) + visible(content)
    assert "://evil" not in without_links(f"{content} https://evil.example/x")


@FUZZ
@given(title=words, body=words)
def test_a_prompt_can_be_made_of_anything(title, body):
    item = DueItem(1, "issue", "open", clean(title) or "t", clean(body), (), b"", datetime(2026, 1, 1, tzinfo=UTC))
    prompt_for(item, context_tokens=2_000)


@FUZZ
@given(query=words)
def test_a_question_is_cleaned_or_refused(query):
    try:
        assert clean_query(query).encode()
    except QueryUnusable as error:
        assert str(error)
    parse_address(query, host="github.com")


@FUZZ
@given(cursor=words | st.binary(max_size=60).map(lambda raw: raw.hex()))
def test_a_forged_cursor_is_refused(cursor):
    with pytest.raises(BadCursor):
        unpack(b"key", "question", cursor)


@FUZZ
@given(
    content=st.binary(max_size=200) | st.lists(values | damaged(QUESTION), max_size=3).map(lines_of), deep=st.sampled_from([0, 0, 100_000])
)
@example(content=b"\xff", deep=0)
@example(content=json.dumps(QUESTION | {"question": 5}).encode(), deep=0)
@example(content=json.dumps(QUESTION | {"also_ok": "https://github.com/a/b/issues/2"}).encode(), deep=0)
def test_a_file_of_questions_is_read_or_refused(tmp_path_factory, content, deep):
    path = tmp_path_factory.getbasetemp() / "questions.jsonl"
    path.write_bytes(content + b"[" * deep)
    try:
        for question in read_questions(path):
            assert isinstance(question.text, str)
            assert all(isinstance(url, str) for url in question.right)
    except StarsearchError as error:
        assert str(error)


@FUZZ
@given(
    content=st.binary(max_size=200) | st.text(max_size=200).map(encoded) | damaged(PRICES).map(toml).map(encoded),
    deep=st.sampled_from([0, 0, 10_000]),
)
def test_a_price_table_is_read_or_refused(tmp_path_factory, content, deep):
    path = tmp_path_factory.getbasetemp() / "prices.toml"
    path.write_bytes(content + b"\ndeep = " * bool(deep) + b"[" * deep)
    try:
        prices = read_prices(path)
    except PreconditionMissing as error:
        assert str(error)
    else:
        total_cost([Usage("summary", name, 1, 0, 1, 1, 0, 10, 2, 5, 1.0, 1.0) for name in prices.models], prices)


@FUZZ
@given(
    body=bodies(ENVELOPE) | st.just(b"[" * 100_000),
    status=st.sampled_from([200, 200, 200, 200, 400, 401, 403, 403, 404, 429, 500, 502, 503, 504]),
    headers=st.dictionaries(
        st.sampled_from(LIMITS), st.sampled_from(["0", "-1", "60", "9" * 400, "1_0", "\u0663", "soon", ""]) | header, max_size=5
    ),
)
@example(body=b'{"errors": [{"message": "API rate limit exceeded"}], "data": null}', status=200, headers={"retry-after": "1"})
async def test_an_answer_of_github_is_read_or_refused(body, status, headers):
    def answer(_request):
        return httpx2.Response(status, content=body, headers={name: value.encode() for name, value in headers.items()})

    transport = httpx2.MockTransport(answer)
    async with open_github("http://stub/graphql", [Credential(Token("token", "t"))], transport=transport) as github:
        github._patience = 0.0
        for _ in range(2):  # what a first one said of limits is obeyed by the second
            try:
                data, errors = await github.ask_once("ping", {})
            except StarsearchError as error:
                str(error).encode("utf-8", "replace")
            else:
                assert isinstance(data, dict)
                assert all(isinstance(error.message, str) for error in errors)


@FUZZ
@given(body=bodies(MODELS), wanted=st.none() | st.just("stub"), page=bodies({"loaded_context_length": 8_192}))
@example(body=b"[" * 100_000, wanted=None, page=b"")
@example(body=json.dumps({"data": [MODEL | {"owned_by": "llamacpp"}]}).encode(), wanted=None, page=b"[" * 100_000)
@example(body=json.dumps({"data": [MODEL | {"id": "a\0b", "owned_by": "organization_owner"}]}).encode(), wanted=None, page=b"")
async def test_what_an_engine_says_of_its_models_is_read_or_refused(body, wanted, page):
    def answer(request):
        return httpx2.Response(200, content=body if request.url.path.endswith("/v1/models") else page)

    async with open_client("http://stub/v1", transport=httpx2.MockTransport(answer), patience_seconds=0.0) as client:
        try:
            engine = await preflight(client, wanted, purpose="LLM")
            check_context(engine)
        except PreconditionMissing as error:
            assert str(error)


HIT = Hit(
    id=1, url="https://github.com/a/b/issues/1", repo="a/b", number=1, type="issue", state="open", author="ada", labels=[], title="t",
    summary="The sum is doubled.", summary_source="model", score=0.5, scores={"vector": 0.5, "text": None}, created_at=None, updated_at=None,
    closed_at=None,
)  # fmt: skip
PIECE = {
    "id": "c", "object": "chat.completion.chunk", "created": 0, "model": "stub",
    "choices": [{"index": 0, "delta": {"content": "It is doubled [1]. "}, "finish_reason": None}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}  # fmt: skip
events = st.lists(
    st.binary(max_size=40)
    | (values | damaged(PIECE)).map(lambda value: b"data: " + encoded(json.dumps(value)) + b"\n\n")
    | st.sampled_from([b"event: error\n", b"event: surprise\ndata: {}\n\n", b": ping\n\n", b"data: [DONE]\n\n", b"id: \0\n", b"retry: soon\r\r", b"data: " + b"[" * 100_000 + b"\n\n"]),
    max_size=8,
).map(b"".join)  # fmt: skip


@FUZZ
@given(stream=events, cut=st.integers(1, 50), broken=st.booleans(), kind=st.sampled_from(["text/event-stream", "application/json", ""]))
@example(stream=b"data: " + b"[" * 100_000 + b"\n\n", cut=5_000, broken=False, kind="text/event-stream")
async def test_an_answer_that_streams_cites_its_sources_or_is_none(stream, cut, broken, kind):
    async def pieces():
        for at in range(0, len(stream), cut):
            yield stream[at : at + cut]
        if broken:
            raise httpx2.ReadError("closed")

    said = []
    async for engine in engine_answering(lambda: httpx2.Response(200, headers={"content-type": kind}, content=pieces())):
        try:
            reply = await answer(engine, "Why?", [HIT], lambda text, numbers: said.append(text))
        except (DigestFailed, EngineUnavailable) as error:
            str(error).encode("utf-8", "replace")
        else:
            assert reply is None or (reply[1] == [1] and reply[0] == "".join(said))


NAMES = [name for name in Settings.model_fields if name not in {"home"}]


@FUZZ
@given(name=st.sampled_from(NAMES), value=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40))
def test_a_setting_is_read_or_refused(monkeypatch, name, value):
    from starsearch.settings import read_settings

    variable = "PREFECT_API_URL" if name == "prefect_api_url" else f"STARSEARCH_{name.upper()}"
    with monkeypatch.context() as patched:
        patched.setenv(variable, value)
        try:
            read_settings()
        except PreconditionMissing as error:
            assert str(error)
