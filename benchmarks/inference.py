"""How full a couple of dozen runners keep five pods, beside connections that stay where they are and one router for all.

Runners are tasks of one process, each with its own client, connections and picker, as separate processes would have; they share a
processor, so its use is printed. Sides of a comparison run at the same time, each on its own pods. What is measured is the pods' work
in a while, as a share of what they can do; not requests, whose sizes differ.
"""

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import openai

from benchmarks.measure import Figure
from benchmarks.pods import MODEL, Pool
from starsearch.inference.balancer import Balancer
from starsearch.inference.client import open_client

RUNNERS = 24
IN_FLIGHT = 32  # the default of STARSEARCH_CONCURRENCY; times 24: more than the 640 slots
MEAN_SECONDS = 8.0  # alone; 20 with all slots busy: 32 requests a second from five pods
WARM_SECONDS = 60.0
MEASURED_SECONDS = 40.0
DOWN_SECONDS, BETWEEN_SECONDS = 5.0, 20.0  # about a request's time, so that few are dropped twice


@dataclass
class Side:
    """Runners that ask a pool for as long as they are left."""

    pool: Pool
    answered: int = 0
    lost: int = 0
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def share(self, seconds: float = MEASURED_SECONDS) -> float:
        """Of what the pods can do, how much they did."""
        done, started = self.pool.work(), time.monotonic()
        await asyncio.sleep(seconds)
        return (self.pool.work() - done) / (self.pool.capacity() * (time.monotonic() - started))

    async def ask(self, client: openai.AsyncOpenAI) -> None:
        while True:
            try:
                await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "?"}], max_tokens=2)
                self.answered += 1
            except openai.OpenAIError:
                self.lost += 1


@asynccontextmanager
async def balanced(pool: Pool, in_flight: int, router: Balancer | None = None) -> AsyncIterator[Side]:
    url = f"dns+http://pods:{pool.port}/v1"
    async with _running(pool, in_flight, lambda: open_client(url, balancer=router, resolve=pool.addresses)) as side:
        yield side


@asynccontextmanager
async def sticky(pool: Pool, in_flight: int) -> AsyncIterator[Side]:
    """The SDK as it comes, through the service's address."""

    @asynccontextmanager
    async def client() -> AsyncIterator[openai.AsyncOpenAI]:
        limits = httpx2.Limits(max_connections=100, max_keepalive_connections=100, keepalive_expiry=60)
        async with httpx2.AsyncClient(limits=limits, timeout=httpx2.Timeout(120, connect=5)) as http:
            yield openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{pool.service_port}/v1", api_key="none", http_client=http)

    async with _running(pool, in_flight, client) as side:
        yield side


@asynccontextmanager
async def _running(
    pool: Pool, in_flight: int, client: Callable[[], contextlib.AbstractAsyncContextManager[openai.AsyncOpenAI]]
) -> AsyncIterator[Side]:
    side = Side(pool)
    async with AsyncExitStack() as stack:
        for _ in range(RUNNERS):
            opened = await stack.enter_async_context(client())
            side.tasks += [asyncio.create_task(side.ask(opened)) for _ in range(in_flight)]
        try:
            yield side
        finally:
            for task in side.tasks:
                task.cancel()
            await asyncio.gather(*side.tasks, return_exceptions=True)


@asynccontextmanager
async def pool_of(*speeds: float, seed: int = 1) -> AsyncIterator[Pool]:
    pool = Pool(_free_ports(), MEAN_SECONDS, seed)
    for speed in speeds:
        await pool.add(speed)
    try:
        yield pool
    finally:
        await pool.stop()


def restarted() -> list[Figure]:
    """From a fresh start, and after every pod was restarted."""
    return _measured(_restarted())


def scaled_out() -> list[Figure]:
    """After a fifth pod joined four."""
    return _measured(_scaled_out())


def slow_pod() -> list[Figure]:
    """With one pod at half speed."""
    return _measured(_slow_pod())


def _measured(benchmark: Coroutine[None, None, list[Figure]]) -> list[Figure]:
    started, cpu = time.monotonic(), time.process_time()
    figures = asyncio.run(benchmark)
    busy = (time.process_time() - cpu) / (time.monotonic() - started)
    print(f"runners and pods used {busy:.0%} of one core", file=sys.stderr)
    return figures


async def _restarted() -> list[Figure]:
    async with pool_of(1, 1, 1, 1, 1) as a, pool_of(1, 1, 1, 1, 1) as b, balanced(a, IN_FLIGHT) as ours, sticky(b, IN_FLIGHT) as theirs:
        await asyncio.sleep(WARM_SECONDS)
        fresh, fresh_sticky = await asyncio.gather(ours.share(), theirs.share())
        await asyncio.gather(_restart_all(a), _restart_all(b))
        await asyncio.sleep(WARM_SECONDS)
        after, after_sticky = await asyncio.gather(ours.share(), theirs.share())
        print(f"fresh {fresh:.3f} (sticky {fresh_sticky:.3f}), restarted {after:.3f} (sticky {after_sticky:.3f})", file=sys.stderr)
        print(f"lost: {ours.lost} of {ours.answered:,}, sticky {theirs.lost} of {theirs.answered:,}", file=sys.stderr)
    return [
        Figure("inference.balance.fresh", round(fresh, 3), "of capacity", ">=", 0.97),
        Figure("inference.balance.rolling_restart", round(after, 3), "of capacity", ">=", 0.95),
        Figure("inference.balance.vs_sticky", round(after / after_sticky, 3), "ours : sticky, after the restart", ">=", 1.0),
    ]


async def _restart_all(pool: Pool) -> None:
    for pod in list(pool.pods):
        await pool.restart(pod, down_seconds=DOWN_SECONDS)
        await asyncio.sleep(BETWEEN_SECONDS)


async def _scaled_out() -> list[Figure]:
    async with pool_of(1, 1, 1, 1) as a, pool_of(1, 1, 1, 1) as b, balanced(a, IN_FLIGHT) as ours, sticky(b, IN_FLIGHT) as theirs:
        await asyncio.sleep(WARM_SECONDS)
        await asyncio.gather(a.add(), b.add())
        await asyncio.sleep(WARM_SECONDS)
        share, sticky_share = await asyncio.gather(ours.share(), theirs.share())
    print(f"scaled out {share:.3f} (sticky {sticky_share:.3f})", file=sys.stderr)
    return [Figure("inference.balance.scale_out", round(share, 3), "of capacity", ">=", 0.95)]


async def _slow_pod() -> list[Figure]:
    """Half of the requests, so that slots stay free: with all of them full, who gets a request makes no difference."""
    few, router = IN_FLIGHT // 2, Balancer(max_in_flight=RUNNERS * IN_FLIGHT)  # one that sees every request
    async with pool_of(1, 1, 1, 1, 0.5) as a, pool_of(1, 1, 1, 1, 0.5) as b, balanced(a, few) as ours, balanced(b, few, router) as theirs:
        await asyncio.sleep(WARM_SECONDS)
        share, best = await asyncio.gather(ours.share(), theirs.share())
    print(f"a slow pod {share:.3f} (one router for all {best:.3f})", file=sys.stderr)
    return [Figure("inference.balance.slow_pod", round(share / best, 3), "of one router for all", ">=", 0.95)]


def _free_ports() -> int:
    """A port that is free together with the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port
