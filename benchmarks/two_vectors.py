"""Would two vectors an item find more? python -m benchmarks.two_vectors

The vector that is kept means title and summary; a second one would mean title and body. Embedding all bodies takes a quarter of an hour of
both cores, so only items that come near any question get one: the 150 nearest by vector and the 100 best by words of each. Every other
item keeps one vector and so stays as far away as it was, which can only flatter the second vector.

Weights are chosen on four fifths of the questions and asked the last fifth; the interval is a paired bootstrap over the questions.
"""

import asyncio
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.hybrid import DATA, RESAMPLES, filled
from starsearch.evaluate import read_questions
from starsearch.finder import Finder, open_finder
from starsearch.inference.embed import embed
from starsearch.inference.prompts import embedded_text
from starsearch.serving import sent_dimensions
from starsearch.settings import Settings
from starsearch.store.nearest import nearest
from starsearch.store.search import search
from starsearch.untrusted import without_links

NEAR, WORDED, REQUEST, FOLDS, TOP = 150, 100, 32, 5, 10
NOISE = re.compile(r"<!--.*?-->|```.*?(?:```|\Z)|<[^>\n]{1,300}>|[#*`>|]", re.DOTALL)
WORD_WEIGHTS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
MERGED = {
    "one vector": lambda first, _: first,
    "the better of both": np.maximum,
    "the mean of both": lambda first, second: (first + second) / 2,
    "0.7 of the first": lambda first, second: 0.7 * first + 0.3 * second,
    "0.3 of the first": lambda first, second: 0.3 * first + 0.7 * second,
    "the second alone": lambda _, second: second,
}


@dataclass(frozen=True)
class Candidates:
    """Of one question: both cosines and the word score of each candidate, and whether it is a right one."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    words: NDArray[np.float64]
    right: NDArray[np.bool_]

    def rank(self, merged: str, weight: float) -> int:
        """Of the best right one, from 1; one more than there are candidates where none is right."""
        scores = MERGED[merged](self.first, self.second) + weight * self.words
        best = scores[self.right].max(initial=-np.inf)
        return int((scores > best).sum()) + 1


async def _candidates(settings: Settings) -> list[Candidates]:
    async with open_finder(settings) as finder:
        questions = read_questions(DATA / "sample_questions.jsonl")
        asked = await _embed(finder, [question.text for question in questions])
        near = [(await nearest(finder.pool, finder.version, vector, count=NEAR)).ids for vector in asked]
        worded = [
            {hit.id: hit.score for hit in (await search(finder.pool, finder.version, q.text, None, mode="text", limit=WORDED)).hits}
            for q in questions
        ]
        ids = sorted({item for found in near for item in found} | {item for found in worded for item in found})
        async with finder.pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT i.id, i.url, i.title, i.body, d.embedding FROM item i JOIN digest d ON d.item_id = i.id "
                "WHERE d.version_id = %s AND i.id = ANY (%s) ORDER BY i.id",
                [finder.version.id, ids],
            )
            items = await cursor.fetchall()
        print(f"{len(items):,} items come near {len(questions)} questions", flush=True)
        first = np.stack([vector.to_numpy().astype(np.float32) for *_, vector in items])
        second = np.stack(await _embed(finder, [embedded_text(title, _prose(body or "")) for _, _, title, body, _ in items]))
    found = []
    for question, vector, words in zip(questions, asked, worded, strict=True):
        right = np.array([url in question.right for _, url, *_ in items])
        found.append(Candidates(first @ vector, second @ vector, np.array([words.get(item, 0.0) for item, *_ in items]), right))
    return found


def _prose(body: str) -> str:
    return " ".join(without_links(NOISE.sub(" ", body)).split())


async def _embed(finder: Finder, texts: list[str]) -> list[NDArray[np.float32]]:
    engine = await finder.engine()
    vectors: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), REQUEST):
        vectors += list((await embed(engine, texts[start : start + REQUEST], dimensions=sent_dimensions(finder.version)))[0])
    return vectors


def _report(found: list[Candidates]) -> None:
    ranks = {
        (merged, weight): np.array([each.rank(merged, weight) for each in found]) for merged in MERGED for weight in (0.0, *WORD_WEIGHTS)
    }
    baseline = ranks["one vector", 0.25] <= TOP
    samples = np.random.default_rng(1).integers(len(found), size=(RESAMPLES, len(found)))
    print(f"{'':20} {'weight':>6}  @1   @10  MRR   @10 minus one vector's (95 %)")
    for (merged, weight), rank in ranks.items():
        gain = (rank <= TOP).astype(float) - baseline
        low, high = np.percentile(gain[samples].mean(axis=1), (2.5, 97.5))
        measures = f"{(rank == 1).mean():.2f}  {(rank <= TOP).mean():.3f} {(1 / rank).mean():.2f}"
        print(f"{merged:20} {weight:>6}  {measures}  {gain.mean():+.3f} ({low:+.3f} to {high:+.3f})")
    print("cross-validated recall@10, weights of the words chosen on four fifths:")
    for merged in MERGED:
        print(f"  {merged:20} {_cross_validated([ranks[merged, weight] <= TOP for weight in WORD_WEIGHTS]):.3f}")
    print(f"  {'any of them':20} {_cross_validated([ranks[m, weight] <= TOP for m in MERGED for weight in WORD_WEIGHTS]):.3f}")


def _cross_validated(variants: list[NDArray[np.bool_]]) -> float:
    """Mean over 100 shufflings of the questions."""
    random, means = np.random.default_rng(2), []
    for _ in range(100):
        folds = np.array_split(random.permutation(len(variants[0])), FOLDS)
        kept = [np.setdiff1d(np.arange(len(variants[0])), fold) for fold in folds]
        chosen = [max(variants, key=lambda variant, train=train: variant[train].mean()) for train in kept]
        means.append(np.concatenate([variant[fold] for variant, fold in zip(chosen, folds, strict=True)]).mean())
    return float(np.mean(means))


if __name__ == "__main__":
    if settings := filled():
        _report(asyncio.run(_candidates(settings)))
