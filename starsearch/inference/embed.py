"""Texts to unit vectors, by the engine's embeddings endpoint."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openai
from numpy.typing import NDArray

from starsearch.errors import DigestFailed, EngineUnavailable, ModelNotServed, VersionMismatch
from starsearch.inference.client import Engine, charge, translate, unanswered

PROBE = ("the server does not start", "Add support for dark mode (#42)", "TypeError: 'NoneType' object is not iterable")
HALVING_SECONDS = 600.0  # after that a failing batch is not asked in halves any more: with its summaries it has to fit into a lease
Vectors = NDArray[np.float32]
Vector = NDArray[np.float32]
Outcome = Vector | DigestFailed | EngineUnavailable


async def embed(engine: Engine, texts: Sequence[str], *, dimensions: int | None, width: int | None = None) -> tuple[Vectors, int]:
    """Vectors: (n, dimensions) float32, unit length, in the order of `texts`; and the tokens read. One request.

    dimensions: asked for; None: the model's own, which are `width` where that is known. Others are unusable.
    """
    vectors, tokens = await _ask(engine, texts, dimensions, width)
    usable = _usable(vectors)
    if not usable.all():
        raise DigestFailed("unusable vector", "zero, infinite or not a number")
    return _unit(vectors), tokens


async def embed_each(
    engine: Engine, texts: Sequence[str], *, dimensions: int | None, width: int | None = None
) -> tuple[list[Vector | DigestFailed], int]:
    """Like `embed`, but a text that cannot be embedded costs only itself.

    A batch that is refused (400) is asked in halves until the text that it is refused for stands alone; that one is cut once. In
    halves goes, too, a batch over which the engine fails (500, too late, a lost connection) while it embeds a harmless text; the text
    that is left has failed. Raises EngineUnavailable where the engine neither embedded a text nor broke off over one alone.
    """
    asking = _Asking(engine, dimensions, width)
    outcomes = await asking.embed(texts)
    gone = [outcome for outcome in outcomes if isinstance(outcome, EngineUnavailable)]
    if gone and len(gone) == len(outcomes):
        raise gone[0]
    return [DigestFailed("no answer", str(o), attempt=False) if isinstance(o, EngineUnavailable) else o for o in outcomes], asking.tokens


@dataclass
class _Asking:
    """For the vectors of several texts, in as many requests as that takes. `gone`: the engine is at fault, so nothing more is asked."""

    engine: Engine
    dimensions: int | None
    width: int | None
    tokens: int = 0
    gone: EngineUnavailable | None = None
    deadline: float = field(default_factory=lambda: time.monotonic() + HALVING_SECONDS)

    async def embed(self, texts: Sequence[str]) -> list[Outcome]:
        if self.gone:
            return [self.gone for _ in texts]
        lost = unanswered()
        try:
            vectors, tokens = await _ask(self.engine, texts, self.dimensions, self.width)
        except EngineUnavailable as error:  # refused in the end, perhaps because it broke off at first
            return await self._unanswered(texts, error, reached=error.reached or unanswered() > lost)
        except DigestFailed as error:
            return await self._failed(texts, error)
        self.tokens += tokens
        usable = _usable(vectors)
        vectors[~usable] = 1
        unusable = DigestFailed("unusable vector", "zero, infinite or not a number")
        return [vector if ok else unusable for vector, ok in zip(_unit(vectors), usable, strict=True)]

    async def _failed(self, texts: Sequence[str], error: DigestFailed) -> list[Outcome]:
        if error.permanent:
            return await self._halves(texts) if len(texts) > 1 else [await self._cut(texts[0])]
        if len(texts) > 1 and error.engine and await self._trouble() is None and time.monotonic() < self.deadline:
            return await self._halves(texts)
        return [error for _ in texts]

    async def _unanswered(self, texts: Sequence[str], error: EngineUnavailable, *, reached: bool) -> list[Outcome]:
        """An engine that breaks off over a text alone, and then goes on or is gone, did so for that text; not if it always does."""
        trouble = await self._trouble() if reached else error
        if trouble is None and len(texts) > 1 and time.monotonic() < self.deadline:
            return await self._halves(texts)
        if trouble is not None:
            self.gone = error
            ended = reached and isinstance(trouble, EngineUnavailable) and not trouble.reached
            if len(texts) > 1 or not ended:
                return [error for _ in texts]
        return [DigestFailed("no answer", str(error)) for _ in texts]

    async def _trouble(self) -> DigestFailed | EngineUnavailable | None:
        """What the engine has with a harmless text alone; None: it embeds it, so that others must be why it failed."""
        try:
            _, tokens = await embed(self.engine, PROBE[:1], dimensions=self.dimensions, width=self.width)
        except (DigestFailed, EngineUnavailable) as error:
            return error
        self.tokens += tokens
        return None

    async def _halves(self, texts: Sequence[str]) -> list[Outcome]:
        half = len(texts) // 2
        return await self.embed(texts[:half]) + await self.embed(texts[half:])

    async def _cut(self, text: str) -> Outcome:
        try:
            vectors, tokens = await embed(self.engine, [text[: len(text) // 2] or text], dimensions=self.dimensions, width=self.width)
        except EngineUnavailable as error:
            return (await self._unanswered([text], error, reached=error.reached))[0]
        except DigestFailed as error:
            return error
        self.tokens += tokens
        vector: Vector = vectors[0]
        return vector


async def _ask(engine: Engine, texts: Sequence[str], dimensions: int | None, width: int | None) -> tuple[Vectors, int]:
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
            raise DigestFailed("unreadable answer", f"{len(rows)} vectors for {len(texts)} texts, or numbered wrongly", engine=True)
        vectors = np.stack([_decode(row.embedding) for row in rows])
    except openai.OpenAIError as error:
        raise translate(error) from error
    except (AttributeError, TypeError, ValueError, RecursionError) as error:  # the SDK hands on whatever a 200 holds, even a proxy's page
        raise DigestFailed("unreadable answer", f"vectors: {error}"[:300], engine=True) from error
    if vectors.ndim != 2:
        raise DigestFailed("unreadable answer", f"vectors of shape {vectors.shape}", engine=True)
    if dimensions and vectors.shape[1] != dimensions:
        raise VersionMismatch(
            f"{engine.model} gives vectors of {vectors.shape[1]} dimensions, not the configured {dimensions}: "
            "correct STARSEARCH_EMBEDDING_DIMENSIONS, or use a database made for these"
        )
    if width and vectors.shape[1] != width:
        raise DigestFailed("unusable vector", f"of {vectors.shape[1]} dimensions, where the index has {width}", engine=True)
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
