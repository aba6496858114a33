"""`starsearch serve` as a real process on a free port of loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tests.processes import free_port, running


@dataclass
class Served:
    """A running `starsearch serve`."""

    base: str
    dsn: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def get(self, path: str, **kwargs: object) -> httpx2.Response:
        return httpx2.get(self.base + path, timeout=30, **kwargs)


def environment_of(home: Path, dsn: str, **more: str) -> dict[str, str]:
    return os.environ | {"STARSEARCH_HOME": str(home), "STARSEARCH_DATABASE_URL": dsn} | more


def run_command(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "starsearch.cli", *arguments], env=environment, check=False, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def serving(home: Path, dsn: str, *arguments: str, **settings: str) -> Iterator[Served]:
    """`starsearch serve` on a free port, until the block ends."""
    port = free_port()
    environment = environment_of(home, dsn, **settings)
    command = [sys.executable, "-m", "starsearch.cli", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    served = Served(f"http://127.0.0.1:{port}", dsn, process, environment)
    with running(process, f"{served.base}/healthz"):
        yield served


@contextmanager
def engine(home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The embedded engine on a port: its base URL, and the process."""
    port = free_port()
    command = [sys.executable, "-m", "starsearch.cli", "engine", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"STARSEARCH_HOME": str(home)}, stderr=subprocess.PIPE)
    with running(process, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/v1", process
