"""What the stand-in saw: requests, points, what was served to whom, and how much at once."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

FETCH = "Fetch"  # the operation that hands out texts
LOGGED = 5_000


class Request(NamedTuple):
    """One answered request. at: seconds of the virtual clock; status 0: the connection was dropped."""

    operation: str
    credential: str
    status: int
    points: int
    at: int
    variables: Mapping[str, Any]
    faults: tuple[str, ...]


@dataclass
class Counters:
    """By operation, where not said otherwise."""

    requests: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    requests_by_credential: Counter[str] = field(default_factory=Counter)
    points_by_credential: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    served: Counter[tuple[str, str]] = field(default_factory=Counter)  # (node id, updatedAt) in answers to Fetch
    log: deque[Request] = field(default_factory=lambda: deque(maxlen=LOGGED))
    in_flight: int = 0
    peak_in_flight: int = 0
    in_flight_by_credential: Counter[str] = field(default_factory=Counter)
    peak_by_credential: Counter[str] = field(default_factory=Counter)
    tokens_issued: int = 0

    @property
    def all_requests(self) -> int:
        return self.requests.total()

    @property
    def all_points(self) -> int:
        return self.points.total()

    @property
    def fetched_twice(self) -> dict[tuple[str, str], int]:
        """The same state of the same item, handed out more than once."""
        return {state: times for state, times in self.served.items() if times > 1}

    def arrives(self) -> None:
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def leaves(self) -> None:
        self.in_flight -= 1

    def asks(self, credential: str) -> None:
        self.in_flight_by_credential[credential] += 1
        self.peak_by_credential[credential] = max(self.peak_by_credential[credential], self.in_flight_by_credential[credential])

    def is_answered(self, request: Request) -> None:
        self.in_flight_by_credential[request.credential] -= 1
        self.requests[request.operation] += 1
        self.statuses[request.status] += 1
        self.requests_by_credential[request.credential] += 1
        if request.points:
            self.points[request.operation] += request.points
            self.points_by_credential[request.credential] += request.points
        self.faults.update(request.faults)
        self.log.append(request)

    def serves(self, operation: str, data: Mapping[str, Any]) -> None:
        if operation == FETCH:
            self.served.update((node["id"], node["updatedAt"]) for node in data.get("nodes") or () if node and "updatedAt" in node)

    def reset(self) -> None:
        """Everything but what is in flight."""
        fresh = Counters(in_flight=self.in_flight, in_flight_by_credential=self.in_flight_by_credential)
        self.__dict__.update(fresh.__dict__)

    def as_json(self) -> dict[str, Any]:
        plain = ("requests", "points", "requests_by_credential", "points_by_credential", "faults", "peak_by_credential")
        return {name: dict(getattr(self, name)) for name in plain} | {
            "statuses": {str(status): times for status, times in self.statuses.items()},
            "all_requests": self.all_requests,
            "all_points": self.all_points,
            "served": self.served.total(),
            "served_states": len(self.served),
            "fetched_twice": len(self.fetched_twice),
            "peak_in_flight": self.peak_in_flight,
            "tokens_issued": self.tokens_issued,
        }
