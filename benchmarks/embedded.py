"""The embedded engine against the processor's own limit, and the whole path from file to index.

Floor of an embedding: MiniLM multiplies 10.6 million weights per token, 21.2 MFLOP, so a core cannot read more tokens a second
than its single-precision matrix product allows; that is measured in the same run.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import helper, numpy_helper

from benchmarks.measure import Figure
from starsearch.embedded import postgres
from starsearch.embedded.minilm import MiniLM
from starsearch.engines import open_engines
from starsearch.jsonl import read_items
from starsearch.pipeline import digest, ingest, recorded_run
from starsearch.settings import Settings
from starsearch.storage import open_store

FLOP_PER_TOKEN = 2 * 6 * 12 * 384 * 384
ITEMS = 1_500
WORDS = 60  # about the length of an embedded text, title and summary: 80 tokens


def embeddings_per_second() -> list[Figure]:
    """Texts as long as the pipeline's, on all cores; beside it, tokens a second and the share of the floor."""
    texts = _texts(1_024)
    with tempfile.TemporaryDirectory() as cache:
        model = MiniLM(Path(cache))
        model.encode(texts[:64])
        started, cpu = time.perf_counter(), time.process_time()
        tokens = sum(model.encode(texts[start : start + 64])[1] for start in range(0, len(texts), 64))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    floor = _gigaflops() * 1e9 / FLOP_PER_TOKEN
    return [
        Figure("embedded.embeddings_per_second", round(len(texts) / wall, 1), "texts/s", ">=", 80),
        Figure("embedded.tokens_per_cpu_second_of_floor", round(tokens / cpu / floor, 3), f"of {floor:,.0f} tokens/s", ">=", 0.6),
    ]


def items_per_second() -> list[Figure]:
    """Invented items of real lengths through ingest and digest into a new database, embedded engine and PostgreSQL included."""
    folder = Path(tempfile.mkdtemp(prefix="starsearch-bench-"))
    folder.chmod(0o755)
    try:
        path = write_items(folder / "items.jsonl")
        MiniLM(folder / "cache")  # the graph is written once per machine
        return [Figure("embedded.items_per_second", round(asyncio.run(_run(folder, path)), 1), "items/s", ">=", 40)]
    finally:
        postgres.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, path: Path) -> float:
    settings = Settings(_env_file=None, home=folder)
    async with open_store(settings) as store, recorded_run(store, "ingest") as run:
        await ingest(store, read_items(path), run)
        async with open_engines(settings) as engines:
            await digest(store, engines, run, workers=settings.workers, concurrency=settings.concurrency)
    if run.counts.embedded != ITEMS:
        raise AssertionError(f"{run.counts} is not {ITEMS} items digested")
    return ITEMS / run.counts.seconds


def write_items(path: Path) -> Path:
    """A file of invented items."""
    path.write_text("".join(json.dumps(_record(n)) + "\n" for n in range(1, ITEMS + 1)))
    return path


def _record(n: int) -> dict[str, object]:
    # body lengths as in GitHub's issues: half below 600 characters, a tenth above 2,000
    length = int(np.random.default_rng(n).lognormal(4.6, 1.0))
    return {
        "repo": f"bench/repository-{n % 50}",
        "number": n,
        "type": "issue",
        "title": " ".join(_words(n, 8)),
        "body": ". ".join(" ".join(_words(n + part, 12)).capitalize() for part in range(max(1, length // 12))),
        "updated_at": "2026-01-01T00:00:00Z",
    }


def _texts(number: int) -> list[str]:
    return [" ".join(_words(n, WORDS)) for n in range(number)]


def _words(seed: int, number: int) -> list[str]:
    vocabulary = """the server returns an error when parsing config file after update timeout memory leak thread lock build test"""
    return list(np.random.default_rng(seed).choice(vocabulary.split(), number))


def _gigaflops() -> float:
    """Single-precision matrix product of one core, by the same library and shapes as the model's largest layer."""
    weights = np.random.default_rng(0).random((384, 1536), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "floor",
        [helper.make_tensor_value_info("a", 1, [2048, 384])],
        [helper.make_tensor_value_info("c", 1, [2048, 1536])],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    a = np.random.default_rng(1).random((2048, 384), np.float32)
    session.run(None, {"a": a})
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        for _ in range(10):
            session.run(None, {"a": a})
        best = max(best, 10 * 2 * 2048 * 384 * 1536 / (time.process_time() - started) / 1e9)
    return best


if __name__ == "__main__":
    print(os.cpu_count(), "cores,", f"{_gigaflops():.0f} GFLOP/s each")
