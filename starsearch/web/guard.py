"""In front of everything: who asks, how often, how much, from where; and what a browser may do with the answer.

A plain ASGI layer, so that streams pass through it piece by piece, and nothing behind it needs to think of it.
"""

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import unquote_to_bytes, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from starsearch.store.database import Pool
from starsearch.store.web import ApiKey, find_key
from starsearch.web.metrics import Metrics
from starsearch.web.problems import Refused, refusal

MAX_BODY = 64 * 1024
KEY_SECONDS = 15.0  # how long a revoked key may still work
REMEMBERED = 10_000  # keys and addresses
COOKIE = "starsearch_key"
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = ("/healthz", "/readyz", "/metrics", "/static/", "/sign-in", "/favicon.ico")
SURFACES = ("/v1/search", "/v1/ask", "/v1/items", "/v1/status", "/v1/feedback", "/mcp", "/static", "/metrics", "/status", "/items", "/ask")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True)
class Access:
    """Who may ask. hosts: allowed Host headers, empty where any may stand (another machine's name for us is not ours to know)."""

    keys_required: bool
    requests_per_minute: int
    hosts: frozenset[str] = frozenset()


class Remembered(OrderedDict[str, tuple[float, float]]):
    """The newest of many: a stranger with many addresses costs no more memory than one."""

    def keep(self, key: str, value: tuple[float, float]) -> None:
        self[key] = value
        self.move_to_end(key)
        while len(self) > REMEMBERED:
            self.popitem(last=False)


class Rates:
    """A bucket of requests for each asker, filled evenly; full, it holds ten seconds' worth."""

    def __init__(self) -> None:
        self._buckets = Remembered()

    def take(self, asker: str, per_minute: int) -> float:
        """Seconds to wait; 0: go on."""
        now = time.monotonic()
        room = max(per_minute / 6, 1.0)
        left, at = self._buckets.get(asker, (room, now))
        left = min(room, left + (now - at) * per_minute / 60)
        self._buckets.keep(asker, (left - 1 if left >= 1 else left, now))
        return 0.0 if left >= 1 else (1 - left) * 60 / per_minute


class Guard:
    def __init__(self, app: ASGIApp, pool: Pool, access: Access, metrics: Metrics, refuse: Callable[[Scope, Refused], Response]) -> None:
        self._app = app
        self._refuse = refuse
        self._pool = pool
        self._access = access
        self._metrics = metrics
        self._rates = Rates()
        self._keys: OrderedDict[str, tuple[float, ApiKey | None]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send, self._metrics)
        try:
            await self._admit(scope)
            receive = await _read(scope, receive)
        except Exception as error:
            await self._refuse(scope, refusal(error))(scope, receive, answer.send)
            return
        await self._app(scope, receive, answer.send)

    async def _admit(self, scope: Scope) -> None:
        """Raises Refused, or psycopg's errors where a key cannot be looked up."""
        headers = Headers(scope=scope)
        if self._access.hosts and _host(headers.get("host", "")) not in self._access.hosts:
            raise Refused(421, "this server answers to its own name only: open it by the address that `starsearch serve` printed")
        _check_text(scope)
        _check_size(headers)
        if scope["method"] not in SAFE:
            _check_origin(headers)
        if scope["path"].startswith("/sign-in") and scope["method"] not in SAFE:
            self._take_guess(_address(scope))
        if scope["path"].startswith(OPEN):
            return
        await self._check_asker(scope, headers)

    async def _check_asker(self, scope: Scope, headers: Headers) -> None:
        token = presented_key(headers)
        address = _address(scope)
        if token and token not in self._keys:
            self._take_guess(address)
        key = await self._find_key(token) if token else None
        if token and key is None:
            raise Refused(401, "this key is not valid (any more)", {"WWW-Authenticate": "Bearer"})
        if key is None and self._access.keys_required:
            raise Refused(
                401, "send a key: Authorization: Bearer KEY (`starsearch keys create NAME` makes one)", {"WWW-Authenticate": "Bearer"}
            )
        limit = (key and key.requests_per_minute) or self._access.requests_per_minute
        if key is None and is_loopback(address) and self._access.hosts:
            return
        self._take(f"key {key.id}" if key else address, limit)

    def _take_guess(self, address: str) -> None:
        """A key that has to be looked up: whoever guesses waits as whoever asks does."""
        self._take(f"keys of {address}", self._access.requests_per_minute)

    def _take(self, asker: str, per_minute: int) -> None:
        wait = self._rates.take(asker, per_minute)
        if wait:
            raise Refused(
                429, f"{per_minute} requests a minute are allowed: wait {max(wait, 1):.0f} s", {"Retry-After": f"{max(wait, 1):.0f}"}
            )

    async def _find_key(self, token: str) -> ApiKey | None:
        at, key = self._keys.get(token, (-KEY_SECONDS, None))
        if time.monotonic() - at >= KEY_SECONDS:
            key = await find_key(self._pool, token)
            self._keys[token] = (time.monotonic(), key)
            while len(self._keys) > REMEMBERED:
                self._keys.popitem(last=False)
        return key


class _Answer:
    """Adds the headers, and counts."""

    def __init__(self, scope: Scope, send: Send, metrics: Metrics) -> None:
        self._surface = next((s for s in SURFACES if scope["path"].startswith(s)), "/" if scope["path"] == "/" else "other")
        self._send = send
        self._metrics = metrics

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            if self._surface != "/static":
                headers.setdefault("Cache-Control", "no-store")
            self._metrics.requests.labels(self._surface, message["status"]).inc()
        await self._send(message)


async def _read(scope: Scope, receive: Receive) -> Receive:
    """The body read at once, for it is small or refused, whatever it says of its size; what follows it is passed on."""
    if scope["method"] in SAFE:
        return receive
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise _too_large()
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large() -> Refused:
    return Refused(413, f"at most {MAX_BODY // 1024} KiB are read")


def _check_size(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MAX_BODY:
        raise _too_large()


def _check_text(scope: Scope) -> None:
    for part in (scope.get("raw_path") or b"", scope["query_string"]):
        try:
            text = unquote_to_bytes(part).decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(400, "the address is not valid UTF-8: percent-encode it again") from None
        if part is not scope["query_string"] and "\0" in text:
            raise Refused(400, "the address holds a NUL character")


def _check_origin(headers: Headers) -> None:
    """A form of another site must not speak for the person in front of the browser."""
    origin = headers.get("origin")
    foreign = headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}
    if foreign or (origin and urlsplit(origin).netloc != headers.get("host", "")):
        raise Refused(403, "this came from another site's page")


def presented_key(headers: Headers) -> str | None:
    """From the Authorization header, or a browser's cookie."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel else None


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _host(header: str) -> str:
    """Without the port; brackets of IPv6 kept."""
    return header.rsplit(":", 1)[0].lower() if header.rsplit(":", 1)[-1].isdigit() else header.lower()
