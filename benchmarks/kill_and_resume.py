"""kill -9 of `starsearch ingest FILE` at random points, then once more to the end: python -m benchmarks.kill_and_resume FILE [KILLS].

Engine requests are counted by `starsearch engine` on a port, outside of what is killed. Prints what was lost (must be nothing) and
what was asked twice (at most one batch per worker and kill). Uses a new, empty home folder.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from starsearch.embedded import postgres
from starsearch.settings import Settings
from starsearch.store.leases import BATCH

LONGEST_LIFE_SECONDS = 75.0


def main(file: str, kills: int = 5) -> int:
    home = Path(tempfile.mkdtemp(prefix="starsearch-kill-"))
    home.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {
        "STARSEARCH_HOME": str(home),
        "STARSEARCH_LLM_BASE_URL": f"{address}/v1",
        "STARSEARCH_LLM_MODEL": "embedded-extractive-v1",
        "STARSEARCH_EMBEDDING_BASE_URL": f"{address}/v1",
        "STARSEARCH_EMBEDDING_MODEL": "minilm-l6-v2",
    }
    starsearch = [sys.executable, "-m", "starsearch.cli"]
    engine = subprocess.Popen([*starsearch, "engine", "--port", str(port)], env=environment)
    try:
        wait_for(f"{address}/health")
        started = time.monotonic()
        for kill in range(1, kills + 1):
            life = random.uniform(3, LONGEST_LIFE_SECONDS)
            print(
                f"kill {kill}: after {life:.1f} s", "asked so far:", kill_after(life, [*starsearch, "ingest", file], environment, address)
            )
        last = json.loads(subprocess.check_output([*starsearch, "ingest", file, "--json"], env=environment))
        seconds = time.monotonic() - started
        again = json.loads(subprocess.check_output([*starsearch, "ingest", file, "--json"], env=environment))
        status = json.loads(subprocess.check_output([*starsearch, "status", "--json"], env=environment))
        asked = answered(address)
    finally:
        engine.terminate()
        postgres.stop(home)
        shutil.rmtree(home, ignore_errors=True)
    texts = status["usage"]["llm_requests"]
    allowed = kills * Settings.model_fields["workers"].default * BATCH
    print(json.dumps({"last": last, "again": again, "status": status, "seconds": round(seconds), "engine_requests": asked}, indent=1))
    print(f"asked by the engine's count {asked:,}, by the ledger {texts:,}, calls left open by a kill {status['usage']['unsettled_calls']}")
    print(f"asked twice: at most {allowed} allowed")
    held = status["complete"] and again["inserted"] == again["llm_requests"] == 0
    return 0 if held and asked - texts <= status["usage"]["unsettled_calls"] <= allowed else 1


def kill_after(seconds: float, command: list[str], environment: dict[str, str], address: str) -> int:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return answered(address)


def answered(address: str) -> int:
    count: int = json.load(urllib.request.urlopen(f"{address}/requests", timeout=30)).get("chat", 0)
    return count


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5)
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"{url} does not answer")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:3])))
