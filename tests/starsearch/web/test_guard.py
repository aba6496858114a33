"""Keys, limits and who is asked for what: the real app over the real database, without a port."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2
import psycopg
import pytest

from starsearch.settings import Settings
from starsearch.store.web import create_key, revoke_key
from starsearch.web import guard
from starsearch.web.app import build_app
from starsearch.web.guard import Access, Rates
from starsearch.web.problems import Refused
from starsearch.web.searching import Turnstile
from starsearch.web.serve import access_for
from starsearch.web.site import open_site

KEYED = access_for("0.0.0.0", anyone=False, requests_per_minute=600)
BROWSER = {"Accept": "text/html"}

Client = httpx2.AsyncClient


@asynccontextmanager
async def asking(settings: Settings, access: Access) -> AsyncIterator[Client]:
    """A client of another machine."""
    async with open_site(settings) as site:
        transport = httpx2.ASGITransport(app=build_app(site, access), client=("192.0.2.7", 1234))
        async with httpx2.AsyncClient(transport=transport, base_url="http://search.example") as client:
            yield client


@pytest.fixture
def make_key(store) -> Callable[..., Awaitable[str]]:
    return lambda name, per_minute=None: create_key(store.pool, name, per_minute)


def test_only_loopback_goes_without_a_key():
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        assert access_for(host, anyone=False, requests_per_minute=1).keys_required is False
    for host in ("0.0.0.0", "::", "192.0.2.1", "search.example"):
        assert access_for(host, anyone=False, requests_per_minute=1).keys_required is True
        assert access_for(host, anyone=True, requests_per_minute=1).keys_required is False


async def test_elsewhere_everybody_needs_a_key(settings: Settings, make_key):
    token = await make_key("reader")
    async with asking(settings, KEYED) as client:
        for path in ("/v1/status", "/v1/openapi.json", "/v1/search?q=x", "/mcp"):
            refused = await client.get(path)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/v1/status", headers={"Authorization": f"Bearer {token}"})).status_code == 200
        assert (await client.get("/v1/status", headers={"Authorization": f"Bearer {token}x"})).status_code == 401
        assert (await client.get("/v1/status", headers={"Authorization": "Basic dXNlcjpw"})).status_code == 401
        for path in ("/healthz", "/metrics", "/static/style.css"):
            assert (await client.get(path)).status_code == 200


async def test_a_browser_is_led_to_sign_in_and_back(settings: Settings, make_key):
    token = await make_key("person")
    async with asking(settings, KEYED) as client:
        led = await client.get("/?q=sockets", headers=BROWSER)
        assert (led.status_code, led.headers["location"]) == (303, "/sign-in?next=%2F%3Fq%3Dsockets")
        wrong = await client.post("/sign-in", data={"key": "nonsense", "next": "/"}, headers=BROWSER)
        assert (wrong.status_code, "not valid" in wrong.text) == (401, True)
        right = await client.post("/sign-in", data={"key": token, "next": "/status"}, headers=BROWSER)
        assert (right.status_code, right.headers["location"]) == (303, "/status")
        cookie = right.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
        assert (await client.get("/status", headers=BROWSER)).status_code == 200


@pytest.mark.parametrize(
    "address", ["https://elsewhere.example/", "//elsewhere.example", "/\\elsewhere.example", "javascript:alert(1)", ""]
)
async def test_nobody_is_led_elsewhere(settings: Settings, make_key, address: str):
    token = await make_key("person")
    async with asking(settings, KEYED) as client:
        led = await client.post("/sign-in", data={"key": token, "next": address})
        assert led.headers["location"] == "/"


async def test_keys_are_hashed_at_rest_and_end_when_revoked(settings: Settings, store, make_key, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guard, "KEY_SECONDS", 0.0)
    token = await make_key("short-lived")
    async with store.pool.connection() as connection:
        rows = await (await connection.execute("SELECT k::text FROM api_key k")).fetchall()
    assert token not in str(rows)
    with pytest.raises(psycopg.errors.UniqueViolation):
        await make_key("short-lived")
    async with asking(settings, KEYED) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert (await client.get("/v1/status", headers=headers)).status_code == 200
        assert await revoke_key(store.pool, "short-lived")
        assert (await client.get("/v1/status", headers=headers)).status_code == 401
    assert not await revoke_key(store.pool, "short-lived")


async def test_each_key_has_its_own_limit(settings: Settings, make_key):
    slow, quick = await make_key("slow", 6), await make_key("quick")
    async with asking(settings, KEYED) as client:

        async def status(token: str) -> httpx2.Response:
            return await client.get("/v1/openapi.json", headers={"Authorization": f"Bearer {token}"})

        assert (await status(slow)).status_code == 200
        refused = await status(slow)
        assert (refused.status_code, 1 <= int(refused.headers["retry-after"]) <= 10) == (429, True)
        assert "6 requests a minute" in refused.json()["detail"]
        assert {(await status(quick)).status_code for _ in range(20)} == {200}


async def test_addresses_without_keys_have_a_limit_where_anyone_may_ask(settings: Settings):
    async with asking(settings, access_for("0.0.0.0", anyone=True, requests_per_minute=12)) as client:
        statuses = [(await client.get("/v1/openapi.json")).status_code for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


async def test_guessing_keys_is_slowed_down(settings: Settings):
    async with asking(settings, access_for("0.0.0.0", anyone=False, requests_per_minute=60)) as client:
        statuses = [(await client.get("/v1/status", headers={"Authorization": f"Bearer guess{n}"})).status_code for n in range(15)]
        assert (statuses[0], statuses[-1]) == (401, 429)
    async with asking(settings, access_for("0.0.0.0", anyone=False, requests_per_minute=60)) as client:
        forms = [(await client.post("/sign-in", data={"key": f"guess{n}", "next": "/"}, headers=BROWSER)).status_code for n in range(15)]
        assert (forms[0], forms[-1]) == (401, 429)
        assert (await client.get("/sign-in")).status_code == 200


def test_a_bucket_fills_again_and_many_askers_cost_no_more_memory(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr(guard.time, "monotonic", lambda: now)
    rates = Rates()
    assert [rates.take("a", 60) for _ in range(11)] == [0.0] * 10 + [1.0]
    now = 1.0
    assert rates.take("a", 60) == 0.0
    for number in range(guard.REMEMBERED + 500):
        rates.take(f"asker {number}", 60)
    assert len(rates._buckets) == guard.REMEMBERED


async def test_a_search_beyond_the_queue_is_told_to_come_back():
    turnstile = Turnstile(at_once=1, queue=1, wait_seconds=0.2)
    started, go = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with turnstile.turn():
            started.set()
            await go.wait()

    async def wait() -> None:
        async with turnstile.turn():
            pass

    holder = asyncio.create_task(hold())
    await started.wait()
    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="too many searches"):
        await wait()
    with pytest.raises(Refused, match="too many searches"):
        await waiter
    go.set()
    await holder
    await wait()
