"""The recall monitor: whether search still finds the nearest vectors, overall and for each class of filter.

Questions are titles of stored items, embedded by the serving version's own model: what people ask is not kept anywhere, so nobody's
questions lie in the database. Each is searched as `search --mode vector` would, and compared with a count of every vector.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starsearch.explain import parse_address
from starsearch.inference.client import Engine
from starsearch.inference.embed import embed
from starsearch.models import Filters, Hit, IndexVersion
from starsearch.serving import sent_dimensions
from starsearch.store.database import Pool
from starsearch.store.recall import exact_similarities, record_recall, sample_titles
from starsearch.store.search import search

QUESTIONS = 20  # each counts every vector once per class: half a second of CPU at a million
DEPTH = 10
ROUNDING = 0.0002  # of a similarity in a hit; equally near vectors are equally right

log = logging.getLogger(__name__)


@dataclass
class Recall:
    """found of expected: how many of the exact nearest ten search gave, over all questions of one class of filter."""

    queries: int = 0
    found: int = 0
    expected: int = 0

    @property
    def value(self) -> float:
        return self.found / self.expected


async def measure_recall(pool: Pool, version: IndexVersion, engine: Engine, *, questions: int = QUESTIONS) -> dict[str, float]:
    """recall@10 by class of filter, also written down for `status`; classes that no item passes are left out."""
    measured: dict[str, Recall] = {}
    for title, url in await sample_titles(pool, questions):
        vectors, _ = await embed(engine, [title], dimensions=sent_dimensions(version))
        for name, filters in _classes(url).items():
            exact = await exact_similarities(pool, version, vectors[0], filters, limit=DEPTH)
            if exact:
                hits = (await search(pool, version, title, vectors[0], mode="vector", filters=filters, limit=DEPTH)).hits
                seen = measured.setdefault(name, Recall())
                seen.queries += 1
                seen.expected += len(exact)
                seen.found += found_of(hits, exact)
    await record_recall(pool, version, {name: (seen.queries, seen.value) for name, seen in measured.items()})
    for name, seen in measured.items():
        log.info("recall@10 %.3f (%s, %d questions)", seen.value, name, seen.queries)
    return {name: round(seen.value, 4) for name, seen in measured.items()}


def found_of(hits: Sequence[Hit], exact: Sequence[float]) -> int:
    """How many of the exact nearest, told by their similarities, are among the hits."""
    least = exact[-1] - ROUNDING
    return min(sum((hit.scores["vector"] or 0) >= least for hit in hits), len(exact))


def _classes(url: str) -> dict[str, Filters]:
    address = parse_address(url, host="github.com")  # a URL names its own
    of_repository = {"repository": Filters(repos=(address["repo"],))} if address else {}
    month = Filters(since=datetime.now(UTC) - timedelta(days=30))
    return {"no filter": Filters(), **of_repository, "30 days": month, "open issues": Filters(type="issue", state="open")}
