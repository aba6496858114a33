"""Who asks next, what is left for others, and Apps that prove who they are by GitHub's clock."""

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from starsearch.errors import AnswerUnusable, RateLimited, SourceUnavailable
from starsearch.github.credentials import AppInstallation, Clock, Credential
from tests.starsearch.github.wire import NOW, Response, Wire, data, failure, quota, token

REST = "https://api.github.com"
PEM = serialization.Encoding.PEM
PLAIN = serialization.NoEncryption()


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, how: serialization.KeySerializationEncryption = PLAIN) -> str:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, how).decode()


def public(key: rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2_048)


@pytest.fixture
def app(key) -> Credential:
    return Credential(AppInstallation("4711", "77", pem(key), REST))


class AppWire(Wire):
    """GitHub that believes a proof signed with `key` and valid by its own clock, and tokens of its own making that have not ended."""

    def __init__(self, key: rsa.RSAPrivateKey, *replies, latency: float = 0.0) -> None:
        super().__init__(*replies or [data(node={})], latency=latency)
        self.key = public(key)
        self.proofs: list[dict[str, int | str]] = []
        self.ends: dict[str, datetime] = {}
        self.at_the_desk: list[Response | Exception] = []  # instead of a token

    async def respond(self, request: httpx2.Request) -> Response:
        if request.url.path.endswith("/graphql"):
            known = self.ends.get(request.headers["authorization"].removeprefix("Bearer "))
            response = await super().respond(request)
            return response if known and known > self.now else failure(401, "Bad credentials")
        assert (request.method, request.url.path) == ("POST", "/app/installations/77/access_tokens")
        claims = jwt.decode(
            request.headers["authorization"].removeprefix("Bearer "),
            self.key,
            algorithms=["RS256"],
            options={"verify_exp": False, "verify_iat": False},  # by this GitHub's clock, below
        )
        self.proofs.append(claims)
        await asyncio.sleep(self._latency)
        if self.at_the_desk:
            reply = self.at_the_desk.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply
        if not claims["iat"] <= self.now.timestamp() < claims["exp"] <= self.now.timestamp() + 600:
            return failure(401, "'Expiration time' claim ('exp') must be a numeric value representing the future time")
        return self.issue()

    def issue(self) -> Response:
        self.ends[f"ghs_{len(self.ends) + 1}"] = end = self.now + timedelta(hours=1)
        return Response(201, json={"token": f"ghs_{len(self.ends)}", "expires_at": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


@pytest.fixture
def local_clock(monkeypatch):
    """Sets this machine's clock, relative to GitHub's."""

    def set_off_by(off: timedelta) -> None:
        class Local(datetime):
            @classmethod
            def now(cls, tz=None):
                return NOW + off

        monkeypatch.setattr("starsearch.github.credentials.datetime", Local)

    set_off_by(timedelta(0))
    return set_off_by


async def test_the_credential_with_the_most_points_asks(time):
    rich, poor, middle = (
        token(name, remaining=points, limit=5_000) for name, points in [("rich", 4_000), ("poor", 900), ("middle", 2_000)]
    )
    wire = Wire(data(node={}))
    async with wire.open(poor, rich, middle) as github:
        await github.ask("ping", {})
        rich.remaining = 1_000
        await github.ask("ping", {})
        middle.remaining = 800
        await github.ask("ping", {})
    assert wire.tokens == ["rich", "middle", "rich"]


async def test_what_is_left_is_learned_from_every_answer(time):
    left = {"a": [3_000, 1_000, 900], "b": [2_000, 1_500, 1_000]}

    def answer(request):
        return data(node={}, headers=quota(left[request.headers["authorization"].removeprefix("Bearer ")].pop(0)))

    wire = Wire(answer)
    async with wire.open(token("a"), token("b")) as github:
        for _ in range(5):
            await github.ask("ping", {})
        assert {credential.name: credential.remaining for credential in github.pool.credentials} == {"token a": 1_000, "token b": 1_000}
        assert github.points_per_hour == 10_000
    assert wire.tokens == ["a", "b", "a", "b", "b"]  # the ones not heard of yet come first


async def test_a_credential_with_its_requests_in_flight_leaves_the_next_to_another(time):
    wire = Wire(data(node={}), latency=1)
    most, less = token("a", 2, remaining=4_000, limit=5_000), token("b", 2, remaining=3_000, limit=5_000)
    async with wire.open(most, less) as github, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(github.ask("ping", {}))
    assert sorted(wire.tokens) == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("backfill", "remaining", "asks"),
    [
        (False, 501, True),
        (False, 500, False),  # a tenth is left for people
        (False, 2_000, True),
        (True, 2_001, True),
        (True, 2_000, False),  # four tenths are left for the hourly crawl
    ],
)
async def test_the_reserve_is_left_alone(time, backfill, remaining, asks):
    wire = Wire(data(node={}, headers=quota(remaining, resets_in=4_000)))
    async with wire.open(backfill=backfill) as github:
        await github.ask("ping", {})
        if asks:
            await github.ask("ping", {})
        else:
            with pytest.raises(RateLimited, match=f"token a: {remaining} of 5000 points") as caught:
                await github.ask("ping", {})
            assert caught.value.resets_at == NOW + timedelta(seconds=4_000)
    assert len(wire.asked) == 1 + asks


async def test_a_reset_within_patience_is_waited_for(time):
    wire = Wire(data(node={}, headers=quota(100, resets_in=240)), data(node={}, headers=quota(4_999, resets_in=3_840)))
    async with wire.open() as github:
        for _ in range(3):
            await github.ask("ping", {})
    assert wire.waits == [240, 0]


async def test_the_reserve_of_one_sends_requests_to_the_other(time):
    wire = Wire(data(node={}))
    resets_at = datetime.now(UTC) + timedelta(hours=1)
    used_up = token("a", remaining=499, limit=5_000, resets_at=resets_at)
    async with wire.open(used_up, token("b", remaining=60, limit=60)) as github:
        await github.ask("ping", {})
    assert wire.tokens == ["b"]


async def test_the_clock_is_githubs_and_goes_on_between_answers(time):
    clock = Clock()
    clock.read({"date": "Sun, 01 Mar 2026 12:00:00 GMT"})
    await asyncio.sleep(90)
    assert clock.now() == NOW + timedelta(seconds=90)
    clock.read({"date": "Sunday"})
    clock.read({})
    assert clock.now() == NOW + timedelta(seconds=90)


async def test_an_app_proves_itself_and_asks_with_the_token_it_gets(time, key, app, local_clock):
    wire = AppWire(key)
    async with wire.open(app) as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    now = int(NOW.timestamp())
    assert wire.proofs == [{"iss": "4711", "iat": now - 60, "exp": now + 540}]
    assert wire.tokens == ["ghs_1", "ghs_1"]


async def test_requests_at_the_same_time_get_one_token(time, key, local_clock):
    wire = AppWire(key, latency=1)
    app = Credential(AppInstallation("4711", "77", pem(key), REST), 5)
    async with wire.open(app) as github, asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(github.ask("ping", {}))
    assert len(wire.proofs) == 1
    assert wire.tokens == ["ghs_1"] * 5


async def test_a_token_is_replaced_ten_minutes_before_it_ends(time, key, app, local_clock):
    wire = AppWire(key)
    async with wire.open(app) as github:
        await github.ask("ping", {})
        await asyncio.sleep(49 * 60)
        await github.ask("ping", {})
        await asyncio.sleep(2 * 60)
        await github.ask("ping", {})
    assert wire.tokens == ["ghs_1", "ghs_1", "ghs_2"]
    assert wire.proofs[1]["iat"] == int(NOW.timestamp()) + 51 * 60 - 60


async def test_a_token_that_github_forgot_is_replaced(time, key, app, local_clock):
    wire = AppWire(key)
    async with wire.open(app) as github:
        await github.ask("ping", {})
        wire.ends.update(ghs_1=NOW)
        await github.ask_once("ping", {})
    assert wire.tokens == ["ghs_1", "ghs_1", "ghs_2"]


async def test_requests_whose_token_ended_in_flight_get_one_new_token(time, key, local_clock):
    wire = AppWire(key, latency=1)
    app = Credential(AppInstallation("4711", "77", pem(key), REST), 5)
    async with wire.open(app) as github:
        await github.ask("ping", {})
        wire.ends.update(ghs_1=NOW)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(github.ask_once("ping", {}))
    assert len(wire.proofs) == 2
    assert wire.tokens == ["ghs_1"] * 6 + ["ghs_2"] * 5
    assert not app.refused


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=400)])
async def test_a_wrong_clock_is_corrected_by_githubs_refusal(time, key, app, local_clock, off):
    local_clock(off)
    wire = AppWire(key)
    async with wire.open(app) as github:
        await github.ask("ping", {})
        assert github.now == NOW
    assert [proof["exp"] - int(NOW.timestamp()) for proof in wire.proofs] == [540 + off.total_seconds(), 540]
    assert wire.tokens == ["ghs_1"]


