"""An OpenAI-compatible engine with several embedding models, on a real port: python -m tests.model_server PORT.

words-N: hashed words, an honest lexical model that finds equal words. random-N: another direction for each text, so it finds nothing.
minilm-256: all-MiniLM-L6-v2 cut to 256 dimensions. extractive: the embedded engine's summaries. GET /requests counts what was asked.
`keys`: who has none of them is refused, on every page; none: everybody may ask.
"""

import asyncio
import base64
import hashlib
import math
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route

MODELS = ("extractive", "second-chat", "words-64", "words-96", "random-64", "random-384", "minilm-256")


class ModelServer:
    def __init__(self, cache=None, keys=()):
        self.cache = cache or Path(tempfile.gettempdir()) / "starsearch-model-server"
        self.minilm = None
        self.requests = Counter()
        self.held = threading.Event()  # cleared, chat requests wait, and embeddings after the first `unheld` texts
        self.held.set()
        self.unheld: float = math.inf
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
            Route("/requests", self.counted),
        ]
        self.keys = {f"Bearer {key}" for key in keys}
        self.app = Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=self.check)])

    async def check(self, request, answer):
        if self.keys and request.headers.get("authorization") not in self.keys:
            self.requests["refused"] += 1
            return JSONResponse({"error": {"message": "Incorrect API key provided"}}, status_code=401)
        return await answer(request)

    async def models(self, _):
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model"} for name in MODELS]})

    async def counted(self, _):
        return JSONResponse(self.requests)

    async def chat(self, request):
        body = await request.json()
        self.requests["chat"] += 1
        await asyncio.to_thread(self.held.wait)
        text = body["messages"][-1]["content"]
        summary = f"{body['model']}: " + re.sub(r"</?item[^>]*>", "", text).strip().replace("\n", " ")[:200]
        choice = {"index": 0, "message": {"role": "assistant", "content": summary}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(text) // 4, "completion_tokens": 50, "total_tokens": len(text) // 4 + 50}
        fields = {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"]}
        return JSONResponse(fields | {"choices": [choice], "usage": usage})

    async def embeddings(self, request):
        body = await request.json()
        self.requests[body["model"]] += len(body["input"])
        if self.requests[body["model"]] > self.unheld:
            await asyncio.to_thread(self.held.wait)
        vectors = await asyncio.to_thread(self._embed, body["model"], body["input"])
        data = [
            {"object": "embedding", "index": n, "embedding": base64.b64encode(v.astype("<f4").tobytes()).decode()}
            for n, v in enumerate(vectors)
        ]
        tokens = sum(len(text) // 4 for text in body["input"])
        return JSONResponse(
            {"object": "list", "model": body["model"], "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}
        )

    def _embed(self, model, texts):
        kind, length = model.rsplit("-", 1)
        if kind == "minilm":
            from starsearch.embedded.minilm import MiniLM

            self.minilm = self.minilm or MiniLM(self.cache)
            return self.minilm.encode(texts)[0][:, : int(length)]
        return [(words if kind == "words" else random)(text, int(length)) for text in texts]


def words(text, length):
    vector = np.full(length, 0.01)
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.sha256(word.encode()).digest()
        vector[int.from_bytes(digest[:4], "big") % length] += 1 if digest[4] % 2 else -1
    return vector


def random(text, length):
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")).normal(size=length)


@contextmanager
def running(keys=()):
    """Serve on a free port in a thread; yields (server, base URL)."""
    models = ModelServer(keys=keys)
    server = uvicorn.Server(uvicorn.Config(models.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield models, f"http://127.0.0.1:{port}/v1"
    server.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    uvicorn.run(ModelServer().app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
