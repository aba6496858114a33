"""Texts to unit vectors, by the engine's embeddings endpoint."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray

from starsearch.errors import DigestFailed, ModelNotServed, VersionMismatch
from starsearch.inference.client import Engine, charge, translate

PROBE = ("the server does not start", "Add support for dark mode (#42)", "TypeError: 'NoneType' object is not iterable")
Vectors = NDArray[np.float32]
Vector = NDArray[np.float32]


async def embed(engine: Engine, texts: Sequence[str], *, dimensions: int | None) -> tuple[Vectors, int]:
    """Vectors: (n, dimensions) float32, unit length, in the order of `texts`; and the tokens read. One request."""
    vectors, tokens = await _ask(engine, texts, dimensions)
    usable = _usable(vectors)
    if not usable.all():
        raise DigestFailed("unusable vector", "zero, infinite or not a number")
    return _unit(vectors), tokens


async def embed_each(engine: Engine, texts: Sequence[str], *, dimensions: int | None) -> tuple[list[Vector | DigestFailed], int]:
    """Like `embed`, but a text that cannot be embedded costs only itself.

    A batch that is refused (400) is asked in halves until the text that it is refused for stands alone; that one is cut once.
    """
    try:
        vectors, tokens = await _ask(engine, texts, dimensions)
    except DigestFailed as error:
        if not error.permanent:
            return [error for _ in texts], 0
        if len(texts) == 1:
            return await _embed_cut(engine, texts[0], dimensions)
        half = len(texts) // 2
        first, first_tokens = await embed_each(engine, texts[:half], dimensions=dimensions)
        second, second_tokens = await embed_each(engine, texts[half:], dimensions=dimensions)
        return first + second, first_tokens + second_tokens
    usable = _usable(vectors)
    vectors[~usable] = 1
    unusable = DigestFailed("unusable vector", "zero, infinite or not a number")
    return [vector if ok else unusable for vector, ok in zip(_unit(vectors), usable, strict=True)], tokens


async def _embed_cut(engine: Engine, text: str, dimensions: int | None) -> tuple[list[Vector | DigestFailed], int]:
    try:
        vectors, tokens = await embed(engine, [text[: len(text) // 2] or text], dimensions=dimensions)
    except DigestFailed as error:
        return [error], 0
    return [vectors[0]], tokens


async def _ask(engine: Engine, texts: Sequence[str], dimensions: int | None) -> tuple[Vectors, int]:
    """The vectors as the engine gives them, in the order of `texts`.

    `dimensions` is sent only where configured, because models that cannot shorten their vectors answer 400. base64 is a
    twelfth of the client's CPU of a list of numbers; engines that ignore it and send a list are understood too.
    """
    extra: dict[str, Any] = {"dimensions": dimensions} if dimensions else {}
    try:
        answer = await engine.client.embeddings.create(model=engine.model, input=list(texts), encoding_format="base64", **extra)
        tokens, _ = charge(answer.usage)
        rows = sorted(answer.data, key=lambda row: row.index)
        if [row.index for row in rows] != list(range(len(texts))):
            raise DigestFailed("unreadable answer", f"{len(rows)} vectors for {len(texts)} texts, or numbered wrongly")
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
    return vectors, tokens


async def take_probe(engine: Engine, dimensions: int | None) -> Vectors:
    """What the engine makes of a few fixed texts: (texts, dimensions). Raises ModelNotServed where it makes nothing of them."""
    try:
        vectors, _ = await embed(engine, PROBE, dimensions=dimensions)
    except (DigestFailed, ModelNotServed) as error:
        hint = engine.dialect.embedding_hint if isinstance(error, ModelNotServed) else ""
        raise ModelNotServed(
            f"{engine.model} at {engine.base_url} gives no {f'{dimensions}-dimensional ' if dimensions else ''}embeddings ({error}): "
            "correct STARSEARCH_EMBEDDING_BASE_URL, STARSEARCH_EMBEDDING_MODEL or STARSEARCH_EMBEDDING_DIMENSIONS"
            + (f"; {hint}" if hint else "")
        ) from error
    return vectors


def _decode(value: str | Sequence[float]) -> Vector:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    return np.asarray(value, np.float32)


def _usable(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows have a direction: (n,)."""
    lengths = np.linalg.norm(vectors, axis=1)
    usable: NDArray[np.bool_] = np.isfinite(lengths) & (lengths > 0)
    return usable


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
