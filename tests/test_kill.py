"""kill -9 at random points, then the same command again: same end state, nothing twice but the batch in flight."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from starsearch.settings import Settings
from starsearch.store.leases import BATCH
from tests.processes import embedded_engine

KILLS = 3
ITEMS = 600


@pytest.fixture
def engine(environment):
    """`starsearch engine` on a port, so that requests are counted outside of what is killed."""
    with embedded_engine(environment) as address:
        yield address


def requests_answered(engine):
    return json.load(urllib.request.urlopen(f"{engine}/requests", timeout=5)).get("chat", 0)


async def digested(store):
    async with store.pool.connection() as connection:
        row = await (await connection.execute("SELECT count(*) FROM digest")).fetchone()
    return row[0]


async def test_killed_at_random_points_it_ends_the_same(environment, engine, store, row, jsonl):
    path = jsonl(*(row(n, body=f"Report number {n} is about subject {n * 7919}.") for n in range(1, ITEMS + 1)))
    command = [sys.executable, "-m", "starsearch.cli", "ingest", str(path), "--json"]
    env = environment | {"STARSEARCH_LLM_BASE_URL": f"{engine}/v1", "STARSEARCH_EMBEDDING_BASE_URL": f"{engine}/v1"}
    env |= {"STARSEARCH_LLM_MODEL": "embedded-extractive-v1", "STARSEARCH_EMBEDDING_MODEL": "minilm-l6-v2"}
    randomness = random.Random(20261123)
    for kill in range(1, KILLS + 1):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while await digested(store) < kill * BATCH and process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await asyncio.sleep(randomness.random())
        assert process.poll() is None, "killed too late to prove anything"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    last = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(last.stdout)["inserted"] == 0

    status = subprocess.run(
        [sys.executable, "-m", "starsearch.cli", "status", "--json"], env=env, capture_output=True, text=True, check=True
    )
    status = json.loads(status.stdout)
    assert status["complete"] is True
    assert status["known"] == status["stored"] == status["summarized"] == status["embedded"] == ITEMS
    assert await digested(store) == ITEMS
    workers = Settings.model_fields["workers"].default
    requests = requests_answered(engine)
    assert ITEMS <= requests <= ITEMS + KILLS * workers * BATCH
    # what the ledger misses are calls whose settling died with the process, and it knows which
    assert requests - status["usage"]["llm_requests"] <= status["usage"]["unsettled_calls"]
