"""Many ids at once: batches that GitHub finds too heavy are asked again in halves, and the size that works is remembered.

For each id the answer is its node, Missing (GitHub said NOT_FOUND, twice) or Failed with the reason. A null for any other reason
is never a deletion: GitHub also answers null when it runs out of time, of resources, or of permission.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from starsearch.errors import AnswerUnusable, QueryRefused, QueryTooHeavy, StarsearchError
from starsearch.github.client import TRIES, Answer, GitHub, Node

LARGEST = 100  # ids, GitHub's limit
BATCH = 50  # of a sweep costs half the points of 100, and stays farther from GitHub's ten seconds
OVERLOADS = 2  # so many among WINDOW requests, and batches become smaller; a single one may be bad luck
WINDOW = 20
GROWTH = 1.1  # after every WINDOW / 2 good answers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """GitHub said NOT_FOUND, and said it again: deleted, moved away, or made private."""


@dataclass(frozen=True)
class Failed:
    """GitHub would not tell, or not all of it: then `node` has what it told. Nothing follows from that."""

    reason: str
    detail: str = ""
    node: Node | None = None


Found = Node | Missing | Failed


@dataclass
class Size:
    """How many ids one request carries."""

    most: int
    now: float
    requests: int = 0
    overloads: list[int] = field(default_factory=list)

    def answered(self) -> None:
        self.requests += 1
        if self.requests % (WINDOW // 2) == 0:
            self.now = min(float(self.most), self.now * GROWTH)

    def overloaded(self) -> None:
        self.requests += 1
        self.overloads = [at for at in self.overloads if at > self.requests - WINDOW] + [self.requests]
        if len(self.overloads) >= OVERLOADS:
            self.now, self.overloads = max(1.0, self.now / 2), []


class Batches:
    """One kind of query over ids, with the batch size that GitHub bears."""

    def __init__(self, github: GitHub, query: str, *, size: int = BATCH) -> None:
        self._github = github
        self._query = query
        self._size = Size(min(size, LARGEST), float(min(size, LARGEST)))

    @property
    def size(self) -> int:
        """How many ids the next request should carry."""
        return int(self._size.now)

    async def ask(self, ids: Sequence[str], **variables: object) -> dict[str, Found]:
        """What GitHub says of each id. Raises RateLimited or SourceUnavailable; any other failure is that of its ids."""
        found = await self._ask(list(ids), variables)
        missing = [node_id for node_id, node in found.items() if isinstance(node, Missing)]
        if missing:  # GitHub's replicas sometimes deny what they are about to learn: believed the second time
            found |= await self._ask(missing, variables)
        return found

    async def _ask(self, ids: list[str], variables: Mapping[str, object]) -> dict[str, Found]:
        found: dict[str, Found] = {}
        waiting = [ids]
        tries: Counter[tuple[str, ...]] = Counter()
        while waiting:
            batch = waiting.pop()
            heavy: list[str] = []
            try:
                answer = await self._github.ask_once(self._query, {**variables, "ids": batch})
                heavy = read_nodes(batch, answer, found)
            except QueryTooHeavy as error:
                log.info("%s of %d: %s", self._query, len(batch), error)
                heavy = batch
            except QueryRefused as error:
                found |= dict.fromkeys(batch, _failed(error))
                continue
            except AnswerUnusable as error:
                waiting += await self._once_more(batch, error, tries, found)
                continue
            (self._size.overloaded if heavy else self._size.answered)()
            if len(heavy) == 1:
                waiting += await self._once_more(heavy, QueryTooHeavy("too heavy, alone"), tries, found)
            elif heavy:
                waiting += self._halves(heavy)
        return found

    def _halves(self, batch: list[str]) -> list[list[str]]:
        self._github.usage.splits += 1
        middle = (len(batch) + 1) // 2
        return [batch[middle:], batch[:middle]]

    async def _once_more(
        self, batch: list[str], error: StarsearchError, tries: Counter[tuple[str, ...]], found: dict[str, Found]
    ) -> list[list[str]]:
        """The same batch again, three times in all; then its ids are given up for now."""
        key = tuple(batch)
        tries[key] += 1
        if tries[key] < TRIES:
            await self._github.nap(tries[key] - 1)
            return [batch]
        log.warning("%s: %d ids given up for now: %s", self._query, len(batch), error)
        for node_id in batch:
            told = found.get(node_id)
            found[node_id] = replace(_failed(error), node=told.node if isinstance(told, Failed) else None)
        return []


def read_nodes(batch: Sequence[str], answer: Answer, found: dict[str, Found]) -> list[str]:
    """Fill in what is told of each id; returns those to ask again in smaller company: cut short, or null without a reason."""
    told = answer.data.get("nodes")
    nodes = told if isinstance(told, list) and len(told) == len(batch) else [None] * len(batch)
    errors = {error.path[1]: error for error in reversed(answer.errors) if len(error.path) > 1 and error.path[0] == "nodes"}
    everywhere = next((error for error in answer.errors if len(error.path) < 2), None)
    again = []
    for position, node_id in enumerate(batch):
        node, error = nodes[position], errors.get(position, everywhere)
        if error is None and isinstance(node, dict) and node:
            found[node_id] = node
        elif error and error.type == "NOT_FOUND" and len(error.path) == 2 and node is None:
            found[node_id] = Missing()
        else:
            if error is None or error.type == "RESOURCE_LIMITS_EXCEEDED":
                again.append(node_id)
            if error:
                found[node_id] = Failed(error.type or "error", error.message, node if isinstance(node, dict) and node else None)
    return again


def _failed(error: StarsearchError) -> Failed:
    return Failed(type(error).__name__, str(error))
