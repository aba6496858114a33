"""The same pipeline against a real vLLM: `make test-vllm`, with two servers on loopback (docs/operations.md).

A tiny chat model with random weights and the real MiniLM weights are enough: this proves protocol, back-pressure and bookkeeping, not
quality. Tests that kill a server or give it a short context start one of their own, from the installation at VLLM_HOME.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

from starsearch.audit import read_status
from starsearch.embedded.minilm import MiniLM
from starsearch.engines import open_engines
from starsearch.inference.embed import embed
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.store.ledger import read_usage
from starsearch.store.search import search
from starsearch.store.versions import active_version
from tests.processes import free_port

pytestmark = pytest.mark.vllm

CHAT = os.environ.get("VLLM_CHAT_URL", "http://127.0.0.1:18100/v1")
EMBEDDINGS = os.environ.get("VLLM_EMBEDDING_URL", "http://127.0.0.1:18101/v1")
HOME = Path(os.environ.get("VLLM_HOME", "/tmp/vllm-cpu"))
OFFLINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
STARTS_WITHIN_SECONDS = 400


@pytest.fixture
def vllm(home, dsn):
    for url in (CHAT, EMBEDDINGS):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5)
        except OSError as error:
            pytest.fail(f"no vLLM at {url} ({error}): start both servers first, see docs/operations.md")
    return Settings(_env_file=None, home=home, database_url=dsn, llm_base_url=CHAT, embedding_base_url=EMBEDDINGS)


@pytest.fixture
def real_items(shared_data, tmp_path):
    """So many real items, the ten longest among them."""

    def write(number):
        path = tmp_path / "items.jsonl"
        lines = (shared_data / "sample.jsonl").read_text("utf-8").splitlines()
        longest = sorted(lines, key=len)[-10:]
        path.write_text("\n".join([*(line for line in lines if line not in longest)][: number - 10] + longest) + "\n", "utf-8")
        return path

    return write


@contextmanager
def own_chat_server(port, *arguments):
    """A vLLM of this test's own, in a process group of its own."""
    if not (HOME / "venv" / "bin" / "vllm").exists():
        pytest.fail(f"no vLLM installed at {HOME}: set VLLM_HOME, see docs/operations.md")
    command = ["venv/bin/vllm", "serve", "./tiny", "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "bfloat16", "--enforce-eager", "--max-num-seqs", "16", "--max-num-queued-reqs", "48", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=HOME, env=os.environ | OFFLINE, start_new_session=True, **quiet)
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_until_up(port, process):
    deadline = time.monotonic() + STARTS_WITHIN_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except OSError:
            time.sleep(1)
        else:
            return
    pytest.fail(f"vLLM did not start on port {port} within {STARTS_WITHIN_SECONDS} s")


def metric(name, port=None):
    server = f"http://127.0.0.1:{port}" if port else CHAT.removesuffix("/v1")
    text = urllib.request.urlopen(f"{server}/metrics", timeout=30).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


async def run_pipeline(store, settings, path, number=100):
    async with recorded_run(store, "ingest") as run, open_engines(settings) as engines:
        await ingest(store, read_items(path), run)
        await digest(store, engines, run, workers=settings.workers, concurrency=settings.concurrency)
    return run, await accounted_for(store, number)


async def accounted_for(store, number):
    status = await read_status(store.pool)
    print(f"\n{status}")
    assert status.known == status.stored == number
    assert status.complete
    # a model of random weights says nothing that passes the gate: its items have their own sentences, and none is lost over a 503,
    # a broken connection or a timeout
    assert (status.embedded, status.dead_letters, status.gaps) == (number, 0, [])
    return status


async def test_five_hundred_items_are_all_accounted_for_and_none_is_lost_to_a_full_queue(store, vllm, real_items):
    """64 requests in flight against a queue of 48: what vLLM refuses is asked again until it is taken."""
    settings = vllm.model_copy(update={"concurrency": 64, "workers": 4})
    rejected, served = metric("vllm:admission_rejections_total"), metric("vllm:prompt_tokens_total")
    run, _ = await run_pipeline(store, settings, real_items(500), 500)
    rejected, served = metric("vllm:admission_rejections_total") - rejected, metric("vllm:prompt_tokens_total") - served
    async with store.pool.connection() as connection:
        [spent] = [usage for usage in await read_usage(connection) if usage.purpose == "summary"]
    print(f"{run.counts}; vLLM refused {rejected:.0f} requests and read {served:.0f} tokens; the ledger of summaries: {spent}")
    assert rejected > 0
    assert spent.requests == run.counts.llm_requests >= 500
    # what it read of a request that timed out, only vLLM knows; the ledger knows that there was one
    assert spent.prompt_tokens == served if not spent.unanswered else spent.prompt_tokens <= served


async def test_a_hundred_items_embedded_by_vllm_are_found(store, vllm, real_items):
    settings = vllm.model_copy(update={"llm_base_url": None})
    _, status = await run_pipeline(store, settings, real_items(100))
    assert status.embedded == 100
    async with open_engines(settings) as engines:
        question = "deferring the import of a submodule still loads the parent package immediately"
        vectors, _ = await embed(engines.embedding, [question], dimensions=None)
        version = await active_version(store.pool)
        found = await search(store.pool, version, question, vectors[0], mode="vector", limit=100)
    assert len(found.hits) == 100
    # the same weights: a database may move from one to the other without a jump
    ours, _ = MiniLM(vllm.home / "cache").encode([question])
    assert float(ours[0] @ vectors[0]) > 0.9999


async def test_a_vllm_killed_and_restarted_in_mid_run_loses_nothing(store, vllm, real_items):
    port = free_port()
    patience = {"engine_patience_seconds": float(STARTS_WITHIN_SECONDS)}
    settings = vllm.model_copy(update={"llm_base_url": f"http://127.0.0.1:{port}/v1"} | patience)
    with own_chat_server(port, "--max-model-len", "4096") as first:
        await asyncio.to_thread(wait_until_up, port, first)
        running = asyncio.create_task(run_pipeline(store, settings, real_items(100)))
        while metric("vllm:request_success_total", port) < 30 and not running.done():
            await asyncio.sleep(0.2)
        assert not running.done(), "killed too late to prove anything"
        kill(first)
        with own_chat_server(port, "--max-model-len", "4096"):
            run, _ = await running
    assert run.counts.llm_requests > 100
    print(run.counts)


def starsearch(settings, **extra):
    env = os.environ | {
        "STARSEARCH_HOME": str(settings.home),
        "STARSEARCH_DATABASE_URL": settings.database_url.get_secret_value(),
        "STARSEARCH_LLM_BASE_URL": settings.llm_base_url,
        "STARSEARCH_EMBEDDING_BASE_URL": settings.embedding_base_url,
    }
    command = [sys.executable, "-m", "starsearch.cli", "digest"]
    return subprocess.run(command, env=env | extra, capture_output=True, text=True, timeout=120, check=False)


def test_a_wrong_model_name_is_refused_with_the_one_to_set(vllm):
    done = starsearch(vllm, STARSEARCH_LLM_MODEL="mistral")
    assert done.returncode == 3
    assert "serves tiny; set STARSEARCH_LLM_MODEL to one of these (it is mistral)" in done.stderr


def test_a_chat_engine_that_shall_embed_is_told_apart(vllm):
    done = starsearch(vllm, STARSEARCH_EMBEDDING_BASE_URL=CHAT)
    assert done.returncode == 3
    assert "start a second one with --runner pooling" in done.stderr


def test_too_small_a_context_is_refused_with_the_flag_to_raise(vllm):
    port = free_port()
    with own_chat_server(port, "--max-model-len", "512") as process:
        wait_until_up(port, process)
        done = starsearch(vllm, STARSEARCH_LLM_BASE_URL=f"http://127.0.0.1:{port}/v1")
    assert done.returncode == 3
    assert "takes 512 tokens of context" in done.stderr
    assert "raise --max-model-len" in done.stderr
