"""An OpenAI-compatible engine that needs no GPU, key or network: extractive summaries and MiniLM embeddings.

An ASGI app: mounted in-process under the real OpenAI client (ASGITransport), or served on a port by `starsearch engine`.
Protocol: https://platform.openai.com/docs/api-reference (models, chat/completions, embeddings).
"""

import asyncio
import base64
import hmac
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from starsearch import extractive
from starsearch.embedded.minilm import DIMENSIONS, MODEL, MiniLM

BASE_URL = "http://embedded/v1"
MAX_INPUTS = 2_048  # as OpenAI's
CONTEXT_TOKENS = 8_192  # bounds the work that one hostile text can cause
CHARACTERS_PER_TOKEN = 4


class EmbeddedEngine:
    """Counts its requests by path, and the tokens it answered for, so that they can be compared with the ledger.

    With a key it answers whoever sends that, as a Bearer token; /health answers everybody.
    """

    def __init__(self, cache: Path, key: str | None = None) -> None:
        self._cache = cache
        self._model: MiniLM | None = None
        self._loading = asyncio.Lock()
        self.requests: Counter[str] = Counter()
        app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/requests", self.counted),
                Route("/health", self.health),
            ]
        )
        self.app: ASGIApp = _Keyed(app, key) if key else app

    async def models(self, _: Request) -> Response:
        names = (extractive.MODEL, MODEL)
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "starsearch"} for name in names]
        data[0]["max_model_len"] = CONTEXT_TOKENS
        return _json({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        self.requests["chat"] += 1
        try:
            body = orjson.loads(await request.body())
            model, messages = body["model"], body["messages"]
            texts = [str(message["content"]) for message in messages]
            text = next(t for t, m in zip(reversed(texts), reversed(messages), strict=True) if m["role"] == "user")
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            return _error(400, f"expected model and messages with one of role user: {error!r}")
        if model != extractive.MODEL:
            return _error(404, f"model {model!r} does not exist for chat; there is {extractive.MODEL}")
        summary = extractive.summarize(text)
        prompt_tokens, completion_tokens = _tokens(*texts), _tokens(summary)
        self.requests.update(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        return _json(
            {
                "id": f"chatcmpl-{time.time_ns():x}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": model,
                "choices": [{"index": 0, "message": {"role": "assistant", "content": summary}, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            }
        )

    async def embeddings(self, request: Request) -> Response:
        self.requests["embeddings"] += 1
        try:
            body = orjson.loads(await request.body())
            model, texts = body["model"], body["input"]
            texts = [texts] if isinstance(texts, str) else texts
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"expected model and input: {error!r}")
        if model != MODEL:
            return _error(404, f"model {model!r} does not exist for embeddings; there is {MODEL}")
        if not isinstance(texts, list) or not 1 <= len(texts) <= MAX_INPUTS or not all(isinstance(text, str) for text in texts):
            return _error(400, f"input must be a text or 1 to {MAX_INPUTS} texts")
        dimensions = body.get("dimensions", DIMENSIONS)
        if type(dimensions) is not int or not 1 <= dimensions <= DIMENSIONS:
            return _error(400, f"{MODEL} gives up to {DIMENSIONS} dimensions")
        encoder = await self._encoder()
        vectors, tokens = await asyncio.to_thread(encoder.encode, texts)
        self.requests["embedding_tokens"] += tokens
        if dimensions < DIMENSIONS:  # what was measured of shorter ones: docs/decisions/0013
            vectors = vectors[:, :dimensions] / np.linalg.norm(vectors[:, :dimensions], axis=1, keepdims=True)
        encode = _base64 if body.get("encoding_format") == "base64" else _list
        data = [{"object": "embedding", "index": i, "embedding": encode(row)} for i, row in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _json({"object": "list", "model": model, "data": data, "usage": usage})

    async def counted(self, _: Request) -> Response:
        return _json(dict(self.requests))

    async def health(self, _: Request) -> Response:
        return Response(status_code=200)

    async def _encoder(self) -> MiniLM:
        """The model, loaded when first needed: a run that finds nothing due never pays for it."""
        async with self._loading:
            if self._model is None:
                self._model = await asyncio.to_thread(MiniLM, self._cache)
        return self._model


class _Keyed:
    """In front of everything but a probe, which has no key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await self._app(scope, receive, send)
            return
        scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._key):
            await self._app(scope, receive, send)
        else:
            why = "this is not the engine's key" if token else "send the engine's key: Authorization: Bearer KEY"
            await _error(401, f"{why} (its STARSEARCH_SERVED_ENGINE_KEY)")(scope, receive, send)


def _list(vector: Any) -> Any:
    return vector.tolist()


def _base64(vector: Any) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _tokens(*texts: str) -> int:
    """An estimate: the extractive summarizer has no tokenizer of its own."""
    return sum(len(text) // CHARACTERS_PER_TOKEN + 1 for text in texts)


def _json(value: object, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    return _json({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
