"""Time for the tests that wait."""

import asyncio
from types import SimpleNamespace

import pytest

from tests.starsearch.github.wire import Time


@pytest.fixture
async def time(monkeypatch) -> Time:
    """Waiting takes no time and is exact: jitter is at its least, that is none for a limit and a half for a nap."""
    loop = asyncio.get_running_loop()
    time = Time(loop._selector)
    monkeypatch.setattr(loop._selector, "select", time.select)
    monkeypatch.setattr(loop, "time", time.monotonic)
    monkeypatch.setattr("starsearch.github.credentials.time", SimpleNamespace(monotonic=time.monotonic))
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    return time
