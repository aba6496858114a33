"""The article's day: make day [HOURS=24]. Every hour 4,167 changes over 40,000 repositories, crawled and digested as in production.

A stand-in GitHub over HTTP with the stars and activity of the real list where ../shared/data holds it, three engine processes that
answer at once, PostgreSQL, and `make up` as it is: Prefect's server, a worker for each pool, crawl/hourly, and its shards in processes of
their own. GitHub's clock is virtual; the rest is not. Each hour is held against the stand-in's record before the next one begins. What is
new or edited has the texts of the real items where they are at hand, under other titles.

Writes build/day.json and build/day.svg; exit code 1 where an hour was not complete.
"""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.github import ITEMS_EACH, LATENCY_SECONDS, LIST, REPOSITORIES, ROOT, UPDATES, open_standin
from benchmarks.instant_engine import MODEL
from benchmarks.measure import ask
from benchmarks.plots import small_plots
from benchmarks.prefect_cost import Machine, open_machine
from deployments.one_machine import POOLS, ours
from starsearch.audit import read_status
from starsearch.models import RepositoryFacts
from starsearch.settings import Settings
from starsearch.store.database import open_database
from starsearch.store.rankings import refresh_ranking
from tests.processes import exit_on_sigterm, free_port
from tests.standin.control import Control
from tests.standin.oracle import compare

ENGINES = 3
SAMPLE_SECONDS = 2.0
ITEMS = LIST.with_name("items.jsonl.gz")
SEARCHABLE = "SELECT count(*) FROM digest"


@dataclass(frozen=True)
class Hour:
    """cpu: seconds by role. missing: items not stored or digested as they are.

    job_mb, worker_mb: the most that one process had which came in this hour, and one that lives through all of them.
    """

    hour: int
    changed: int
    digested: int
    missing: int
    points: int
    requests: int
    seconds: float
    cpu: dict[str, float]
    job_mb: float
    worker_mb: float
    database_mb: float
    wal_mb: float
    prefect_rows: int
    prefect_mb: float


def main(hours: int = 24) -> int:
    exit_on_sigterm()
    skew = ["--stars-csv", str(LIST)] if LIST.exists() else []
    print(f"stars and activity: {'of the real list' if skew else 'invented, ../shared/data is not there'}", flush=True)
    texts = ["--texts", str(ITEMS)] if ITEMS.exists() else []
    print(f"texts: {'of the real items' if texts else 'invented, ../shared/data is not there'}", flush=True)
    world = ("--repositories", str(REPOSITORIES), "--items-each", str(ITEMS_EACH), "--latency-seconds", str(LATENCY_SECONDS), *skew, *texts)
    with open_standin(*world) as control, _engines() as addresses, open_machine(_settings(control, addresses)) as machine:
        asyncio.run(_follow(machine.dsn, control))
        _hour(machine, control, 0)  # everything is new to us, and nothing has changed
        passed: list[Hour] = []
        for number in range(1, hours + 1):
            passed.append(_hour(machine, control, number))
            _save(passed)
    _tell(passed)
    return 0 if not any(hour.missing for hour in passed) else 1


@contextmanager
def _engines() -> Iterator[str]:
    ports = [free_port() for _ in range(ENGINES)]
    started = [subprocess.Popen([sys.executable, "-m", "benchmarks.instant_engine", str(port), "titles"], cwd=ROOT) for port in ports]
    try:
        yield ",".join(f"http://127.0.0.1:{port}/v1" for port in ports)
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


def _settings(control: Control, engines: str) -> dict[str, str]:
    return {
        "GITHUB_GRAPHQL_URL": f"{control.url}/graphql",
        "GITHUB_REST_URL": control.url,
        "GITHUB_TOKENS": "token-a",
        "SINCE": control.counters()["now"],
        "COMMENTS": "0",
        "LLM_BASE_URL": engines,
        "LLM_MODEL": MODEL,
        "EMBEDDING_BASE_URL": engines,
        "EMBEDDING_MODEL": MODEL,
    }


async def _follow(dsn: str, control: Control) -> None:
    entries = [RepositoryFacts(node, name, number, False, stars) for node, number, name, stars in control.repositories()]
    async with open_database(dsn) as pool:
        await refresh_ranking(pool, "github.com", entries, top=REPOSITORIES, source="benchmark", shortest=0)


