"""`starsearch serve` as a real process on a free port of loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2


@dataclass
class Served:
    """A running `starsearch serve`."""

    base: str
    dsn: str
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def get(self, path: str, **kwargs: object) -> httpx2.Response:
        return httpx2.get(self.base + path, timeout=30, **kwargs)  # type: ignore[arg-type]


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
    port = _free_port()
    environment = environment_of(home, dsn, **settings)
    command = [sys.executable, "-m", "starsearch.cli", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    served = Served(f"http://127.0.0.1:{port}", dsn, process, environment)
    try:
        _wait(f"{served.base}/healthz", process)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@contextmanager
def engine(home: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The embedded engine on a port: its base URL, and the process."""
    port = _free_port()
    command = [sys.executable, "-m", "starsearch.cli", "engine", "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"STARSEARCH_HOME": str(home)}, stderr=subprocess.PIPE)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1", process
    finally:
        process.kill()
        process.wait(30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.stderr.read().decode() if process.stderr else "ended")
        try:
            if httpx2.get(address, timeout=30).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{address} did not answer within a minute")
