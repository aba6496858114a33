"""An engine that lies one time in twelve, is slow as often, and otherwise passes on what a good one says.

python -m chaos.liar PORT GOOD_PORT SEED. It counts what it said of its own, as an engine counts its requests: the rest is in the good
one's count. A wrong vector that could be a text's own is not among its lies: nobody who has no second engine to ask can tell it.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

LIE_RATE = 1 / 12
SLOW_RATE = 1 / 12
REORDERED_RATE = 1 / 6  # of the batches; true all the same
SLOW_SECONDS = (2.0, 5.0)
DIMENSIONS = 384
Ask = Callable[[str, str, bytes], Awaitable[httpx2.Response]]


class BrokenOff(Exception):
    """In the middle of an answer: the connection ends."""


def vectors(indexes: Sequence[int], numbers: Sequence[float]) -> bytes:
    return json.dumps({"data": [{"index": index, "embedding": list(numbers)} for index in indexes]}).encode()


PLAUSIBLE = (DIMENSIONS**-0.5,) * DIMENSIONS
SUMMARIES: dict[str, bytes] = {
    "a web page": b"<html>welcome</html>",
    "no choices": b'{"choices": []}',
    "a choice without a message": b'{"choices": [{"index": 0}]}',
    "choices that are no list": b'{"choices": {"0": 1}}',
    "nothing": b"",
}
VECTORS: dict[str, Callable[[int], bytes]] = {  # by the number of texts
    "no JSON": lambda _: b"not json",
    "no vectors": lambda _: vectors((), ()),
    "vectors that are not numbers": lambda n: vectors(range(n), (float("nan"),) * DIMENSIONS),
    "zero vectors": lambda n: vectors(range(n), (0.0,) * DIMENSIONS),
    "vectors of two dimensions": lambda n: vectors(range(n), (0.1, 0.2)),
    "a vector too few": lambda n: vectors(range(n - 1), PLAUSIBLE),
    "a vector too many": lambda n: vectors(range(n + 1), PLAUSIBLE),
    "an index twice": lambda n: vectors((0, *range(max(n - 1, 1))), PLAUSIBLE),
    "indexes from one": lambda n: vectors(range(1, n + 1), PLAUSIBLE),
}
SLOWNESS = ("late", "stalled in the middle", "broken off in the middle")


def lie(kind: str, body: bytes, chance: random.Random) -> bytes:
    if kind == "chat":
        return chance.choice(list(SUMMARIES.values()))
    texts = json.loads(body)["input"]
    return chance.choice(list(VECTORS.values()))(1 if isinstance(texts, str) else len(texts))


def reordered(answer: bytes, chance: random.Random) -> bytes:
    """The same vectors in another order, each with its index: as true as before."""
    told = json.loads(answer)
    chance.shuffle(told["data"])
    return json.dumps(told).encode()


def application(ask: Ask, seed: int, *, seconds: tuple[float, float] = SLOW_SECONDS) -> Starlette:
    """ask: what a good engine answers to a method, a path and a body."""
    chance, own = random.Random(seed), Counter[str]()

    async def answer(request: Request) -> Response:
        body, path = await request.body(), request.url.path
        kind = "chat" if "chat" in path else "embeddings"
        asked = request.method == "POST"
        if asked and chance.random() < LIE_RATE:
            own[kind] += 1
            return Response(lie(kind, body, chance), status_code=chance.choice([200, 200, 500]), media_type="application/json")
        slow = chance.choice(SLOWNESS) if asked and chance.random() < SLOW_RATE else None
        pause = chance.uniform(*seconds)
        if slow == "late":
            await asyncio.sleep(pause)
        try:
            told = await ask(request.method, path, body)
        except httpx2.TransportError:
            own[kind] += asked
            return Response(b'{"error": {"message": "upstream is gone"}}', status_code=503, media_type="application/json")
        content, status = told.content, told.status_code
        if kind == "embeddings" and asked and status == 200 and chance.random() < REORDERED_RATE:
            content = reordered(content, chance)
        if slow and slow != "late":
            pieces = _in_pieces(content, pause, broken=slow == SLOWNESS[-1])
            return StreamingResponse(pieces, status_code=status, media_type="application/json")
        return Response(content, status_code=status, media_type="application/json")

    async def counted(_: Request) -> Response:
        return Response(json.dumps(own), media_type="application/json")

    return Starlette(routes=[Route("/requests", counted), Route("/{path:path}", answer, methods=["GET", "POST"])])


async def _in_pieces(content: bytes, pause: float, *, broken: bool) -> AsyncIterator[bytes]:
    half = len(content) // 2
    yield content[:half]
    await asyncio.sleep(pause)
    if broken:
        raise BrokenOff
    yield content[half:]


def main(port: int, good: int, seed: int) -> None:
    async def ask(method: str, path: str, body: bytes) -> httpx2.Response:
        async with httpx2.AsyncClient(timeout=60) as http:
            return await http.request(method, f"http://127.0.0.1:{good}{path}", content=body, headers={"content-type": "application/json"})

    uvicorn.run(application(ask, seed), host="127.0.0.1", port=port, log_level="critical")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
