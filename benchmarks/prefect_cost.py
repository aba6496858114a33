"""What Prefect's own server costs: its CPU for a crawl that is digested by shards, and the rows that an hour leaves in its database.

`make up` as it is, on a machine of its own (temporary home, stand-in GitHub): SQLite, process workers. The server's CPU is read from
the system, with ten seconds after the run for what it records late; what it uses while nothing runs (its services, two workers that ask
every three seconds) is measured before and after, taken off by the second, and stands as a figure of its own.
"""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.measure import Figure, ask
from deployments.one_machine import ask as ask_prefect
from deployments.one_machine import open_api, set_schedules
from starsearch.embedded import postgres
from tests.standin.server import StandIn
from tests.standin.world import World

ROOT = Path(__file__).resolve().parents[1]
REPOSITORIES, ITEMS_EACH = 20, 120  # 2,400 items: five shards, each a little below the usual size
SHARDS_AN_HOUR = 9  # 100,000 items a day, 500 a shard
REAPS_AN_HOUR = 6
IDLE_SECONDS, DRAIN_SECONDS, PATIENCE_SECONDS = 120.0, 10.0, 1_200.0  # one idle minute says 2.4 or 4.9 %: its services wake by turns


def server_cost() -> list[Figure]:
    world = World()
    world.populate(REPOSITORIES, items_each=ITEMS_EACH)
    with StandIn(world) as github, open_machine(_addresses(github)) as machine:
        idle_before = machine.measure(lambda: time.sleep(IDLE_SECONDS))
        names = [repository.full_name for repository in world.visible_repositories()]
        crawl = machine.measure(lambda: machine.run("crawl/hourly", repositories=names))
        reap = machine.measure(lambda: machine.run("reap/often"))
        idle = idle_before + machine.measure(lambda: time.sleep(IDLE_SECONDS))
        items, shards = machine.count("items"), machine.count("shards")
    idle_share = idle.cpu / idle.seconds
    net = crawl.cpu - idle_share * crawl.seconds
    rows = idle.rows * 3_600 / idle.seconds + crawl.rows / shards * SHARDS_AN_HOUR + reap.rows * REAPS_AN_HOUR
    print(f"{items} items, {shards} shards, {crawl.seconds:.0f} s, {crawl.cpu:.1f} s of CPU with the idle share; a reap {reap.cpu:.2f} s")
    print(f"idle before {100 * idle_before.cpu / idle_before.seconds:.1f} %, before and after {100 * idle_share:.1f} % of a core")
    print(f"rows: idle {idle.by_table}; crawl {crawl.by_table}; {reap.rows} of a reap")
    return [
        Figure("prefect.server_cpu_seconds_per_1000_items", round(net / items * 1_000, 2), "s", "<=", 2.0),
        Figure("prefect.server_cpu_seconds_per_shard", round(net / shards, 2), "s, with its share of the parent", "<=", 1.0),
        Figure("prefect.rows_per_hour", round(rows), f"rows: {SHARDS_AN_HOUR} shards, {REAPS_AN_HOUR} reaps", "<=", 10_000),
        Figure("prefect.idle_cpu_percent", round(idle_share * 100, 1), "% of a core", "<=", 5.0),
    ]


@dataclass
class Cost:
    cpu: float
    rows: int
    seconds: float
    by_table: dict[str, int]

    def __add__(self, other: "Cost") -> "Cost":
        by_table = dict(Counter(self.by_table) + Counter(other.by_table))
        return Cost(self.cpu + other.cpu, self.rows + other.rows, self.seconds + other.seconds, by_table)


@dataclass
class Machine:
    """One that is up, with its server's process."""

    home: Path
    api: httpx.Client
    server: psutil.Process
    dsn: str

    def measure(self, work: Any) -> Cost:
        before, cpu, began = self._rows(), self._cpu(), time.monotonic()
        work()
        time.sleep(DRAIN_SECONDS)
        seconds = time.monotonic() - began
        after = self._rows()
        by_table = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
        return Cost(self._cpu() - cpu, sum(by_table.values()), seconds, by_table)

    def run(self, name: str, **parameters: object) -> None:
        deployment = ask_prefect(self.api, "GET", f"/deployments/name/{name}")["id"]
        started = ask_prefect(self.api, "POST", f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(5)  # asking costs the server too
            state = ask_prefect(self.api, "GET", f"/flow_runs/{started['id']}")["state"]
            if state["type"] == "COMPLETED":
                return
            assert state["type"] in {"SCHEDULED", "PENDING", "RUNNING"}, state
        raise AssertionError(f"{name} did not end within {PATIENCE_SECONDS:.0f} s")

    def count(self, what: str) -> int:
        query = {"items": "SELECT count(*) FROM item WHERE stored_at IS NOT NULL", "shards": "SELECT count(*) FROM shard"}[what]
        return ask(self.dsn, query)

    def _cpu(self) -> float:
        times = self.server.cpu_times()
        return float(times.user + times.system)

    def _rows(self) -> dict[str, int]:
        with sqlite3.connect(self.home / "one-machine" / "prefect" / "prefect.db", timeout=60) as history:
            tables = [name for (name,) in history.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {name: history.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}


def _addresses(github: StandIn) -> dict[str, str]:
    return {"GITHUB_GRAPHQL_URL": github.graphql_url, "GITHUB_REST_URL": github.url, "GITHUB_TOKENS": "token-a", "SINCE": "2000-01-01"}


@contextmanager
def open_machine(settings: Mapping[str, str]) -> Iterator[Machine]:
    """`make up` in a folder of its own, without its schedules. settings: ours, by their names without STARSEARCH_."""
    home = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    home.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {f"STARSEARCH_{name}": value for name, value in {"HOME": str(home), **settings}.items()}
    database = postgres.start(home)
    try:
        _one_machine(environment, "up", str(port))
        server = next(process for process in psutil.process_iter() if _serves(process, home))
        api = open_api(port)
        set_schedules(port, lambda _: False)  # nothing else runs while it is measured
        yield Machine(home, api, server, database.dsn)
    finally:
        _one_machine(environment, "down")
        database.close()
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)


def _one_machine(environment: dict[str, str], *arguments: str) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "deployments" / "one_machine.py"), *arguments], env=environment, check=True, stdout=sys.stderr
    )


def _serves(process: psutil.Process, home: Path) -> bool:
    try:
        return "server" in process.cmdline() and process.environ().get("STARSEARCH_ONE_MACHINE") == str(home)
    except psutil.Error:
        return False
