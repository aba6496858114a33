"""Which of an engine's addresses gets the next request, and how many it may hold at once. Decides; sends nothing.

Least outstanding requests, ties broken at random: measured as good as one router for everybody, where a client that keeps its
connections loses a seventh after a rolling restart (docs/decisions/0009). Each address has its own limit, which grows by one per
round of answers and shrinks when the engine refuses, is too slow or says that requests queue (AIMD). What an address did to one
request counts for all: they share its limit and its pause.
"""

import math
import random
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

MAX_IN_FLIGHT = 64  # per process; above it the client's connection pool slows down faster than it grows
CUT = 0.7
SMOOTHING = 0.1
QUEUE_KEPT = 16  # waiting requests that keep an engine busy between two answers; more only wait
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 8.0
MOST_DOUBLINGS = 4  # 0.5 to 8 seconds; an engine that is away for a day fails thousands of times


@dataclass(frozen=True)
class Address:
    """Where requests go. `host` differs from the URL's where a name was resolved: it is sent as the Host header."""

    base_url: str
    host: str


@dataclass(eq=False)
class Endpoint:
    address: Address
    limit: float
    outstanding: int = 0
    failures: int = 0  # in a row; any answer ends them
    reachable: bool = True
    paused_until: float = 0.0
    failed_at: float = 0.0
    cut_at: float = 0.0
    answer_seconds: float = math.inf  # how long answers take here, smoothed: one round
    queueing: bool = False
    report_at: float = 0.0  # when to ask next how many requests wait there

    def free(self, now: float) -> bool:
        """After connections failed, one request tries first; the others follow once it has a connection."""
        limit = int(self.limit) if self.reachable else 1
        return self.paused_until <= now and self.outstanding < limit


@dataclass
class Balancer:
    clock: Callable[[], float] = time.monotonic
    max_in_flight: float = MAX_IN_FLIGHT
    endpoints: dict[Address, Endpoint] = field(default_factory=dict)
    silent_since: float | None = None  # the first failure since anybody answered

    def serve(self, addresses: Iterable[Address]) -> None:
        """Balance over exactly these; new ones get load at once, because they hold nothing yet."""
        known = self.endpoints
        self.endpoints = {address: known.get(address) or Endpoint(address, self.max_in_flight) for address in addresses}

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """The free endpoint with the fewest requests, rather one that this request has not tried; None: wait."""
        now = self.clock()
        free = [endpoint for endpoint in self.endpoints.values() if endpoint.free(now)]
        free = [endpoint for endpoint in free if endpoint not in tried] or free
        if not free:
            return None
        fewest = min(endpoint.outstanding for endpoint in free)
        return random.choice([endpoint for endpoint in free if endpoint.outstanding == fewest])

    def silent_seconds(self) -> float:
        """For how long every answer has been a failure."""
        return 0.0 if self.silent_since is None else self.clock() - self.silent_since

    def pause_seconds(self) -> float | None:
        """Until the first pause ends; None where nobody pauses and a free place is all there is to wait for."""
        now = self.clock()
        pauses = [endpoint.paused_until - now for endpoint in self.endpoints.values() if endpoint.paused_until > now]
        return min(pauses, default=None)

    def connected(self, endpoint: Endpoint) -> None:
        endpoint.reachable = True

    def answered(self, endpoint: Endpoint, sent_at: float) -> None:
        """One round of answers at the limit raises it by one."""
        endpoint.reachable, endpoint.failures, self.silent_since = True, 0, None
        seconds = self.clock() - sent_at
        known = math.isfinite(endpoint.answer_seconds)
        endpoint.answer_seconds = endpoint.answer_seconds * (1 - SMOOTHING) + seconds * SMOOTHING if known else seconds
        if not endpoint.queueing and endpoint.outstanding >= int(endpoint.limit):
            endpoint.limit = min(endpoint.limit + 1 / endpoint.limit, self.max_in_flight)

    def queued(self, endpoint: Endpoint, waiting: float) -> None:
        """The engine said how many requests wait for a place in it. Small steps: every runner takes one."""
        endpoint.queueing = waiting > QUEUE_KEPT
        if endpoint.queueing:
            endpoint.limit = max(1.0, min(endpoint.limit, endpoint.outstanding) - 0.5)

    def overloaded(self, endpoint: Endpoint, sent_at: float, *, pause: bool = True, pause_seconds: float | None = None) -> None:
        """Refused (429, 503) or too slow. What it holds already is what it takes; once a round, that is cut as well.

        More often, and a pod whose answers take longer than its refusals would be left with nothing.
        """
        self._failed()
        now = self.clock()
        endpoint.limit = max(1.0, min(endpoint.limit, endpoint.outstanding - 1))
        if not endpoint.cut_at or (sent_at >= endpoint.cut_at and now - endpoint.cut_at > endpoint.answer_seconds):
            endpoint.limit = max(1.0, endpoint.limit * CUT)
            endpoint.cut_at = now
        if pause:
            self._pause(endpoint, sent_at, pause_seconds)

    def lost(self, endpoint: Endpoint, sent_at: float, *, reachable: bool) -> None:
        """No connection, or one that broke off. The endpoint rests; the others go on. Where requests are in flight, somebody is there."""
        self._failed()
        endpoint.reachable = endpoint.reachable and (reachable or endpoint.outstanding > 1)
        self._pause(endpoint, sent_at, None)

    def _failed(self) -> None:
        if self.silent_since is None:
            self.silent_since = self.clock()

    def _pause(self, endpoint: Endpoint, sent_at: float, ordered: float | None) -> None:
        """What was sent before the last failure tells nothing new."""
        if sent_at < endpoint.failed_at:
            return
        endpoint.failed_at = self.clock()
        endpoint.failures += 1
        seconds = min(FIRST_PAUSE_SECONDS * 2 ** min(endpoint.failures - 1, MOST_DOUBLINGS), LONGEST_PAUSE_SECONDS)
        seconds = ordered or seconds * random.uniform(0.75, 1.0)
        endpoint.paused_until = max(endpoint.paused_until, endpoint.failed_at + seconds)