def _hour(machine: Machine, control: Control, number: int) -> Hour:
    begun = control.reset()["now"]
    if number:
        control.hour(UPDATES, seed=number)
    roles = _Roles(machine)
    digests, wal = ask(machine.dsn, SEARCHABLE), ask(machine.dsn, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
    with roles.watched() as peaks:
        cost = machine.measure(lambda: machine.run("crawl/hourly"))
    cpu = roles.spent()  # before everything is looked at
    seen = control.counters()
    hour = Hour(
        number,
        UPDATES if number else 0,
        ask(machine.dsn, SEARCHABLE) - digests,
        asyncio.run(_missing(machine.dsn, control, begun)),
        int(seen["all_points"]),
        int(seen["all_requests"]),
        round(cost.seconds, 1),
        cpu,
        round(peaks["job"], 1),
        round(peaks["worker"], 1),
        round(ask(machine.dsn, "SELECT pg_database_size(current_database())") / 2**20, 1),
        round((ask(machine.dsn, "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')") - wal) / 2**20, 1),
        cost.rows,
        round((machine.home / "one-machine" / "prefect" / "prefect.db").stat().st_size / 2**20, 1),
    )
    print(_line(hour), flush=True)
    return hour


async def _missing(dsn: str, control: Control, begun: str) -> int:
    """Of what changed since: not stored as it is, or not digested as it is stored. Every digest of the database is looked at."""
    async with open_database(dsn) as pool, pool.connection() as connection:
        compared = await compare(connection, control.record(since=begun), whole=False)
        status = await read_status(pool)
    return len(compared.missed) + len(compared.false_tombstones) + status.stored - status.embedded


class _Roles:
    """CPU by role since it was made. Of processes that ended in between their parents know, which live on."""

    def __init__(self, machine: Machine) -> None:
        self._settings = Settings(_env_file=None, home=machine.home)
        self._server = machine.server
        self._before = self._now()
        self._began = time.time()

    def spent(self) -> dict[str, float]:
        return {role: round(seconds - self._before.get(role, 0.0), 1) for role, seconds in self._now().items()}

    @contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Yields the most megabytes that one process of each kind has had so far."""
        over, peaks = threading.Event(), {"job": 0.0, "worker": 0.0}

        def watch() -> None:
            while not over.wait(SAMPLE_SECONDS):
                for process in ours(self._settings):
                    with contextlib.suppress(psutil.Error):
                        kind = "job" if process.create_time() >= self._began else "worker"
                        if process.pid != self._server.pid:
                            peaks[kind] = max(peaks[kind], process.memory_info().rss / 2**20)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield peaks
        finally:
            over.set()
            watching.join()

    def _now(self) -> Counter[str]:
        seconds: Counter[str] = Counter()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if role := self._role(process):
                    times = process.cpu_times()
                    seconds[role] += times.user + times.system
                    if role != "prefect":
                        seconds[self._stage(process) if role == "workers" else role] += times.children_user + times.children_system
        return seconds

    def _stage(self, worker: psutil.Process) -> str:
        """What a worker's children did. Parents fetch, cut into shards and watch; shards summarize, embed and store."""
        return "digest" if POOLS[1] in worker.cmdline() else "crawl"

    def _role(self, process: psutil.Process) -> str | None:
        line = " ".join(process.cmdline())
        if process.pid == self._server.pid:
            return "prefect"
        if "benchmarks.instant_engine" in line:
            return "engines"
        if "tests.standin" in line:
            return "github"
        if process.name() == "postgres":  # whose folder is where it works
            return "postgres" if Path(process.cwd()).is_relative_to(self._settings.home) else None
        return "workers" if process.environ().get("STARSEARCH_ONE_MACHINE") == str(self._settings.home) else None


def _line(hour: Hour) -> str:
    cpu = ", ".join(f"{role} {seconds:.0f}" for role, seconds in sorted(hour.cpu.items()))
    return (
        f"{hour.hour:>3}  {hour.digested:>6,} digested, {hour.missing} missing, {hour.points:,} points, {hour.requests:,} requests, "
        f"{hour.seconds:.0f} s; CPU s: {cpu}; {hour.job_mb:.0f} MB a job, {hour.worker_mb:.0f} a worker; "
        f"database {hour.database_mb:,.0f} MB, WAL {hour.wal_mb:.0f} MB; Prefect {hour.prefect_rows:,} rows, {hour.prefect_mb:.0f} MB"
    )


def _save(hours: Sequence[Hour]) -> None:
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    (folder / "day.json").write_text(json.dumps([asdict(hour) for hour in hours], indent=2) + "\n")
    (folder / "day.svg").write_text(_plots(hours))


def _tell(hours: Sequence[Hour]) -> None:
    digested, points, missing = (sum(getattr(hour, name) for hour in hours) for name in ("digested", "points", "missing"))
    grown = (hours[-1].database_mb - hours[0].database_mb) / max(len(hours) - 1, 1)
    print(f"{len(hours)} hours: {digested:,} digested, {missing} missing, {points:,} points")
    for span, length in (("a month of 30 days", 720), ("a year", 8_760)):
        print(
            f"{span}, if every hour were like these: {digested / len(hours) * length:,.0f} digests, "
            f"{points / len(hours) * length:,.0f} points, database {grown * length / 1024:,.0f} GB more, "
            f"WAL {sum(h.wal_mb for h in hours) / len(hours) * length / 1024:,.0f} GB, "
            f"Prefect {sum(h.prefect_rows for h in hours) / len(hours) * length:,.0f} rows written"
        )


def _plots(hours: Sequence[Hour]) -> str:
    series: dict[str, Iterable[float]] = {
        "items digested": (hour.digested for hour in hours),
        "GitHub's points": (hour.points for hour in hours),
        "CPU seconds of the crawl": (hour.cpu.get("crawl", 0.0) for hour in hours),
        "CPU seconds of the shards": (hour.cpu.get("digest", 0.0) for hour in hours),
        "CPU seconds of PostgreSQL": (hour.cpu.get("postgres", 0.0) for hour in hours),
        "CPU seconds of Prefect's server": (hour.cpu.get("prefect", 0.0) for hour in hours),
        "MB of the largest job's process": (hour.job_mb for hour in hours),
        "MB of the larger worker": (hour.worker_mb for hour in hours),
        "MB of the database": (hour.database_mb for hour in hours),
        "MB of write-ahead log": (hour.wal_mb for hour in hours),
    }
    return small_plots({title: list(values) for title, values in series.items()})


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:2])))
