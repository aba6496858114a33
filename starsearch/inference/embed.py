"""Texts to unit vectors, by the engine's embeddings endpoint."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray

from starsearch.errors import DigestFailed, ModelNotServed, VersionMismatch
from starsearch.inference.client import Engine, charge, translate

Vectors = NDArray[np.float32]


async def embed(engine: Engine, texts: Sequence[str], *, dimensions: int | None) -> tuple[Vectors, int]:
    """Vectors: (n, dimensions) float32, unit length, in the order of `texts`; and the tokens read. One request.

    `dimensions` is sent only where configured, because models that cannot shorten their vectors answer 400. base64 is a
    twelfth of the client's CPU of a list of numbers; engines that ignore it and send a list are understood too.
    """
    extra: dict[str, Any] = {"dimensions": dimensions} if dimensions else {}
    try:
        answer = await engine.client.embeddings.create(model=engine.model, input=list(texts), encoding_format="base64", **extra)
        tokens, _ = charge(answer.usage)
        rows = sorted(answer.data, key=lambda row: row.index)
        if len(rows) != len(texts):
            raise DigestFailed("unreadable answer", f"{len(rows)} vectors for {len(texts)} texts")
        vectors = np.stack([_decode(row.embedding) for row in rows])
    except openai.OpenAIError as error:
        raise translate(error) from error
    except (AttributeError, TypeError, ValueError) as error:  # the SDK hands on whatever a 200 holds, even a proxy's page
        raise DigestFailed("unreadable answer", f"vectors: {error}"[:300]) from error
    if vectors.ndim != 2:
        raise DigestFailed("unreadable answer", f"vectors of shape {vectors.shape}")
    if dimensions and vectors.shape[1] != dimensions:
        raise VersionMismatch(
            f"{engine.model} gives vectors of {vectors.shape[1]} dimensions, not the configured {dimensions}: "
            "correct STARSEARCH_EMBEDDING_DIMENSIONS, or use a database made for these"
        )
    return _unit(vectors), tokens


async def measure_dimensions(engine: Engine, dimensions: int | None) -> int:
    """How long this engine's vectors are, found by asking for one. Raises ModelNotServed where it gives none."""
    try:
        vectors, _ = await embed(engine, ["dimensions"], dimensions=dimensions)
    except DigestFailed as error:
        raise ModelNotServed(
            f"{engine.model} at {engine.base_url} gives no {f'{dimensions}-dimensional ' if dimensions else ''}embeddings ({error}): "
            "correct STARSEARCH_EMBEDDING_BASE_URL, STARSEARCH_EMBEDDING_MODEL or STARSEARCH_EMBEDDING_DIMENSIONS"
        ) from error
    return int(vectors.shape[1])


def _decode(value: str | Sequence[float]) -> Vectors:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    return np.asarray(value, np.float32)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise DigestFailed("unusable vector", "zero, infinite or not a number")
    unit: Vectors = (vectors / lengths).astype(np.float32)
    return unit
