"""An OpenAI-compatible engine that misbehaves on request, for tests: no server, a transport for the real client."""

import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

import httpx2
import numpy as np

from starsearch.embedded.minilm import DIMENSIONS


class StubEngine:
    """`misbehave` gets the user's message and how often this text was asked before; None means a good answer.

    `embedding_answer` gets the texts of one embedding request, and says likewise.
    """

    def __init__(self, misbehave: Callable[[str, int], httpx2.Response | Exception | None] = lambda text, times: None) -> None:
        self.misbehave = misbehave
        self.asked: Counter[str] = Counter()
        self.embedded = 0
        self.embedding_answer: Callable[[list[str]], httpx2.Response | Exception | None] = lambda texts: None

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path.endswith("/models"):
            return httpx2.Response(200, json={"object": "list", "data": [{"id": "stub", "object": "model"}]})
        body = json.loads(request.content)
        if request.url.path.endswith("/embeddings"):
            self.embedded += 1
            said = self.embedding_answer(body["input"])
            if isinstance(said, Exception):
                raise said
            return said or httpx2.Response(200, json=vectors(body["input"]))
        text = body["messages"][-1]["content"]
        answer = self.misbehave(text, self.asked[text])
        self.asked[text] += 1
        if isinstance(answer, Exception):
            raise answer
        answer = answer or completion(f"Summary of {text.splitlines()[1]}")
        whole = answer.headers.get("content-type") == "application/json" and answer.status_code == 200
        return streamed(answer) if body.get("stream") and whole else answer


def completion(text: str, finish_reason: str = "stop") -> httpx2.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    fields = {"id": "c", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice], "usage": usage}
    return httpx2.Response(200, json=fields)


def streamed(answer: httpx2.Response, characters: int = 3, broken: bool = False) -> httpx2.Response:
    """The same completion as events of a few characters each; broken: the connection is lost before the last ones."""
    fields = answer.json()
    text, usage = fields["choices"][0].get("message", {}).get("content", ""), fields["usage"]

    async def events() -> AsyncIterator[bytes]:
        for at in range(0, len(text), characters):
            yield event(choices=[{"index": 0, "delta": {"content": text[at : at + characters]}}])
        if broken:
            raise httpx2.ReadError("closed")
        yield event(choices=[], usage=usage)
        yield b"data: [DONE]\n\n"

    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events())


def event(**fields: object) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "stub", **fields}
    return f"data: {json.dumps(chunk)}\n\n".encode()


def nonsense() -> httpx2.Response:
    """An answer that was paid for and holds no message."""
    fields = completion("").json() | {"choices": [{"index": 0, "finish_reason": "stop"}]}
    return httpx2.Response(200, json=fields)


def failure(status: int) -> httpx2.Response:
    # the SDK obeys this header, so its retries take no time
    return httpx2.Response(status, json={"error": {"message": "broken"}}, headers={"retry-after-ms": "1"})


def vectors(texts: list[str]) -> dict[str, object]:
    data = []
    for index, text in enumerate(texts):
        vector = np.random.default_rng(len(text)).normal(size=DIMENSIONS).astype("<f4")
        data.append({"object": "embedding", "index": index, "embedding": base64.b64encode(vector.tobytes()).decode()})
    return {"object": "list", "model": "stub", "data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
