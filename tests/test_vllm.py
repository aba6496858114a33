"""The same pipeline against a real vLLM: `make test-vllm`, with two servers on loopback (docs/operations.md).

A tiny chat model with random weights and the real MiniLM weights are enough: this proves protocol and bookkeeping, not quality.
"""

import os
import urllib.request

import pytest

from starsearch.audit import read_status
from starsearch.embedded.minilm import MiniLM
from starsearch.engines import open_engines
from starsearch.inference.embed import embed
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.store.search import search
from starsearch.store.versions import active_version

pytestmark = pytest.mark.vllm

CHAT = os.environ.get("VLLM_CHAT_URL", "http://127.0.0.1:18100/v1")
EMBEDDINGS = os.environ.get("VLLM_EMBEDDING_URL", "http://127.0.0.1:18101/v1")


@pytest.fixture
def vllm(home, dsn):
    for url in (CHAT, EMBEDDINGS):
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5)
        except OSError as error:
            pytest.fail(f"no vLLM at {url} ({error}): start both servers first, see docs/operations.md")
    return Settings(_env_file=None, home=home, database_url=dsn, llm_base_url=CHAT, embedding_base_url=EMBEDDINGS)


@pytest.fixture
def hundred(shared_data, tmp_path):
    """Ninety real items and the ten longest."""
    path = tmp_path / "items.jsonl"
    lines = (shared_data / "sample.jsonl").read_text("utf-8").splitlines()
    longest = sorted(lines, key=len)[-10:]
    path.write_text("\n".join([*(line for line in lines if line not in longest)][:90] + longest) + "\n", "utf-8")
    return path


async def run_pipeline(store, settings, path):
    async with recorded_run(store, "ingest") as run, open_engines(settings) as engines:
        await ingest(store, read_items(path), run)
        await digest(store, engines, run)
        status = await read_status(store.pool)
    print(f"\n{run.counts}\n{status}")
    assert run.counts.items == status.known == status.stored == 100
    assert status.complete
    assert status.embedded + status.dead_letters == 100
    assert status.usage["cost_usd"] is None  # we do not know what this engine costs
    return engines, run, status


async def test_a_hundred_items_through_both_servers_are_all_accounted_for(store, vllm, hundred):
    # random weights rarely end a sentence, so many summaries are cut off: dead letters, with their reason
    _, run, status = await run_pipeline(store, vllm, hundred)
    assert run.counts.llm_requests >= 100
    assert {gap.reason for gap in status.gaps} <= {"dead letter: cut-off summary", "dead letter: empty summary"}


async def test_a_hundred_items_embedded_by_vllm_are_found(store, vllm, hundred):
    settings = vllm.model_copy(update={"llm_base_url": None})
    _, _, status = await run_pipeline(store, settings, hundred)
    assert status.embedded == 100
    async with open_engines(settings) as engines:
        question = "deferring the import of a submodule still loads the parent package immediately"
        vectors, _ = await embed(engines.embedding, [question], dimensions=None)
        version = await active_version(store.pool)
        hits = await search(store.pool, version, question, vectors[0], mode="vector", limit=100)
    assert len(hits) == 100
    # the same weights: a database may move from one to the other without a jump
    ours, _ = MiniLM(vllm.home / "cache").encode([question])
    assert float(ours[0] @ vectors[0]) > 0.9999
