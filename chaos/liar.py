"""An engine that lies one time in twelve, and otherwise passes on what a good one says: python -m chaos.liar PORT GOOD_PORT SEED.

It counts what it said of its own, as an engine counts its requests: the rest is in the good one's count.
"""

import json
import random
import sys
from collections import Counter

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

RATE = 1 / 12
LIES = {
    "chat": [b"<html>welcome</html>", b'{"choices": []}', b'{"choices": [{"index": 0}]}', b'{"choices": {"0": 1}}', b""],
    "embeddings": [
        b"not json",
        b'{"data": []}',
        json.dumps({"data": [{"index": 0, "embedding": [float("nan")] * 384}]}).encode(),
        json.dumps({"data": [{"index": 0, "embedding": [0.1, 0.2]}]}).encode(),
    ],
}


def main(port: int, good: int, seed: int) -> None:
    chance = random.Random(seed)
    own: Counter[str] = Counter()

    async def answer(request: Request) -> Response:
        body = await request.body()
        kind = "chat" if "chat" in request.url.path else "embeddings"
        if request.method == "POST" and chance.random() < RATE:
            own[kind] += 1
            return Response(chance.choice(LIES[kind]), status_code=chance.choice([200, 200, 500]), media_type="application/json")
        try:
            async with httpx2.AsyncClient(timeout=60) as http:
                told = await http.request(request.method, f"http://127.0.0.1:{good}{request.url.path}", content=body,
                                          headers={"content-type": "application/json"})  # fmt: skip
        except httpx2.TransportError:
            own[kind] += request.method == "POST"
            return Response(b'{"error": {"message": "upstream is gone"}}', status_code=503, media_type="application/json")
        return Response(told.content, status_code=told.status_code, media_type="application/json")

    async def counted(_: Request) -> Response:
        return Response(json.dumps(own), media_type="application/json")

    app = Starlette(routes=[Route("/requests", counted), Route("/{path:path}", answer, methods=["GET", "POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
