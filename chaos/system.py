"""The pipeline as processes: a stand-in GitHub whose items move, engines of which one lies, PostgreSQL, a crawl and digests, again and again."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from starsearch.embedded import postgres
from tests.processes import free_port
from tests.standin.control import Control

REPOSITORIES = 40
ENGINES = 3
TOKEN = "token-a"
COMMAND_SECONDS = 60.0
Process = subprocess.Popen[bytes]


@dataclass
class System:
    """What runs. `counted`: requests that engines had answered when they were last asked, those that were killed since included."""

    seed: int
    items: int
    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="starsearch-chaos-")))
    environment: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Process] = field(default_factory=dict)
    engines: dict[int, Process] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)
    lost_count: int = 0
    hours: int = 0
    happened: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home.chmod(0o755)
        self.random = random.Random(self.seed)
        self.log = (self.home / "jobs.log").open("ab")

    # starting and stopping

    def up(self) -> None:
        port = free_port()
        self.github = self._run(["-m", "tests.standin", "--port", str(port), "--repositories", str(REPOSITORIES), "--seed", str(self.seed),
                                 "--items-each", str(max(1, self.items // REPOSITORIES)), "--points", "1000000"])  # fmt: skip
        self.control = Control(f"http://127.0.0.1:{port}")
        ports = [free_port() for _ in range(ENGINES + 1)]
        for engine in ports[:-1]:
            self.start_engine(engine)
        self.liar = self._run(["-m", "chaos.liar", str(ports[-1]), str(ports[0]), str(self.seed)])
        addresses = ",".join(f"http://127.0.0.1:{engine}/v1" for engine in ports)
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("STARSEARCH_", "GH_", "GITHUB_"))} | {
            "STARSEARCH_HOME": str(self.home),
            "STARSEARCH_GITHUB_GRAPHQL_URL": f"{self.control.url}/graphql",
            "STARSEARCH_GITHUB_REST_URL": self.control.url,
            "STARSEARCH_GITHUB_TOKENS": TOKEN,
            "STARSEARCH_SINCE": "2000-01-01",
            "STARSEARCH_COMMENTS": "0",  # the record has the items, not what was said of them
            "STARSEARCH_LLM_BASE_URL": addresses,
            "STARSEARCH_LLM_MODEL": "embedded-extractive-v1",
            "STARSEARCH_EMBEDDING_BASE_URL": addresses,
            "STARSEARCH_EMBEDDING_MODEL": "minilm-l6-v2",
            "STARSEARCH_ENGINE_PATIENCE_SECONDS": "20",
        }
        self.server = postgres.start(self.home)
        self.control.wait_until_up()
        for engine in ports:
            self._wait_for_engine(engine)
        names = self.home / "list.csv"
        names.write_text("full_name,stars\n" + "".join(f"{row[2]},{row[3]}\n" for row in self.control.repositories()))
        self.command("rank", "--from", str(names)).check_returncode()

    def down(self) -> None:
        for process in (*self.jobs.values(), *self.engines.values(), self.github, self.liar):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.server.close()
        postgres.stop(self.home)
        self.log.close()

    def forget(self) -> None:
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, arguments: list[str]) -> Process:
        return subprocess.Popen([sys.executable, *arguments], env=self.environment or None, stdout=self.log, stderr=self.log)

    def start_engine(self, port: int) -> None:
        self.engines[port] = self._run(["-m", "starsearch.cli", "engine", "--port", str(port)])

    def _wait_for_engine(self, port: int) -> None:
        import urllib.request

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

    def keep_busy(self) -> None:
        """An hour passes on GitHub whenever a crawl has ended; digests run all the time, two at once."""
        for name in ("crawl", "digest-1", "digest-2"):
            process = self.jobs.get(name)
            if process is None or process.poll() is not None:
                if name == "crawl" and self.hours:
                    self.control.hour(max(1, self.items // 50), seed=self.seed * 1_000 + self.hours)
                self.hours += name == "crawl"
                arguments = ["crawl", "--no-digest"] if name == "crawl" else ["digest"]
                self.jobs[name] = self._run(["-m", "starsearch.cli", *arguments])

    def settle(self) -> None:
        """Let everything end by itself, with nothing in its way."""
        self.control.clear_faults()
        for process in (*self.jobs.values(), *self.engines.values()):
            process.send_signal(signal.SIGCONT)
        for port, process in list(self.engines.items()):
            if process.poll() is not None:
                self.start_engine(port)
            self._wait_for_engine(port)
        self.command("resume")
        for process in self.jobs.values():
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()

    # the database

    def connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(self.server.dsn, autocommit=True)
