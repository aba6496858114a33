"""One client over several addresses on a fake wire: who is asked, who is asked again, and when it is given up."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest

from starsearch.inference import endpoints
from starsearch.inference.balancer import Balancer
from starsearch.inference.client import counting, open_client
from starsearch.logs import about
from tests.stub_engine import completion, failure

THREE = "http://a/v1,http://b/v1,http://c/v1"
REFUSED = httpx2.ConnectError("refused")
DROPPED = httpx2.ReadError("closed")


class Wire:
    """Answers by host: a response, an error, or a list of them whose last one stays. A good answer by default."""

    def __init__(self, **said):
        self.said = {host: list(answers) if isinstance(answers, list) else [answers] for host, answers in said.items()}
        self.asked = []
        self.most = Counter()
        self.now = Counter()

    async def __call__(self, request):
        host = request.url.host
        self.asked.append(host)
        self.now[host] += 1
        self.most[host] = max(self.most[host], self.now[host])
        try:
            await asyncio.sleep(0.002)
        finally:
            self.now[host] -= 1
        answers = self.said.get(host, [completion("Fine.")])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


@asynccontextmanager
async def opened(wire, base_urls=THREE, patience_seconds=5.0, **options):
    balancer = options.pop("balancer", None) or Balancer()
    async with open_client(
        base_urls, transport=httpx2.MockTransport(wire), patience_seconds=patience_seconds, balancer=balancer, **options
    ) as client:
        yield client


async def ask(client):
    answer = await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hello"}])
    return answer.choices[0].message.content


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoints, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("starsearch.inference.balancer.FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("starsearch.inference.balancer.LONGEST_PAUSE_SECONDS", 0.05)


async def test_requests_in_flight_are_spread_evenly():
    hosts = Counter()
    everybody = asyncio.Event()

    async def handle(request):
        hosts[request.url.host] += 1
        if hosts.total() == 30:
            everybody.set()
        await everybody.wait()
        return completion("Fine.")

    async with opened(handle) as client, asyncio.timeout(20):
        await asyncio.gather(*(ask(client) for _ in range(30)))
    assert dict(hosts) == {"a": 10, "b": 10, "c": 10}


async def test_a_request_goes_to_the_path_of_its_address():
    paths = []

    def handle(request):
        paths.append((request.url.path, request.headers["host"]))
        return completion("Fine.")

    async with opened(Wire(b=handle, a=REFUSED), "http://a/v1,http://b:8080/openai/v1") as client:
        await ask(client)
    assert paths == [("/openai/v1/chat/completions", "b:8080")]


@pytest.mark.parametrize("trouble", [REFUSED, DROPPED, failure(503), failure(429), failure(500), failure(404), httpx2.ReadTimeout("slow")])
async def test_what_one_address_cannot_answer_another_one_does(trouble):
    wire = Wire(a=trouble)
    async with opened(wire) as client:
        assert await asyncio.gather(*(ask(client) for _ in range(30))) == ["Fine."] * 30
    assert wire.asked.count("a") >= 1


@pytest.mark.parametrize("status", [400, 401, 403, 413, 422])
async def test_what_every_address_would_refuse_is_asked_once(status):
    wire = Wire(a=failure(status), b=failure(status), c=failure(status))
    async with opened(wire) as client:
        with pytest.raises(openai.APIStatusError):
            await ask(client)
    assert len(wire.asked) == 1


async def test_an_account_out_of_credit_is_not_asked_again():
    wire = Wire(a=httpx2.Response(429, json={"error": {"message": "pay", "code": "insufficient_quota"}}))
    async with opened(wire, "http://a/v1") as client:
        with pytest.raises(openai.RateLimitError):
            await ask(client)
    assert len(wire.asked) == 1


@pytest.mark.parametrize(
    ("header", "value", "status", "asked"),
    [
        ("x-should-retry", "false", 503, 1),  # the engine knows better
        ("x-should-retry", "true", 418, endpoints.TRIES),
        ("retry-after", "121", 429, 1),  # beyond what is waited for
    ],
)
async def test_what_the_engine_orders_is_obeyed(header, value, status, asked):
    wire = Wire(a=httpx2.Response(status, headers={header: value}))
    async with opened(wire, "http://a/v1") as client:
        with pytest.raises(openai.APIStatusError):
            await ask(client)
    assert len(wire.asked) == asked


async def test_a_pause_that_the_engine_orders_is_kept_by_all():
    wire = Wire(a=[httpx2.Response(503, headers={"retry-after": "0.3"}), completion("Fine.")])
    async with opened(wire, "http://a/v1") as client:
        started = asyncio.get_running_loop().time()
        await ask(client)
        assert asyncio.get_running_loop().time() - started >= 0.3


async def test_a_text_that_kills_its_engine_takes_no_more_than_three():
    wire = Wire(**dict.fromkeys("abcde", DROPPED))
    async with opened(wire, "http://a/v1,http://b/v1,http://c/v1,http://d/v1,http://e/v1") as client:
        with pytest.raises(openai.APIConnectionError):
            await ask(client)
    assert len(wire.asked) == len(set(wire.asked)) == endpoints.TRIES


async def test_a_single_full_engine_serves_five_hundred_without_losing_one():
    """As vLLM with a short queue: 503 without Retry-After for whatever comes above it."""
    inside = 0

    async def full(request):
        nonlocal inside
        if inside >= 24:
            return httpx2.Response(503, json={"error": {"message": "queue full"}})
        inside += 1
        try:
            await asyncio.sleep(0.01)
            return completion("Fine.")
        finally:
            inside -= 1

    async with opened(full, "http://a/v1", patience_seconds=30) as client:
        with counting() as spent:
            answers = await asyncio.gather(*(ask(client) for _ in range(500)))
    assert answers == ["Fine."] * 500
    # without a limit that learns, each of the 64 in flight would be refused again and again
    assert spent.requests < 500 * 1.3


async def test_all_refusing_is_one_pause_and_no_stampede():
    wire = Wire(**dict.fromkeys("abc", failure(503)))
    async with opened(wire, patience_seconds=0.5) as client:
        await asyncio.gather(*(ask(client) for _ in range(60)), return_exceptions=True)
    # 60 requests over half a second, pauses of 10 to 50 ms: unbounded, that would be thousands
    assert len(wire.asked) < 600


async def test_an_engine_that_is_gone_is_given_up_by_all_when_patience_ends():
    wire = Wire(a=REFUSED)
    async with opened(wire, "http://a/v1", patience_seconds=0.3) as client:
        async with asyncio.timeout(20):  # patience of each after the other would be a minute
            outcomes = await asyncio.gather(*(ask(client) for _ in range(200)), return_exceptions=True)
    assert all(isinstance(outcome, openai.APIConnectionError) for outcome in outcomes)


async def test_an_engine_that_comes_back_within_patience_loses_nothing():
    wire = Wire(a=[DROPPED] * 20 + [REFUSED] * 10 + [completion("Fine.")])
    async with opened(wire, "http://a/v1") as client:
        assert await asyncio.gather(*(ask(client) for _ in range(40))) == ["Fine."] * 40


async def test_a_pause_is_told_once_and_the_end_of_it_not_for_each_request(told):
    wire = Wire(a=[REFUSED] * 30 + [completion("Fine.")])
    async with opened(wire, "http://user:hunter2@a/v1") as client:  # pragma: allowlist secret
        assert await asyncio.gather(*(ask(client) for _ in range(20))) == ["Fine."] * 20
    assert [line["message"].partition(",")[0] for line in told] == ["a gets a pause", "a answers again"]


async def test_each_try_of_a_text_that_fails_is_told_with_its_item(told):
    async with opened(Wire(a=failure(500)), "http://a/v1") as client:
        with about(repository="quillcap/marlframe", item=17), pytest.raises(openai.InternalServerError):
            await ask(client)
    assert [(line["item"], line["message"]) for line in told] == [(17, f"try {n} of 3 at a failed: HTTP 500") for n in (1, 2, 3)]


async def test_while_an_address_is_unreachable_one_request_tries_and_the_others_wait():
    wire = Wire(a=REFUSED, b=[REFUSED, completion("Fine.")])
    async with opened(wire, "http://a/v1,http://b/v1") as client:
        await ask(client)
        wire.most.clear()
        await asyncio.gather(*(ask(client) for _ in range(20)))
    assert wire.most["a"] <= 1


async def test_a_name_is_looked_up_again_and_new_addresses_get_load_at_once(monkeypatch):
    monkeypatch.setattr(endpoints, "RESOLVE_SECONDS", 0.01)
    found = ["10.0.0.1", "10.0.0.2"]
    hosts = []

    async def resolve(name, port):
        assert (name, port) == ("engines", 8000)
        return list(found)

    def handle(request):
        hosts.append(request.headers["host"])
        return completion("Fine.")

    wire = Wire(**dict.fromkeys(("10.0.0.1", "10.0.0.2", "10.0.0.3"), handle))
    async with opened(wire, "dns+http://engines:8000/v1", resolve=resolve) as client:
        await asyncio.gather(*(ask(client) for _ in range(8)))
        assert set(wire.asked) == {"10.0.0.1", "10.0.0.2"}
        found[:] = ["10.0.0.2", "10.0.0.3"]
        await asyncio.sleep(0.03)
        await ask(client)
        wire.asked.clear()
        await asyncio.gather(*(ask(client) for _ in range(8)))
    assert Counter(wire.asked) == {"10.0.0.2": 4, "10.0.0.3": 4}
    assert set(hosts) == {"engines:8000"}


async def test_a_name_that_is_not_found_later_keeps_the_addresses_known(monkeypatch):
    monkeypatch.setattr(endpoints, "RESOLVE_SECONDS", 0.01)
    answers = [["10.0.0.1"], OSError("no such name")]

    async def resolve(name, port):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    async with opened(Wire(), "dns+http://engines:8000/v1", resolve=resolve) as client:
        await ask(client)
        await asyncio.sleep(0.03)
        assert [await ask(client) for _ in range(3)] == ["Fine."] * 3


async def test_a_name_that_is_never_found_is_no_engine():
    async def resolve(name, port):
        raise OSError("no such name")

    async with opened(Wire(), "dns+http://engines:8000/v1", resolve=resolve) as client:
        with pytest.raises(openai.APIConnectionError):
            await ask(client)


async def test_an_engine_that_tells_of_a_queue_gets_less():
    report = 'JSON {"named_metrics": {"kv_cache_usage_perc": 0.9, "num_requests_waiting": 40.0}}'
    wanted = []

    def handle(request):
        wanted.append(request.headers.get("endpoint-load-metrics-format"))
        return httpx2.Response(200, headers={"endpoint-load-metrics": report}, content=completion("Fine.").content)

    balancer = Balancer()
    async with opened(Wire(a=handle), "http://a/v1", balancer=balancer) as client:
        await asyncio.gather(*(ask(client) for _ in range(10)))
    [endpoint] = balancer.endpoints.values()
    assert endpoint.limit < 10
    assert wanted.count("JSON") == 1  # once a second is enough, and costs the engine little


@pytest.mark.parametrize("report", ["JSON {", "JSON []", 'JSON {"named_metrics": {"num_requests_waiting": "x"}}', "TEXT x=1"])
async def test_an_unreadable_report_is_none(report):
    wire = Wire(a=httpx2.Response(200, headers={"endpoint-load-metrics": report}, content=completion("Fine.").content))
    async with opened(wire, "http://a/v1") as client:
        assert await ask(client) == "Fine."


async def test_every_request_is_counted_where_it_is_sent():
    wire = Wire(a=[failure(503), REFUSED, failure(500), completion("Fine.")])
    async with opened(wire, "http://a/v1") as client:
        with counting() as spent:
            await ask(client)
    assert spent.requests == len(wire.asked) == 4


async def test_a_cancelled_request_gives_its_place_back():
    async def never(request):
        await asyncio.sleep(60)

    balancer = Balancer()
    async with opened(never, "http://a/v1", balancer=balancer) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(5)]
        async with asyncio.timeout(20):
            while sum(endpoint.outstanding for endpoint in balancer.endpoints.values()) < 5:
                await asyncio.sleep(0.01)
        [endpoint] = balancer.endpoints.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert endpoint.outstanding == 0
