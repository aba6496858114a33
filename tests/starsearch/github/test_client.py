"""One query, one answer: every way in which GitHub says "not now", who asks next, and what was waited."""

import asyncio
import gzip
import logging
from datetime import timedelta
from importlib import resources

import httpx2
import pytest
from graphql import parse, validate

from starsearch.bounded import MOST_BYTES
from starsearch.errors import AnswerUnusable, QueryRefused, QueryTooHeavy, RateLimited, SourceUnavailable, StarsearchError
from starsearch.github.client import FAILED_REQUESTS, NAPS_SECONDS, TIMEOUT_SECONDS, TRIES, query_text
from starsearch.github.resolve import NAMES, _query
from tests.standin.documents import schema
from tests.starsearch.github.wire import NOW, URL, Response, Wire, data, error, failure, quota, refused, token

pytestmark = pytest.mark.usefixtures("time")

QUERIES = sorted(path.name.removesuffix(".graphql") for path in (resources.files("starsearch.github") / "queries").iterdir())
ANSWER = data(node={"id": "R_1"})
LIMITED = error("RATE_LIMITED", message="API rate limit exceeded")
NAPS = [seconds / 2 for seconds in NAPS_SECONDS]  # with the least jitter
HTML = "<html><title>Blocked</title></html>"


async def ask(wire: Wire, *credentials, **how):
    async with wire.open(*credentials, **how) as github:
        return await github.ask("ping", {})


@pytest.mark.parametrize("name", QUERIES)
def test_every_query_is_one_that_github_understands(name):
    assert not validate(schema(), parse(query_text(name)))


@pytest.mark.parametrize("number", [1, NAMES])
def test_the_query_made_for_names_is_one_that_github_understands(number):
    assert not validate(schema(), parse(_query(number)))


def test_the_check_of_queries_can_fail():
    assert validate(schema(), parse("{ rateLimit { costs } }"))
    assert {"fetch", "ping", "sweep"} <= set(QUERIES)


async def test_a_request_carries_the_query_its_variables_and_who_asks():
    wire = Wire(ANSWER)
    async with wire.open() as github:
        answer = await github.ask("list_pulls", {"id": "R_1", "after": None})
    [asked] = wire.asked
    assert answer.data["node"] == {"id": "R_1"}
    assert (asked.query, asked.variables, asked.token) == (query_text("list_pulls"), {"id": "R_1", "after": None}, "a")
    assert asked.headers["x-github-next-global-id"] == "1"  # old and new node ids must never mix
    assert asked.headers["user-agent"] == "starsearch"


async def test_usage_counts_requests_points_and_queries():
    wire = Wire(data(cost=3, node={}), data(cost=1, node={}), failure(500), data(cost=1, node={}))
    async with wire.open() as github:
        await github.ask("list_pulls", {})
        await github.ask("list_pulls", {})
        await github.ask("ping", {})
    assert github.usage.as_dict() == {
        "requests": 4,
        "points": 5,
        "splits": 0,
        "waits": 0,
        "waited_seconds": 0.0,
        "retries": 1,
        "by_query": {"list_pulls": 2, "ping": 2},
    }
    assert str(github.usage) == "GitHub: 5 points, 4 requests, 0 splits, 1 retries"


async def test_a_ping_learns_githubs_time_and_points():
    async with Wire(data(headers=quota(4_321))).open() as github:
        await github.ping()
        assert abs(github.now - NOW) < timedelta(seconds=2)
        assert github.pool.credentials[0].remaining == 4_321
        assert github.points_per_hour == 5_000


@pytest.mark.parametrize(
    ("limit", "waited"),
    [
        (refused(LIMITED, **quota(0, resets_in=120)), 125),  # the hour's points: until the reset, and 5 s for good measure
        (refused(error("RATE_LIMITED", message="come back later")), 60),  # nothing but the type
        (refused(error(message="You have exceeded a secondary rate limit.")), 60),  # GitHub gives it no code
        (refused(error(message="something else"), retry_after="17"), 17),
        (refused(error(message="something else"), **quota(0, resets_in=30)), 35),
        (failure(403, retry_after="90"), 90),
        (failure(403, retry_after="90", **quota(0, resets_in=30)), 90),  # what GitHub asks for goes before what we work out
        (failure(403, **quota(0, resets_in=100)), 105),
        (failure(403, "You have exceeded a secondary rate limit"), 60),
        (failure(403, "API rate limit exceeded", retry_after="Sun, 01 Mar 2026 12:01:00 GMT"), 60),  # GitHub sends seconds
        (failure(429), 60),
        (failure(429, retry_after="3"), 3),
        (Response(429, html=HTML), 60),
        (failure(429, **quota(4_000)), 60),  # plenty of points: a secondary limit
        (failure(429, retry_after="0"), 1),  # never at once: GitHub could say so for ever
        (failure(403, **quota(0, resets_in=-3_600)), 1),  # a reset long past
    ],
)
async def test_every_form_of_limit_is_waited_for_and_no_failure(limit, waited):
    wire = Wire(limit, ANSWER)
    async with wire.open() as github:
        answer = await github.ask_once("ping", {})  # not a try of ask(): a limit counts as none
    assert answer.data["node"] == {"id": "R_1"}
    assert wire.waits == [waited]
    assert (github.usage.waits, github.usage.retries) == (1, 0)
    assert github.usage.waited_seconds == waited


