"""The pipeline as processes: a stand-in GitHub whose items move, engines of which one lies, PostgreSQL, Prefect with its workers,
hourly crawls whose shards are flow runs, and digests that share the work with them. Flow runs are processes, or Jobs of a Kubernetes API."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg

from chaos.disk import Disk, small_disk
from chaos.orchestration import CRAWL, ENDED, REAP, SHARD, Orchestration
from deployments import one_machine
from starsearch.embedded import postgres
from starsearch.settings import Settings
from tests.processes import free_port
from tests.standin.control import Control

REPOSITORIES = 40
ENGINES = 3
TOKEN = "token-a"
SUMMARY_MODEL, EMBEDDING_MODEL = "embedded-extractive-v1", "minilm-l6-v2"
COMMAND_SECONDS = 60.0
HOUR_SECONDS = 30.0  # at most, until the next hourly crawl is started; whether the last one has ended or not
REAP_SECONDS = 60.0  # ten minutes, as chaos/sooner.py counts
LOOK_SECONDS = 2.0
END_SECONDS = 240.0  # of a busy machine
Process = subprocess.Popen[bytes]


@dataclass
class System:
    """What runs. `counted`: requests and tokens that engines had counted when they were last asked, by port; `lost`: of those killed since.

    `uncounted`: how often one that lives did not say, so that it may have answered more.
    """

    seed: int
    items: int
    orchestration: type[Orchestration] = Orchestration
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="starsearch-chaos-")))
    jobs: dict[str, Process] = field(default_factory=dict)
    engines: dict[int, Process] = field(default_factory=dict)
    counted: dict[int, Counter[str]] = field(default_factory=dict)
    lost: Counter[str] = field(default_factory=Counter)
    uncounted: int = 0
    hours: int = 0
    crawl: str | None = None
    faults: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    _next: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.home.chmod(0o755)
        self.log = (self.home / "jobs.log").open("ab")
        self.github_port = free_port()
        self.ports = [free_port() for _ in range(ENGINES + 1)]
        self.engine_addresses = ",".join(f"http://127.0.0.1:{engine}/v1" for engine in self.ports)
        self.settings = Settings(
            _env_file=None, home=self.home, embedding_base_url=self.engine_addresses, embedding_model=EMBEDDING_MODEL,
            llm_base_url=self.engine_addresses, llm_model=SUMMARY_MODEL,
        )  # fmt: skip
        port = free_port()
        self.environment = self._environment(port)
        self.prefect = self.orchestration(self.settings, port, self.environment)

    def _environment(self, port: int) -> dict[str, str]:
        github = f"http://127.0.0.1:{self.github_port}"
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("STARSEARCH_", "GH_", "GITHUB_"))}
        return one_machine.environment_of(self.settings, port, plain) | one_machine.WORKER_SETTINGS | {
            "PYTHONPATH": str(one_machine.ROOT),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "STARSEARCH_GITHUB_GRAPHQL_URL": f"{github}/graphql",
            "STARSEARCH_GITHUB_REST_URL": github,
            "STARSEARCH_GITHUB_TOKENS": TOKEN,
            "STARSEARCH_SINCE": "2000-01-01",
            "STARSEARCH_COMMENTS": "0",  # the record has the items, not what was said of them
            "STARSEARCH_LLM_BASE_URL": self.engine_addresses,
            "STARSEARCH_LLM_MODEL": SUMMARY_MODEL,
            "STARSEARCH_EMBEDDING_BASE_URL": self.engine_addresses,
            "STARSEARCH_EMBEDDING_MODEL": EMBEDDING_MODEL,
            "STARSEARCH_ENGINE_PATIENCE_SECONDS": "20",
            "STARSEARCH_SHARD_SIZE": str(max(20, min(400, self.items // 2))),
            "STARSEARCH_MAX_SHARDS": "2",
        }  # fmt: skip

    # starting and stopping

    def up(self) -> None:
        self.github = self._run(["-m", "tests.standin", "--port", str(self.github_port), "--repositories", str(REPOSITORIES), "--seed", str(self.seed),
                                 "--items-each", str(max(1, self.items // REPOSITORIES)), "--points", "1000000"])  # fmt: skip
        self.control = Control(f"http://127.0.0.1:{self.github_port}")
        for engine in self.ports[:-1]:
            self.start_engine(engine)
        self.liar = self._run(["-m", "chaos.liar", str(self.ports[-1]), str(self.ports[0]), str(self.seed)])
        self.disk: Disk = small_disk(self.home / "postgres")
        self.server = postgres.start(self.home)
        self.prefect.up()
        self.control.wait_until_up()
        for engine in self.ports:
            self._wait_for_engine(engine)
        names = self.home / "list.csv"
        names.write_text("full_name,stars\n" + "".join(f"{row[2]},{row[3]}\n" for row in self.control.repositories()))
        self.command("rank", "--from", str(names)).check_returncode()

    def down(self, *, keep: bool) -> None:
        while living := one_machine.ours(self.settings):
            for process in living:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(living, 5)
        self.prefect.down()
        self.server.close()
        postgres.stop(self.home)
        self.disk.forget(self.home / "postgres-kept" if keep else None)
        self.log.close()

    def forget(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, arguments: list[str]) -> Process:
        return subprocess.Popen([sys.executable, *arguments], env=self.environment, stdout=self.log, stderr=self.log)

    def start_engine(self, port: int) -> None:
        self.engines[port] = self._run(["-m", "chaos.engine", str(port)])

    def _wait_for_engine(self, port: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"the engine on port {port} did not start")

    # work

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command of ours to its end; one that does not come to an end is ended, with 124 for its exit code."""
        command = [sys.executable, "-m", "starsearch.cli", *arguments]
        try:
            return subprocess.run(
                command, env=self.environment, capture_output=True, text=True, timeout=COMMAND_SECONDS + self.items / 5, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"{arguments[0]} did not end")

    def digest_beside(self, name: str) -> None:
        self.jobs[name] = self._run(["-m", "starsearch.cli", "digest"])

    def keep_busy(self) -> None:
        """What a schedule and an operator do: hourly crawls, a reaper every ten minutes, a digest while shards are at work."""
        self.prefect.keep_up()
        if self._is_time("look", LOOK_SECONDS):
            if self._is_time("hour", HOUR_SECONDS) or (self.crawl and self.prefect.state(self.crawl) in ENDED):
                self.pass_hour()
            beside = self.jobs.get("digest")
            if (beside is None or beside.poll() is not None) and SHARD in dict(self.prefect.processes()):
                self.digest_beside("digest")
        if self._is_time("reap", REAP_SECONDS):
            self.prefect.begin(REAP)

    def wait_for_work(self) -> None:
        """Until the first crawl is at work: on a busy machine a process starts for a minute."""
        self.pass_hour()
        wait_until(lambda: CRAWL in dict(self.prefect.processes()), END_SECONDS)

    def pass_hour(self) -> None:
        """On GitHub, and then it is time for a crawl."""
        self._next["hour"] = time.monotonic() + HOUR_SECONDS
        if self.hours:
            self.change_items()
        self.hours += 1
        self.crawl = self.prefect.begin(CRAWL)

    def change_items(self) -> None:
        self.control.hour(max(1, self.items // 5), seed=self.seed * 1_000 + self.hours)

    def _is_time(self, what: str, seconds: float) -> bool:
        """Once every so many seconds."""
        now = time.monotonic()
        due = now >= self._next.get(what, 0.0)
        if due:
            self._next[what] = now + seconds
        return due

    def workers(self) -> list[tuple[str, psutil.Process]]:
        """What is at work: commands, and flow runs in their processes."""
        commands = [(name, psutil.Process(job.pid)) for name, job in self.jobs.items() if job.poll() is None]
        return sorted(commands, key=lambda each: each[0]) + self.prefect.processes()

    def settle(self) -> list[str]:
        """Let everything end by itself, with nothing in its way; returns what did not."""
        self.control.clear_faults()
        self.control.advance(3_600)  # by when GitHub's limits have ended
        for process in one_machine.ours(self.settings):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        self.prefect.keep_up()
        for port, engine in list(self.engines.items()):
            if engine.poll() is not None:
                self.start_engine(port)
            self._wait_for_engine(port)
        self.revive_database()
        self.prefect.wait_for_server()
        self.command("resume")
        seconds = END_SECONDS + self.items / 5
        wait_until(lambda: not self.workers(), seconds)
        return [f"{name} did not end within {seconds:.0f} s" for name, _ in self.workers()]

    # the database

    def connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(self.server.dsn, autocommit=True)

    def revive_database(self) -> None:
        """Started again where it is down, as by its next user."""
        self.server.close()
        self.server = postgres.start(self.home)

    def digested(self, since: float = 0.0) -> int:
        """Items whose digest was written since then, by the clock of this machine."""
        return self.number("SELECT count(*) FROM digest WHERE created_at >= to_timestamp(%s)", since)

    def number(self, query: LiteralString, *parameters: float) -> int:
        with self.connect() as connection:
            [number] = connection.execute(query, parameters).fetchone() or [0]
        return int(number)

    def said(self, words: str) -> int:
        """How often PostgreSQL said so."""
        return self.server.place.log.read_text(errors="replace").count(words)


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.5)