@pytest.mark.parametrize(
    "reply",
    [
        failure(401, "A JSON web token could not be decoded"),  # the key was deleted
        failure(404, "Not Found"),  # no such installation
        failure(403, "This installation has been suspended"),
        Response(403, html="<html>"),
    ],
)
async def test_an_app_that_is_refused_is_told_what_to_check(time, key, app, local_clock, reply):
    wire = AppWire(key)
    wire.at_the_desk = [reply, reply]
    with pytest.raises(SourceUnavailable, match=f"App 4711, installation 77 .{reply.status_code}.*_APP_ID.*private key") as caught:
        async with wire.open(app) as github:
            await github.ask("ping", {})
    assert caught.value.exit_code == 3
    assert not wire.asked


async def test_a_refused_app_leaves_the_work_to_a_token(time, key, app, local_clock):
    wire = AppWire(key)
    wire.at_the_desk = [failure(401)] * 2
    wire.ends["ghp_b"] = NOW + timedelta(days=1)
    async with wire.open(app, token("ghp_b")) as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    assert wire.tokens == ["ghp_b", "ghp_b"]
    assert len(wire.proofs) == 2


@pytest.mark.parametrize(
    "reply",
    [
        failure(500),
        failure(502),
        failure(429),
        failure(403, "You have exceeded a secondary rate limit", retry_after="60"),  # no reason to think ill of the key
        Response(200, html="<html>Sign in</html>"),
        Response(201, content=b'{"token": "ghs_'),
        Response(201, json=[]),
        Response(201, json=None),
        Response(201, json={}),
        Response(201, json={"token": "ghs_9"}),
        Response(201, json={"token": "ghs_9", "expires_at": None}),
        Response(201, json={"token": "ghs_9", "expires_at": "soon"}),
        httpx2.ReadTimeout("timed out"),
        httpx2.ConnectError("refused"),
    ],
)
async def test_trouble_at_the_token_desk_is_no_refusal(time, key, app, local_clock, reply):
    wire = AppWire(key)
    wire.at_the_desk = [reply]
    async with wire.open(app) as github:
        with pytest.raises(AnswerUnusable, match="for a token"):
            await github.ask_once("ping", {})
        await github.ask("ping", {})
    assert wire.tokens == ["ghs_1"]