async def test_a_limit_in_the_middle_of_an_answer_is_a_limit_too():
    wire = Wire(data(nodes=[None], errors=[LIMITED]), ANSWER)
    answer = await ask(wire)
    assert not answer.errors
    assert wire.waits == [60]


async def test_after_a_short_wait_without_points_the_reset_is_waited_for_too():
    wire = Wire(failure(403, retry_after="5", **quota(0, resets_in=120)), ANSWER)
    await ask(wire)
    assert wire.waits == [120]


async def test_limits_without_a_hint_wait_twice_as_long_each_time():
    wire = Wire(failure(429), failure(429), failure(429), ANSWER, failure(429), ANSWER)
    async with wire.open() as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    assert wire.waits == [60, 120, 240, 0, 60]  # an answer starts the count again
    assert github.usage.waited_seconds == 480
    assert "4 waits of 480 s" in str(github.usage)


async def test_a_limit_beyond_patience_ends_the_crawl_and_says_until_when():
    wire = Wire(failure(429))
    with pytest.raises(RateLimited, match=r"reached for 8 minutes \(token a: None of None points\).*joins the next crawl") as caught:
        await ask(wire)
    assert wire.waits == [60, 120, 240]  # and not the 480
    assert caught.value.resets_at == wire.now + timedelta(seconds=480)


async def test_a_backfill_sits_out_the_hour():
    limit = failure(403, **quota(0, resets_in=3_600))
    with pytest.raises(RateLimited) as caught:
        await ask(Wire(limit))
    assert abs(caught.value.resets_at - NOW - timedelta(seconds=3_605)) < timedelta(seconds=2)
    wire = Wire(limit, ANSWER)
    await ask(wire, backfill=True)
    assert wire.waits == [3_605]


async def test_a_limited_credential_waits_while_another_goes_on():
    wire = Wire(failure(429), ANSWER)
    async with wire.open(token("a", remaining=10, limit=10), token("b", remaining=9, limit=10)) as github:
        for _ in range(3):
            await github.ask("ping", {})
    assert wire.tokens == ["a", "b", "b", "b"]
    assert wire.waits == [0, 0, 0]


async def test_a_blocked_credential_is_used_again_when_its_block_ends():
    wire = Wire(failure(429, retry_after="20"), failure(429, retry_after="50"), ANSWER)
    await ask(wire, token("a"), token("b"))
    assert wire.tokens == ["a", "b", "a"]
    assert wire.waits == [0, 20]


@pytest.mark.parametrize(
    "answer",
    [
        failure(403, "Resource not accessible by personal access token"),
        refused(error("INSUFFICIENT_SCOPES", message="Resource not accessible by personal access token")),
        refused(error("FORBIDDEN", message="Resource not accessible by personal access token")),
    ],
)
async def test_a_refusal_that_is_no_limit_costs_the_credential_and_tells_githubs_reason(answer):
    wire = Wire(answer, ANSWER)
    async with wire.open(token("a"), token("b")) as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
        reason = github.pool.credentials[0].refused
    assert wire.tokens == ["a", "b", "b"]
    assert "token a" in reason
    assert "Resource not accessible by personal access token" in reason
    with pytest.raises(SourceUnavailable, match=r"token a.*Resource not accessible"):
        await ask(Wire(answer))


async def test_a_page_that_forbids_is_told_with_its_address():
    with pytest.raises(SourceUnavailable, match=f"token a is forbidden to ask {URL}: 403, without a reason"):
        await ask(Wire(Response(403, html=HTML)))


