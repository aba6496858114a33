"""A chat engine on a port that says what it is told to, part by part, and each part only when the test lets it."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PATIENCE_SECONDS = 60.0


class Talker:
    """breaks: the connection is lost after the last part. `answering` counts the answers under way."""

    def __init__(self, parts: Sequence[str], breaks: bool) -> None:
        self._parts = parts
        self._breaks = breaks
        self._let = threading.Semaphore(0)
        self.answering = 0
        self.app = Starlette(
            routes=[Route("/v1/models", self.models), Route("/v1/chat/completions", self.chat, methods=["POST"])],
        )

    def go_on(self, parts: int = 1) -> None:
        self._let.release(parts)

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "talker", "object": "model"}]})

    async def chat(self, request: Request) -> Response:
        assert (await request.json())["stream"] is True
        return StreamingResponse(self._say(), media_type="text/event-stream")

    async def _say(self) -> AsyncIterator[str]:
        self.answering += 1
        try:
            for part in self._parts:
                while not self._let.acquire(blocking=False):
                    await asyncio.sleep(0.01)
                yield _event(choices=[{"index": 0, "delta": {"content": part}}])
            if self._breaks:
                raise ConnectionResetError
            yield _event(choices=[], usage={"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15})
            yield "data: [DONE]\n\n"
        finally:
            self.answering -= 1


def _event(**fields: object) -> str:
    return f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', 'created': 0, 'model': 'talker', **fields})}\n\n"


@contextmanager
def talking(*parts: str, breaks: bool = False) -> Iterator[tuple[Talker, dict[str, str]]]:
    """The engine, and the settings that point a web process to it."""
    talker = Talker(parts, breaks)
    with listening(talker.app) as base:
        yield talker, {"STARSEARCH_LLM_BASE_URL": f"{base}/v1", "STARSEARCH_LLM_MODEL": "talker"}


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    """The address of an application on a port of its own, in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.force_exit = server.should_exit = True
        thread.join(10)