async def test_a_time_without_a_zone_is_utc(time, key, app, local_clock):
    wire = AppWire(key)
    wire.ends["ghs_9"] = NOW + timedelta(hours=1)
    wire.at_the_desk = [Response(201, json={"token": "ghs_9", "expires_at": "2026-03-01T13:00:00"})]
    async with wire.open(app) as github:
        await github.ask("ping", {})
        await github.ask("ping", {})
    assert wire.tokens == ["ghs_9", "ghs_9"]


async def test_an_empty_token_is_not_sent(time, key, app, local_clock):
    wire = AppWire(key)
    wire.at_the_desk = [Response(201, json={"token": None, "expires_at": "2026-03-01T13:00:00Z"})]
    async with wire.open(app) as github:
        with pytest.raises(AnswerUnusable, match="for a token"):
            await github.ask_once("ping", {})
    assert not wire.asked


@pytest.mark.parametrize("broken", ["", "canary-7f3a", "cut", "elliptic", "public", "locked"])
async def test_a_key_that_is_none_names_its_setting(time, key, local_clock, broken, caplog):
    keys = {
        "cut": pem(key)[:400],
        "elliptic": pem(ec.generate_private_key(ec.SECP256R1())),
        "public": public(key),
        "locked": pem(key, serialization.BestAvailableEncryption(b"x")),
    }
    wire = AppWire(key)
    app = Credential(AppInstallation("4711", "77", keys.get(broken, broken), REST))
    with pytest.raises(SourceUnavailable, match="STARSEARCH_GITHUB_APP_PRIVATE_KEY is not an RSA private key in PEM form") as caught:
        async with wire.open(app) as github:
            await github.ask("ping", {})
    assert not wire.proofs
    assert "canary" not in f"{caught.value} {caplog.text}"


async def test_a_key_and_a_token_are_never_told(time, key, app, local_clock, caplog):
    caplog.set_level(logging.DEBUG)
    secret = pem(key).splitlines()[1]
    wire = AppWire(key, failure(500))
    async with wire.open(app, token("canary-7f3a", name="token 1 of 1", remaining=4_000, limit=5_000)) as github:
        with pytest.raises(AnswerUnusable):
            await github.ask("ping", {})
        wire.replies = [data(node={})]
        wire.ends.clear()
        wire.at_the_desk = [failure(401)] * 2
        with pytest.raises(SourceUnavailable) as caught:
            await github.ask("ping", {})
        told = f"{github.pool.credentials!r} {[c.source for c in github.pool.credentials]} {caught.value} {caplog.text}"
    assert {"ghs_1", "canary-7f3a"} == set(wire.tokens)
    for canary in (secret, "ghs_", "canary"):
        assert canary not in told
    assert "App 4711, installation 77" in told


def test_the_key_is_not_in_what_a_credential_prints(app):
    assert "PRIVATE KEY" not in f"{app!r} {app.source!r} {json.dumps(str(vars(app)))}"
