"""The fused ONNX graph against a plain NumPy transformer, and the weights' checksum."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from starsearch.embedded import minilm
from starsearch.errors import EngineUnavailable


@pytest.fixture(scope="module")
def model(home):
    return minilm.MiniLM(home / "cache")


def reference(text: str, tokenizer) -> np.ndarray:
    """BERT's forward pass, written out for one text, without batching, masks or fusion."""
    w = load_file(minilm._model_folder() / "model.safetensors")
    ids = tokenizer.encode(text).ids

    def normalized(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    words, positions = w["embeddings.word_embeddings.weight"], w["embeddings.position_embeddings.weight"]
    x = words[ids] + positions[: len(ids)] + w["embeddings.token_type_embeddings.weight"][0]
    x = normalized(x, "embeddings.LayerNorm")
    for n in range(6):
        layer = f"encoder.layer.{n}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{part}").reshape(len(ids), 12, 32).swapaxes(0, 1) for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(32))
        attended = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(len(ids), 384)
        x = normalized(dense(attended, f"{layer}.attention.output.dense") + x, f"{layer}.attention.output.LayerNorm")
        up = dense(x, f"{layer}.intermediate.dense")
        erf = np.vectorize(__import__("math").erf)(up / np.sqrt(2))
        x = normalized(dense(up * 0.5 * (1 + erf), f"{layer}.output.dense") + x, f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_vectors_equal_the_reference_whatever_they_are_batched_with(model):
    texts = ["short", "The playback service is killed when the screen is locked for ten minutes.", "word " * 400, ""]
    vectors, tokens = model.encode(texts)
    assert vectors.shape == (4, 384)
    assert tokens == 3 + 16 + 256 + 2
    for text, vector in zip(texts, vectors, strict=True):
        assert np.abs(vector - reference(text, model._tokenizer)).max() < 2e-5


def test_meaning_is_nearer_than_words(model):
    texts = ["The app crashes on startup when the config file is missing", "Segfault at launch without settings", "How to bake bread"]
    (a, b, c), _ = model.encode(texts)
    assert a @ b > a @ c


def test_other_weights_are_refused(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"something else")
    with pytest.raises(EngineUnavailable, match="sha256"):
        minilm._cached_graph(weights, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
