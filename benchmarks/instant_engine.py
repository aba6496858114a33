"""An OpenAI-compatible engine that answers at once: python -m benchmarks.instant_engine PORT [titles] [SECONDS].

With `titles` a summary is the item's own first line, which passes the gate whatever the item is. With SECONDS a summary takes that long.

A process of its own, so that its CPU is told apart. GET /requests tells how many it answered, GET /begun when the last one came in, in
seconds since 1970.
Vectors lie in clusters, as a model's do (benchmarks/clustered.py), and are always the same for a text: equal ones would take a short cut
through HNSW, and uniformly random ones cost it more than anything real.
"""

import asyncio
import base64
import sys
import time
import zlib
from collections import Counter
from functools import cache

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from benchmarks.clustered import World

MODEL = "instant"
# of the benchmark's own text, so that it passes the gate
SUMMARY = "The server returns an error when it parses the config file after an update, and the log shows a timeout in thread 7. " * 3

titles = False
seconds = 0.0
answered: Counter[str] = Counter()
begun: dict[str, float] = {}


async def models(_: Request) -> Response:
    return _json({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "bench", "max_model_len": 8192}]})


async def chat(request: Request) -> Response:
    begun["last"] = time.time()
    body = await request.body()
    await asyncio.sleep(seconds)
    answered["chat"] += 1
    summary = "Summary of " + orjson.loads(body)["messages"][-1]["content"].splitlines()[1] if titles else SUMMARY
    choice = {"index": 0, "message": {"role": "assistant", "content": summary}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 800, "completion_tokens": 100, "total_tokens": 900}
    return _json({"id": "c", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice], "usage": usage})


async def embeddings(request: Request) -> Response:
    begun["last"] = time.time()
    texts = orjson.loads(await request.body())["input"]
    answered["embeddings"] += 1
    vectors = [_world().vector_of(zlib.crc32(text.encode())) for text in texts]
    data = [{"object": "embedding", "index": n, "embedding": base64.b64encode(row.tobytes()).decode()} for n, row in enumerate(vectors)]
    return _json(
        {"object": "list", "model": MODEL, "data": data, "usage": {"prompt_tokens": 80 * len(texts), "total_tokens": 80 * len(texts)}}
    )


@cache
def _world() -> World:
    return World()


async def requests(_: Request) -> Response:
    return _json(dict(answered))


async def last_begun(_: Request) -> Response:
    return _json(begun)


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


app = Starlette(
    routes=[
        Route("/v1/models", models),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/requests", requests),
        Route("/begun", last_begun),
    ]
)

if __name__ == "__main__":
    titles = "titles" in sys.argv
    seconds = next((float(each) for each in sys.argv[2:] if each != "titles"), 0.0)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