async def test_a_token_refused_once_is_tried_again():
    wire = Wire(failure(401, "Bad credentials"), ANSWER)
    async with wire.open() as github:
        await github.ask_once("ping", {})
    assert wire.tokens == ["a", "a"]
    assert (github.usage.waits, github.usage.retries) == (0, 1)


async def test_a_token_refused_now_and_then_is_a_good_one():
    wire = Wire(failure(401), ANSWER, failure(401), ANSWER, failure(401), ANSWER)
    async with wire.open() as github:
        for _ in range(3):
            await github.ask("ping", {})
    assert len(wire.asked) == 6


async def test_a_token_refused_twice_is_not_used_again_and_the_other_goes_on():
    wire = Wire(failure(401), failure(401), ANSWER)
    async with wire.open(token("a"), token("b")) as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    assert wire.tokens == ["a", "a", "b", "b"]


async def test_all_refused_names_the_setting():
    wire = Wire(failure(401))
    with pytest.raises(SourceUnavailable, match=r"refuses token a: replace it .STARSEARCH_GITHUB_TOKENS.*token b") as caught:
        await ask(wire, token("a"), token("b"))
    assert len(wire.asked) == 4
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("latency", [0.0, 5.0])
async def test_requests_in_flight_that_are_refused_together_count_once(latency):
    """The second 401 comes back when the first one's retry is already under way."""
    wire = Wire(failure(401), failure(401), ANSWER, latency=latency)

    async def late(_request):
        await asyncio.sleep(latency / 2)
        return failure(401)

    wire.replies[1] = late
    async with wire.open() as github, asyncio.TaskGroup() as group:
        group.create_task(github.ask_once("ping", {}))
        group.create_task(github.ask_once("ping", {}))
    assert len(wire.asked) == 4
    assert not github.pool.credentials[0].refused


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (failure(502), QueryTooHeavy, "502"),
        (failure(504), QueryTooHeavy, "504"),
        (httpx2.ReadTimeout("timed out"), QueryTooHeavy, f"within {TIMEOUT_SECONDS:.0f} seconds"),
        (refused(error("RESOURCE_LIMITS_EXCEEDED")), QueryTooHeavy, "resource limits"),
        (failure(500), AnswerUnusable, "500"),
        (failure(503), AnswerUnusable, "503"),
        (httpx2.RemoteProtocolError("peer closed connection"), AnswerUnusable, "broke.*peer closed"),
        (httpx2.ReadError(""), AnswerUnusable, "broke.*ReadError"),
        (httpx2.DecodingError("not gzip"), AnswerUnusable, "not gzip"),
        (httpx2.ConnectError("refused"), AnswerUnusable, f"{URL} does not answer .refused.: check the network"),
        (httpx2.ConnectTimeout("timed out"), AnswerUnusable, f"{URL} does not answer"),  # nobody there is not a heavy query
        (Response(200, html=HTML), AnswerUnusable, f"{URL} answered 200 with text/html.*is there a proxy"),
        (Response(503, html=HTML), AnswerUnusable, f"{URL} answered 503 with text/html"),
        (Response(302, headers={"location": "https://proxy.example/login"}), AnswerUnusable, f"{URL} answered 302 with nothing"),
        (Response(200), AnswerUnusable, "200 with nothing"),
        (Response(200, content=b'{"data": {"no'), AnswerUnusable, URL),  # cut off
        (Response(200, json=None), AnswerUnusable, URL),
        (Response(200, json=[1]), AnswerUnusable, URL),
        (Response(200, json="x"), AnswerUnusable, URL),
        (Response(200, json={}), AnswerUnusable, URL),  # JSON, but nobody's answer to a query
        (Response(200, json={"status": "ok"}), AnswerUnusable, URL),
        (Response(200, json={"data": [1]}), AnswerUnusable, URL),
        (Response(200, json={"data": "x"}), AnswerUnusable, URL),
        (Response(200, json={"data": {"rateLimit": 5}}), AnswerUnusable, URL),
        (Response(200, json={"data": {"rateLimit": {"cost": "much"}}}), AnswerUnusable, URL),
        (Response(200, json={"data": {"rateLimit": {"cost": None}}}), AnswerUnusable, URL),
        (Response(200, json={"errors": 5}), AnswerUnusable, URL),
        (Response(200, json={"errors": "boom"}), AnswerUnusable, URL),
        (Response(200, json={"errors": [None]}), AnswerUnusable, URL),
        (Response(200, json={"errors": [{"path": 5}]}), AnswerUnusable, URL),
    ],
)
async def test_what_fails_is_asked_three_times_and_then_told(reply, kind, message):
    wire = Wire(reply)
    with pytest.raises(StarsearchError, match=message) as caught:
        await ask(wire)
    assert type(caught.value) is kind
    assert wire.waits == NAPS[: TRIES - 1]


