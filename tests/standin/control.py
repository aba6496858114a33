"""Driving a stand-in that runs as a process of its own: the endpoints under /_standin/, and a client for them.

control = Control("http://127.0.0.1:8010")
control.hour(4_167, seed=1)
control.reset()
…                                            # the crawl
control.counters()["fetched_twice"], control.record(since=…)
"""

import gzip
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from tests.standin.notation import iso
from tests.standin.replies import Reply, as_json, message

if TYPE_CHECKING:
    from tests.standin.service import Service

TIMEOUT_SECONDS = 300.0
Given = dict[str, Any]


def answer(service: "Service", method: str, path: str, body: bytes) -> Reply:
    action = _ACTIONS.get(f"{method} {path.removeprefix('/_standin/')}")
    if action is None:
        return message(404, f"there are {', '.join(_ACTIONS)}")
    return action(service, orjson.loads(body) if body else {})


def _counters(service: "Service", _: Given) -> Reply:
    process = {
        "now": iso(service.world.seconds),
        "cpu_seconds": time.process_time(),
        "peak_memory_mb": peak_memory_mb(),
        "repositories": len(service.world.repositories),
    }
    return as_json(200, service.counters.as_json() | process)


def peak_memory_mb() -> float | None:
    """Linux only. getrusage would tell of the process that started this one, too."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else ()
    return next((int(line.split()[1]) / 1_024 for line in lines if line.startswith("VmHWM")), None)


def _reset(service: "Service", _: Given) -> Reply:
    service.counters.reset()
    return _counters(service, {})


def _hour(service: "Service", given: Given) -> Reply:
    """updates, seed"""
    service.world.hour(**given)
    return _counters(service, {})


def _advance(service: "Service", given: Given) -> Reply:
    """seconds"""
    service.world.advance(given["seconds"])
    return _counters(service, {})


def _faults(service: "Service", given: Given) -> Reply:
    """A rule's fields; or fault_hour: {seed, requests}; or clear: true."""
    if given.get("clear"):
        service.faults.clear()
    elif "fault_hour" in given:
        service.faults.fault_hour(**given["fault_hour"])
    else:
        service.faults.add(**given)
    return as_json(200, {"rules": len(service.faults.rules), "met": service.faults.met})


def _settings(service: "Service", given: Given) -> Reply:
    """latency_seconds, tick_seconds"""
    service.latency_seconds = given.get("latency_seconds", service.latency_seconds)
    service.world.tick_seconds = given.get("tick_seconds", service.world.tick_seconds)
    return _counters(service, {})


def _record(service: "Service", given: Given) -> Reply:
    """since: only what was updated then or later. Compressed JSON Lines."""
    lines = b"".join(orjson.dumps(row) + b"\n" for row in service.world.record(updated_since=given.get("since")))
    return Reply(200, gzip.compress(lines, 1), {"content-type": "application/gzip"})


def _top(service: "Service", given: Given) -> Reply:
    """number: of the repositories that search finds, most stars first; without forks, as search leaves them out."""
    with service.world.lock:
        index = service.world.index
        kept = index.flags >> 1 == 0
        pairs = np.stack((index.ids[kept], index.stars[kept]), 1)[: given["number"]]
    return as_json(200, pairs.tolist())


def _repositories(service: "Service", _: Given) -> Reply:
    rows = [[r.node_id, r.database_id, r.full_name, r.stars] for r in service.world.visible_repositories()]
    return as_json(200, rows)


_ACTIONS: dict[str, Callable[["Service", Given], Reply]] = {
    "GET counters": _counters,
    "POST reset": _reset,
    "POST hour": _hour,
    "POST advance": _advance,
    "POST faults": _faults,
    "POST settings": _settings,
    "POST record": _record,
    "POST top": _top,
    "GET repositories": _repositories,
}


class Control:
    """url: the stand-in's, without a path."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def counters(self) -> dict[str, Any]:
        return self._json("GET", "counters")

    def reset(self) -> dict[str, Any]:
        return self._json("POST", "reset")

    def hour(self, updates: int, *, seed: int = 0) -> dict[str, Any]:
        return self._json("POST", "hour", updates=updates, seed=seed)

    def advance(self, seconds: float) -> dict[str, Any]:
        return self._json("POST", "advance", seconds=seconds)

    def fault(self, kind: str, **options: Any) -> dict[str, Any]:
        return self._json("POST", "faults", kind=kind, **options)

    def fault_hour(self, *, seed: int = 0, requests: int = 600) -> dict[str, Any]:
        return self._json("POST", "faults", fault_hour={"seed": seed, "requests": requests})

    def clear_faults(self) -> dict[str, Any]:
        return self._json("POST", "faults", clear=True)

    def settings(self, **values: float) -> dict[str, Any]:
        return self._json("POST", "settings", **values)

    def record(self, *, since: str | None = None) -> list[dict[str, Any]]:
        lines = gzip.decompress(self._ask("POST", "record", {"since": since})).splitlines()
        return [orjson.loads(line) for line in lines]

    def repositories(self) -> list[list[Any]]:
        """[node id, database id, full name, stars], as they were populated."""
        return self._json("GET", "repositories")

    def top(self, number: int) -> list[list[int]]:
        """[database id, stars] of what search finds, in the right order."""
        return self._json("POST", "top", number=number)

    def wait_until_up(self, seconds: float = 60.0) -> None:
        """Raises OSError where it does not answer in time."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.counters()
                return
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    def _json(self, method: str, action: str, **given: Any) -> Any:
        return orjson.loads(self._ask(method, action, given))

    def _ask(self, method: str, action: str, given: Given) -> bytes:
        body = orjson.dumps(given) if method == "POST" else None
        request = urllib.request.Request(f"{self.url}/_standin/{action}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
            return response.read()
