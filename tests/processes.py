"""Commands of ours that serve, as processes of their own on free ports."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx2

STARTING_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exit_on_sigterm() -> None:
    """What this process started is taken down then, too: SIGTERM unwinds it as an exit does; a second one does not disturb that."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which what is started now would inherit
        sys.exit(128 + signal.SIGTERM)  # as shells tell it

    signal.signal(signal.SIGTERM, end)


@contextmanager
def running(process: subprocess.Popen[bytes], health: str) -> Iterator[None]:
    """From when it answers until it has ended; told to end by SIGTERM."""
    try:
        _wait(health, process)
        yield
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def embedded_engine(environment: Mapping[str, str]) -> Iterator[str]:
    """`starsearch engine`: its address, without /v1."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "starsearch.cli", "engine", "--port", str(port)]
    with running(subprocess.Popen(command, env=dict(os.environ) | dict(environment)), f"{address}/health"):
        yield address


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.stderr.read().decode() if process.stderr else "ended while it started")
        try:
            if httpx2.get(address, timeout=30).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.1)
    raise AssertionError(f"{address} did not answer within a minute")
