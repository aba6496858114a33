"""The stand-in as an ASGI application: POST /graphql, REST, and /_standin/ to drive it from another process (control.py).

Plain ASGI and no framework: a sweep's answer takes a few milliseconds in all, and a dropped connection needs the transport.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qsl

import orjson
from graphql.execution.values import VariableValues

from tests.standin import control, rest
from tests.standin.cost import Cost, Opening, openings, price
from tests.standin.counters import Counters, Request
from tests.standin.documents import Query, Refused, read_query
from tests.standin.faults import ANSWERED, CHARGED, SPOILING, Faults, Rule, answer_to, spoil
from tests.standin.fields import RateLimit, Run
from tests.standin.limits import ANONYMOUS, TOKENS, Limits, Window
from tests.standin.plan import Plan
from tests.standin.replies import Dropped, Reply, as_json, message
from tests.standin.world import World

EXCEEDED = "API rate limit exceeded for {}. If you reach out to GitHub Support for help, please include the request ID."


class Service:
    """latency_seconds: how long every API request takes at least."""

    def __init__(self, world: World, *, tokens: Iterable[str] = TOKENS, points: int = 5_000, latency_seconds: float = 0.0) -> None:
        self.world = world
        self.limits = Limits(world, tokens, points=points)
        self.faults = Faults()
        self.counters = Counters()
        self.latency_seconds = latency_seconds
        self._answered = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        body = await _body(receive)
        try:
            if scope["path"].startswith("/_standin/"):
                reply = await asyncio.to_thread(control.answer, self, scope["method"], scope["path"], body)
            else:
                reply = await self._counted(scope, body)
        except Dropped:
            send.__self__.transport.abort()  # uvicorn's request cycle; ASGI itself has no word for it
            await receive()
            return
        self._answered += 1
        headers = reply.wire_headers(now=self.world.seconds, request_id=f"57A4:{self._answered:08X}")
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _counted(self, scope: Mapping[str, Any], body: bytes) -> Reply:
        self.world.tick()
        self.counters.arrives()
        try:
            headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
            exchange = Exchange(self, headers)
            try:
                return await exchange.answer(scope, body)
            finally:
                exchange.close()
        finally:
            self.counters.leaves()


class Exchange:
    """One API request on its way: what it is, what it costs, and which faults it met."""

    def __init__(self, service: Service, headers: Mapping[str, str]) -> None:
        self.service, self.world, self.limits, self.counters = service, service.world, service.limits, service.counters
        self.headers = headers
        self.operation, self.credential = "unknown", ANONYMOUS
        self.points = self.status = 0
        self.variables: Mapping[str, Any] = {}
        self.faults: list[Rule] = []

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> Reply:
        authorization = self.headers.get("authorization", "")
        is_graphql = (scope["method"], scope["path"]) == ("POST", "/graphql")
        asked = None if is_graphql else rest.route(scope["method"], scope["path"])
        self.operation = "graphql" if is_graphql else asked.operation if asked else "unknown"
        credential = ANONYMOUS if self.operation == "REST access_tokens" else self.limits.credential(authorization)
        self.credential = credential or "refused"
        self.counters.asks(self.credential)
        if self.service.latency_seconds:
            await asyncio.sleep(self.service.latency_seconds)
        if credential is None:
            reply = message(401, "Bad credentials")
        elif is_graphql:
            reply = (
                await self._graphql(body) if credential != ANONYMOUS else message(401, "This endpoint requires you to be authenticated.")
            )
        elif asked is None:
            reply = message(404, "Not Found")
        else:
            reply = await self._rest(asked, dict(parse_qsl(scope["query_string"].decode("ascii"))), authorization)
        self.status = reply.status
        return reply

    def close(self) -> None:
        faults = tuple(rule.kind for rule in self.faults)
        self.counters.is_answered(
            Request(self.operation, self.credential, self.status, self.points, self.world.seconds, self.variables, faults)
        )

    async def _graphql(self, body: bytes) -> Reply:
        try:
            asked = orjson.loads(body)
            text, name, variables = asked["query"], asked.get("operationName"), asked.get("variables") or {}
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return message(400, "Problems parsing JSON", self.limits.window(self.credential).headers())
        try:
            return await self._query(read_query(text, name), variables)
        except Refused as refused:
            return as_json(200, {"errors": refused.errors}, self.limits.window(self.credential).headers())

    async def _query(self, query: Query, given: Mapping[str, Any]) -> Reply:
        self.operation, self.variables = query.name, given
        variables = query.variables(given)
        plan, opened = compiled(query, query.switched(variables))
        cost, ids = price(opened, variables), _ids(given)
        window = self.limits.window(self.credential)
        reply = await self._fault(window, ids, cost.points)
        if reply:
            return reply
        window.turn(self.world.seconds)
        if window.exhausted:
            error = {"type": "RATE_LIMITED", "message": EXCEEDED.format("this user")}
            return as_json(200, {"errors": [error]}, window.headers())
        with self.world.lock:
            answer = self._execute(query, plan, variables, window, cost)
        for rule in self.faults:
            if rule.kind in SPOILING:
                spoil(rule, answer, ids)
        self.counters.serves(self.operation, answer["data"])
        self.world.answered(self.operation)
        return as_json(200, answer, window.headers())

    def _execute(self, query: Query, plan: Plan, variables: VariableValues, window: Window, cost: Cost) -> dict[str, Any]:
        dry = is_dry(query)
        if not dry:
            self._charge(window, cost.points)
        told = RateLimit(cost.points, window.limit, cost.nodes, window.remaining, window.used, window.reset)
        incomplete = any(rule.kind == "incomplete" for rule in self.faults)
        run = Run(self.world, told, incomplete=incomplete, dry=dry)
        data = plan.execute(run, variables)
        return {"data": data} | ({"errors": run.errors} if run.errors else {})

    async def _rest(self, asked: rest.Route, query: dict[str, str], authorization: str) -> Reply:
        if asked.operation == "REST access_tokens":
            reply = await self._fault(None, (), 0)
            if reply is None:
                reply = self.limits.issue(asked.match["installation"], authorization)
                self.counters.tokens_issued += reply.status == 201
            return reply
        if asked.operation == "REST rate_limit":
            return await self._fault(None, (), 0) or rest.rate_limit(self.limits, self.credential)
        window = self.limits.window(self.credential, asked.resource)
        self.variables = query
        reply = await self._fault(window, (), 0)
        if reply:
            return reply
        if window.exhausted:
            return message(403, EXCEEDED.format("this user" if self.credential != ANONYMOUS else "your address"), window.headers())
        window.used += 1
        incomplete = any(rule.kind == "incomplete" for rule in self.faults)
        with self.world.lock:
            reply = rest.answer(self.world, asked, query, f"http://{self.headers.get('host', '127.0.0.1')}", incomplete=incomplete)
        self.world.answered(self.operation)
        reply.headers |= window.headers()
        return reply

    async def _fault(self, window: Window | None, ids: Collection[str], cost: int) -> Reply | None:
        """What a fault answers instead of GitHub; None: go on."""
        self.faults = self.service.faults.take(self.operation, ids, self.credential)
        for rule in self.faults:
            if rule.kind in {"slow", "timeout"}:
                await asyncio.sleep(rule.seconds or 0)
            if rule.kind in {"drop", "timeout"}:
                raise Dropped
            if rule.kind == "exhausted" and window:
                window.used = window.limit
            if rule.kind in CHARGED and window:
                self._charge(window, cost + 1)
            if rule.kind in ANSWERED:
                reply = answer_to(rule)
                reply.headers = (window.headers() if window else {}) | reply.headers
                return reply
        return None

    def _charge(self, window: Window, points: int) -> None:
        window.used += points
        if window.resource == "graphql":
            self.points += points


@lru_cache(1_024)
def compiled(query: Query, switched: tuple[bool, ...]) -> tuple[Plan, tuple[Opening, ...]]:
    switches = dict(zip(query.switches, switched, strict=True))
    return Plan(query, switches), openings(query, switches)


@lru_cache(1_024)
def is_dry(query: Query) -> bool:
    """Whether it only asks for its price: rateLimit(dryRun: true)."""
    limits = [node for node in query.operation.selection_set.selections if getattr(getattr(node, "name", None), "value", "") == "rateLimit"]
    values = {argument.name.value: argument.value for node in limits for argument in node.arguments or ()}
    return bool(getattr(values.get("dryRun"), "value", False))


def _ids(variables: Mapping[str, Any]) -> list[str]:
    ids = variables.get("ids")
    return ids if isinstance(ids, list) else []


async def _body(receive: Any) -> bytes:
    parts: list[bytes] = []
    more = True
    while more:
        event = await receive()
        parts.append(event.get("body", b""))
        more = event.get("more_body", False)
    return b"".join(parts)