@pytest.mark.parametrize("reply", [failure(502), httpx2.ReadTimeout("timed out"), httpx2.RemoteProtocolError("peer closed"), failure(500)])
async def test_one_lost_answer_is_no_loss(reply):
    wire = Wire(reply, reply, ANSWER)
    assert (await ask(wire)).data["node"] == {"id": "R_1"}
    assert len(wire.asked) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refused(error("undefinedField", message="Field 'x' doesn't exist")), "undefinedField: Field 'x' doesn't exist"),
        (refused(error(message="Something went wrong")), "error: Something went wrong"),
        (failure(404, "Not Found"), "404: Not Found"),  # not the API's address
        (Response(400, json={}), "400: no reason given"),
    ],
)
async def test_what_github_will_not_answer_is_not_asked_again(reply, message):
    wire = Wire(reply)
    with pytest.raises(QueryRefused, match=message):
        await ask(wire)
    assert len(wire.asked) == 1


async def test_one_node_that_is_forbidden_is_an_answer():
    wire = Wire(data(node=None, errors=[error("FORBIDDEN", ["node"], "SAML")]))
    answer = await ask(wire)
    assert [(each.type, each.path, each.message) for each in answer.errors] == [("FORBIDDEN", ("node",), "SAML")]


@pytest.mark.parametrize("reply", [failure(502), Response(200, html=HTML), failure(404, "Not Found"), Response(200, json={"status": "ok"})])
async def test_a_ping_without_an_answer_names_the_setting(reply):
    async with Wire(reply).open() as github:
        with pytest.raises(SourceUnavailable, match=f"STARSEARCH_GITHUB_GRAPHQL_URL is {URL}"):
            await github.ping()


async def test_six_failed_requests_in_a_row_mean_that_github_is_down():
    wire = Wire(failure(500))
    async with wire.open() as github:
        with pytest.raises(AnswerUnusable):
            await github.ask("ping", {})
        with pytest.raises(SourceUnavailable, match=f"{FAILED_REQUESTS} requests in a row failed, the last one so: GitHub answered 500"):
            await github.ask("ping", {})
    assert len(wire.asked) == FAILED_REQUESTS == 6


async def test_an_answer_between_failures_starts_the_count_again():
    wire = Wire(*[failure(500)] * 3, ANSWER, *[failure(500)] * 3, ANSWER)
    async with wire.open() as github:
        for _ in range(2):
            with pytest.raises(AnswerUnusable):
                await github.ask("ping", {})
            await github.ask("ping", {})
    assert len(wire.asked) == 8


@pytest.mark.parametrize(
    "headers",
    [
        {"x-ratelimit-remaining": "abc", "x-ratelimit-limit": "5000", "x-ratelimit-reset": "1772366400"},
        {"x-ratelimit-remaining": "", "x-ratelimit-limit": "", "x-ratelimit-reset": ""},
        {"x-ratelimit-remaining": "0", "x-ratelimit-limit": "5000", "x-ratelimit-reset": "9" * 30},  # beyond any calendar
        {"x-ratelimit-remaining": "0", "x-ratelimit-limit": "5000", "x-ratelimit-reset": "1772366400000"},  # milliseconds
        {"x-ratelimit-remaining": "0", "x-ratelimit-limit": "5000", "x-ratelimit-reset": "nan"},
        {"x-ratelimit-remaining": "0", "x-ratelimit-limit": "9" * 400, "x-ratelimit-reset": "soon"},  # not read by half
        {"x-ratelimit-remaining": "0", "x-ratelimit-limit": "9" * 400, "x-ratelimit-reset": "1772366400"},  # no float
        {"x-ratelimit-remaining": "-1", "x-ratelimit-limit": "5000", "x-ratelimit-reset": "1772366400"},
        {"date": "nonsense"},
        {"date": ""},
        {"date": "Mon, 01 Jan 0001 00:00:00 +0100"},  # before there was time
        {"retry-after": "soon"},
    ],
)
async def test_broken_headers_are_ignored(headers):
    wire = Wire(data(node={}, headers=headers), ANSWER)
    async with wire.open() as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    assert wire.waits == [0]


async def test_a_retry_after_beyond_any_limit_is_a_day():
    wire = Wire(failure(429, retry_after="9" * 400))
    with pytest.raises(RateLimited) as caught:
        await ask(wire)
    assert caught.value.resets_at == NOW + timedelta(days=1)


