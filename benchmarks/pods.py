"""A pool of stand-in engine pods on loopback: real HTTP, limited slots, and vLLM's behaviour under load, without its work.

A pod gives each request a size and works on up to SLOTS of them at once, each the slower the more there are: 1 / (1 + b / 85), the
curve of inference.md. Above its slots requests wait, above its queue limit they are refused with 503 and no Retry-After, and it tells
its queue in a header where asked and on /metrics. A restarted pod has a new address, as in Kubernetes.

Each pod also listens on the service's port (SO_REUSEPORT): the kernel then gives each new connection to one of the pods by a hash, and
it stays there. That is what kube-proxy does.
"""

import asyncio
import heapq
import json
import math
import random
import socket
from dataclasses import dataclass, field

SLOTS = 128
HALF_SPEED = 85  # requests at which each runs at half its speed
QUEUED = 48  # admitted beyond the slots
SIGMA = 0.6  # of the sizes' logarithm
MODEL = "stand-in"
BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Done."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10},
    }
).encode()
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "vllm", "max_model_len": 8192}]}).encode()
REFUSED = json.dumps({"error": {"message": "queue full", "type": "ServiceUnavailableError", "code": 503}}).encode()


def capacity(slots: int = SLOTS) -> float:
    """Seconds of work that a pod with all slots busy does in a second."""
    return slots / (1 + slots / HALF_SPEED)


@dataclass
class Pod:
    """One engine. `work` is what it has done so far, in seconds of size."""

    host: str
    port: int
    service_port: int
    mean_seconds: float
    random: random.Random
    speed: float = 1.0
    work: float = 0.0
    refused: int = 0
    _clock: float = 0.0  # what a request that ran from the start would have done by now
    _at: float = 0.0
    _running: list[tuple[float, int, asyncio.Future[None]]] = field(default_factory=list)
    _waiting: list[tuple[float, asyncio.Future[None]]] = field(default_factory=list)
    _servers: list[asyncio.Server] = field(default_factory=list)
    _connections: set[asyncio.StreamWriter] = field(default_factory=set)
    _handlers: set[asyncio.Task[None]] = field(default_factory=set)
    _timer: asyncio.TimerHandle | None = None
    _number: int = 0

    async def start(self) -> None:
        self._at = asyncio.get_running_loop().time()
        for address, port in ((self.host, self.port), ("127.0.0.1", self.service_port)):
            listener = socket.socket()
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((address, port))
            self._servers.append(await asyncio.start_server(self._connected, sock=listener, backlog=1_024))

    async def stop(self) -> None:
        """As a killed pod: nobody gets an answer any more."""
        self._advance()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.transport.abort()
        if self._timer:
            self._timer.cancel()
        self._running.clear()
        self._waiting.clear()
        for handler in list(self._handlers):
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        if task := asyncio.current_task():
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
                await reader.readexactly(length)
                writer.write(await self._answer(head))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/models":
            return _response(200, MODELS)
        if path == b"/metrics":
            return _response(200, self._metrics())
        if len(self._running) + len(self._waiting) >= SLOTS + QUEUED:
            self.refused += 1
            return _response(503, REFUSED)
        await self._work()
        load = json.dumps({"named_metrics": {"num_requests_waiting": float(len(self._waiting))}})
        return _response(200, BODY, f"endpoint-load-metrics: JSON {load}\r\n" if b"endpoint-load-metrics-format" in head else "")

    def _metrics(self) -> bytes:
        labels = f'{{engine="0",model_name="{MODEL}"}}'
        gauges = {"vllm:num_requests_running": len(self._running), "vllm:num_requests_waiting": len(self._waiting)}
        return "".join(f"{name}{labels} {value}.0\n" for name, value in gauges.items()).encode()

    async def _work(self) -> None:
        size = self.random.lognormvariate(math.log(self.mean_seconds) - SIGMA**2 / 2, SIGMA)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._advance()
        self._waiting.append((size, done))
        self._admit()
        self._set_timer()
        await done

    def _admit(self) -> None:
        while self._waiting and len(self._running) < SLOTS:
            size, done = self._waiting.pop(0)
            self._number += 1
            heapq.heappush(self._running, (self._clock + size, self._number, done))

    def _set_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        if self._running:
            seconds = max(self._running[0][0] - self._clock, 0) / self._rate()
            self._timer = asyncio.get_running_loop().call_later(seconds, self._finish)

    def _finish(self) -> None:
        self._advance()
        self._set_timer()

    def _rate(self) -> float:
        return self.speed / (1 + len(self._running) / HALF_SPEED)

    def _advance(self) -> None:
        """Work until now, one request's end after the other: a timer that comes late delays an answer, and no work."""
        now = asyncio.get_running_loop().time()
        left, self._at = now - self._at, now
        while self._running and left > 0:
            seconds = min((self._running[0][0] - self._clock) / self._rate(), left)
            self._clock += seconds * self._rate()
            self.work += seconds * self._rate() * len(self._running)
            left -= seconds
            if left > 0 or self._running[0][0] <= self._clock:
                done = heapq.heappop(self._running)[2]
                if not done.done():
                    done.set_result(None)
                self._admit()


@dataclass
class Pool:
    """Pods behind one service. `addresses` is what DNS says of a headless one: those that are ready."""

    port: int
    mean_seconds: float
    seed: int
    pods: list[Pod] = field(default_factory=list)
    _born: int = 0

    @property
    def service_port(self) -> int:
        return self.port + 1

    async def add(self, speed: float = 1.0) -> Pod:
        self._born += 1
        pod = Pod(f"127.0.1.{self._born}", self.port, self.service_port, self.mean_seconds, random.Random(self.seed + self._born), speed)
        await pod.start()
        self.pods.append(pod)
        return pod

    async def restart(self, pod: Pod, *, down_seconds: float) -> None:
        self.pods.remove(pod)
        await pod.stop()
        await asyncio.sleep(down_seconds)
        await self.add(pod.speed)

    async def stop(self) -> None:
        for pod in self.pods:
            await pod.stop()

    async def addresses(self, name: str, port: int) -> list[str]:
        return [pod.host for pod in self.pods]

    def work(self) -> float:
        for pod in self.pods:
            pod._advance()
        return sum(pod.work for pod in self.pods)

    def capacity(self) -> float:
        return sum(capacity() * pod.speed for pod in self.pods)


def _response(status: int, body: bytes, headers: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body
