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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = environment_of(home, dsn, **settings)
    command = [sys.executable, "-m", "starsearch.cli", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    served = Served(f"http://127.0.0.1:{port}", dsn, process, environment)
    try:
        _wait(served)
        yield served
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _wait(served: Served) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if served.process.poll() is not None:
            raise AssertionError(served.process.stderr.read().decode() if served.process.stderr else "ended")
        try:
            if served.get("/healthz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start within a minute")