@pytest.mark.parametrize("asked", ["soon", "-5", "", "²"])
async def test_a_broken_retry_after_counts_as_none(asked):
    wire = Wire(Response(429, headers=[(b"retry-after", asked.encode("latin-1"))]), ANSWER)
    await ask(wire)
    assert wire.waits == [60]


async def asks(github, number: int) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(github.ask("ping", {}))


@pytest.mark.parametrize(("credentials", "most"), [(1, 1), (1, 2), (1, 7), (3, 2)])
async def test_no_more_requests_are_in_flight_than_allowed(credentials, most):
    wire = Wire(ANSWER, latency=0.5)
    async with wire.open(*[token(str(n), most) for n in range(credentials)]) as github:
        await asks(github, 40)
        assert github.width == credentials * most
    assert wire.most_in_flight == github.pool.most_in_flight == credentials * most
    assert github.pool.in_flight == wire.in_flight == 0
    assert len(wire.asked) == 40


@pytest.mark.parametrize("trouble", [failure(502), failure(504), httpx2.ReadTimeout("timed out"), failure(429)])
async def test_trouble_halves_what_is_in_flight_and_answers_bring_it_back(trouble):
    wire = Wire(trouble, ANSWER, latency=0.5)
    credential = token("a", 8)
    async with wire.open(credential) as github:
        await github.ask("ping", {})
        assert 4 <= credential.allowed < 4.1
        wire.most_in_flight = 0
        await asks(github, 10)
        assert wire.most_in_flight == 4
        await asks(github, 80)
        wire.most_in_flight = 0
        await asks(github, 20)
    assert credential.allowed == wire.most_in_flight == 8


async def test_one_request_is_always_allowed():
    wire = Wire(*[failure(502)] * 10, ANSWER)
    credential = token("a")
    async with wire.open(credential) as github:
        for _ in range(3):
            with pytest.raises(QueryTooHeavy):
                await github.ask("ping", {})
        await github.ask("ping", {})
    assert 1 <= credential.allowed < 1.1


async def test_a_request_that_is_given_up_makes_room():
    wire = Wire(ANSWER, latency=60)
    async with wire.open(token("a", 1)) as github:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(github.ask("ping", {}), 1)
        await github.ask("ping", {})
    assert github.pool.in_flight == 0


@pytest.mark.parametrize(
    "reply",
    [
        failure(401, "Bad credentials"),
        failure(403, "Forbidden"),
        failure(500),
        failure(502),
        failure(429, retry_after="9999"),
        Response(200, html=HTML),
        refused(error("FORBIDDEN")),
        httpx2.ReadError("reset"),
        httpx2.LocalProtocolError("Illegal header value b'Bearer canary-7f3a'"),  # what h11 says of a line break in a token
    ],
)
async def test_a_token_is_never_told(reply, caplog):
    caplog.set_level(logging.DEBUG)
    wire = Wire(reply)
    async with wire.open(token("canary-7f3a", name="token 1 of 1")) as github:
        for _ in range(2):
            with pytest.raises(StarsearchError) as caught:
                await github.ask("ping", {})
            assert "canary" not in str(caught.value)
        assert "canary" not in f"{github.pool.credentials!r} {github.usage!r} {github.pool.credentials[0].refused}"
    assert wire.tokens[0] == "canary-7f3a"
    assert caplog.records
    assert "canary" not in caplog.text


@pytest.mark.parametrize("secret", ["canary-7f3a\nghp_b", "canary-7f3ä", "canary-7f3a\0"])
async def test_a_token_that_no_header_can_carry_is_refused_and_not_told(secret, caplog):
    wire = Wire(ANSWER)
    with pytest.raises(SourceUnavailable, match=r"token 1 of 2.*STARSEARCH_GITHUB_TOKENS") as caught:
        await ask(wire, token(secret, name="token 1 of 2"))
    assert "canary" not in f"{caught.value} {caplog.text}"
    assert not wire.asked


async def test_an_answer_that_is_too_long_is_asked_for_in_parts():
    packed = gzip.compress(bytes(MOST_BYTES + 1))
    wire = Wire(lambda _: Response(200, headers={"content-encoding": "gzip"}, stream=httpx2.ByteStream(packed)))
    async with wire.open() as github:
        with pytest.raises(QueryTooHeavy, match="longer than 64 MB"):
            await github.ask("ping", {})
    assert len(wire.asked) == TRIES
