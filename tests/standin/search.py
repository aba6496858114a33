"""Search as GitHub limits it: 1,000 results of at most 4,000 found, over an index of millions in numpy arrays.

https://docs.github.com/rest/search/search
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np

from tests.standin.notation import to_seconds
from tests.standin.things import Item, Repository

if TYPE_CHECKING:
    from tests.standin.world import World

RESULTS = 1_000
FOUND = 4_000
FIRST_INDEXED = 1_500_000_000
# repositories with at least so many stars: about 60,000 with 1,000, three million with 8
_STARS = (450_000, 110_000, 10_000, 1_000, 100, 8, 1)
_RANKS = (1, 100, 4_500, 60_000, 520_000, 3_000_000, 30_000_000)
_TERM = re.compile(r'(\w+):("[^"]*"|\S+)|(\S+)')


class Range(NamedTuple):
    low: int
    high: int

    def holds(self, value: int) -> bool:
        return self.low <= value <= self.high


@dataclass
class Criteria:
    """A search query, parsed. Several repositories mean any of them; ranges hold seconds or numbers, both ends included."""

    text: list[str] = field(default_factory=list)
    repositories: list[str] = field(default_factory=list)
    ranges: dict[str, Range] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)  # of is: and type:
    sort: str = ""


def parse(query: str) -> Criteria:
    found = Criteria()
    for key, quoted, word in _TERM.findall(query):
        value = quoted.strip('"')
        if word:
            found.text.append(word.lower())
        elif key == "repo":
            found.repositories.append(value.lower())
        elif key in {"stars", "created", "updated"}:
            found.ranges[key] = _range(value, int if key == "stars" else to_seconds, 0 if key == "stars" else 86_399)
        elif key in {"is", "type", "state"}:
            found.kinds.add(value)
        elif key == "sort":
            found.sort = value
        else:
            found.flags[key] = value
    return found


def _range(text: str, read: Callable[[str], int], day: int) -> Range:
    """a..b, >=a, >a, <=b, <b, a; `day` seconds end a date that names no time."""

    def end(value: str) -> int:
        return read(value) + (0 if "T" in value else day)

    lowest, highest = -(2**62), 2**62
    if ".." in text:
        low, high = text.split("..")
        return Range(lowest if low in {"*", ""} else read(low), highest if high in {"*", ""} else end(high))
    for sign, bounds in (
        (">=", lambda v: Range(read(v), highest)),
        ("<=", lambda v: Range(lowest, end(v))),
        (">", lambda v: Range(end(v) + 1, highest)),
        ("<", lambda v: Range(lowest, read(v) - 1)),
    ):
        if text.startswith(sign):
            return bounds(text.removeprefix(sign))
    return Range(read(text), end(text))


class RepositoryIndex:
    """Repositories in arrays, most stars first; what is not in `known` is made when it is read."""

    def __init__(self, stars: np.ndarray, created: np.ndarray, flags: np.ndarray, ids: np.ndarray, known: dict[int, Repository]) -> None:
        """flags: bit 0 archived, bit 1 fork."""
        order = np.lexsort((ids, -stars))
        self.stars, self.created, self.flags, self.ids = stars[order], created[order], flags[order], ids[order]
        self._falling = -self.stars
        self.known = known
        self.version = -1
        self._base: RepositoryIndex | None = None
        self._left: np.ndarray | None = None  # of the base: which are still there

    @classmethod
    def empty(cls) -> "RepositoryIndex":
        nothing = np.zeros(0, np.int64)
        return cls(nothing, nothing, nothing, nothing, {})

    @classmethod
    def invented(cls, number: int, *, seed: int, now: int) -> "RepositoryIndex":
        """Stars as on GitHub: 55,000 to 70,000 repositories have 1,000 or more."""
        rng = np.random.default_rng(seed)
        ranks = np.arange(1, number + 1) * rng.uniform(0.88, 1.05)
        stars = np.exp(np.interp(np.log(ranks), np.log(_RANKS), np.log(_STARS))).astype(np.int64)
        created = now - rng.integers(86_400, 15 * 365 * 86_400, number)
        flags = (rng.random(number) < 0.06).astype(np.int64) | (rng.random(number) < 0.03).astype(np.int64) << 1
        return cls(stars, created, flags, FIRST_INDEXED + np.arange(number), {})

    def covering(self, repositories: Iterable[Repository], version: int) -> "RepositoryIndex":
        """These and the invented ones; each takes the place of an invented one of as many stars, so that the counts stay."""
        base = self._base or self
        known = {repository.database_id: repository for repository in repositories}
        facts = [(r.stars, r.created, r.is_archived | r.is_fork << 1, r.database_id) for r in known.values()]
        new = np.array(facts, np.int64).reshape(-1, 4).T
        left = np.ones(len(base.ids), bool)
        left[_nearest(base._falling, new[0])] = False
        old = (base.stars, base.created, base.flags, base.ids)
        index = RepositoryIndex(*(np.concatenate((column[left], more)) for column, more in zip(old, new, strict=True)), known)
        index._base, index._left, index.version = base, left, version
        return index

    @cached_property
    def invented_ids(self) -> range:
        base = self._base or self
        return range(FIRST_INDEXED, FIRST_INDEXED + len(base.ids))

    def numbered(self, database_id: int) -> Repository | None:
        base = self._base or self
        at = database_id - FIRST_INDEXED  # most stars first is the order they were numbered in
        if database_id in self.known or database_id not in self.invented_ids or not (self._left is None or self._left[at]):
            return self.known.get(database_id)
        flags = int(base.flags[at])
        repository = Repository(database_id, _name(database_id), stars=int(base.stars[at]), created=int(base.created[at]))
        repository.is_archived, repository.is_fork = bool(flags & 1), bool(flags & 2)
        return repository

    def named(self, full_name: str) -> Repository | None:
        tail = full_name.rpartition("-")[2]
        if not tail.isdecimal() or int(tail) not in self.invented_ids or _name(int(tail)) != full_name.lower():
            return None
        return self.numbered(int(tail))

    def find(self, query: str) -> tuple[int, np.ndarray]:
        """(count as told, database ids of the at most 1,000 results)."""
        criteria = parse(query)
        if criteria.kinds & {"private"}:
            return 0, self.ids[:0]
        stars = criteria.ranges.get("stars", Range(0, 2**62))
        high = int(np.searchsorted(self._falling, -min(stars.high, 2**60), "left"))
        low = int(np.searchsorted(self._falling, -max(stars.low, -1), "right"))
        at = np.arange(high, max(high, low))
        at = at[self._meets(at, criteria)]
        count = len(at)
        if count > FOUND:  # GitHub looks no further: which 4,000 it found is its secret, but stays the same
            rng = np.random.default_rng(crc32(query.encode()))
            at = np.sort(rng.choice(at, FOUND, replace=False))
            count = FOUND + int(rng.integers(0, 400))
        if criteria.sort not in {"stars", "stars-desc"}:
            at = at[np.argsort(self.ids[at] * 2_654_435_761 % 2**32, kind="stable")]
        return count, self.ids[at[:RESULTS]]

    def _meets(self, at: np.ndarray, criteria: Criteria) -> np.ndarray:
        met = np.ones(len(at), bool)
        flags = self.flags[at]
        if "archived" in criteria.flags:
            met &= (flags & 1) == (criteria.flags["archived"] == "true")
        fork = criteria.flags.get("fork", "false")  # forks are found only on request
        if fork != "true":
            met &= (flags >> 1 & 1) == (fork == "only")
        if "created" in criteria.ranges:
            met &= (self.created[at] >= criteria.ranges["created"].low) & (self.created[at] <= criteria.ranges["created"].high)
        if criteria.repositories or criteria.text:
            names = (self._name_of(int(number)).lower() for number in self.ids[at])
            met &= np.fromiter((_named(name, criteria) for name in names), bool, len(at))
        return met

    def _name_of(self, database_id: int) -> str:
        known = self.known.get(database_id)
        return known.full_name if known else _name(database_id)


def _nearest(falling: np.ndarray, stars: np.ndarray) -> np.ndarray:
    """A place of its own among the invented ones for each known repository, as near as there is one."""
    order = np.arange(len(stars))
    places = np.searchsorted(falling, np.sort(-stars)) - order
    places = np.maximum.accumulate(places) + order
    return places[places < len(falling)]


def find_items(world: "World", query: str) -> list[Item]:
    """Issues and pull requests, newest update first: repo:, is:, updated:, created:."""
    criteria = parse(query)
    if criteria.repositories:
        named = (world.repository(name) for name in criteria.repositories)
        repositories = [r for r in named if r and world.find_repository(r.database_id)]
    else:
        repositories = list(world.visible_repositories())
    found = [item for repository in repositories for item in _items(repository, criteria)]
    return sorted(found, key=lambda item: (-item.updated, item.database_id))


def _items(repository: Repository, criteria: Criteria) -> Iterator[Item]:
    everything = Range(-(2**62), 2**62)
    updated, created = (criteria.ranges.get(name, everything) for name in ("updated", "created"))
    types = {"issue": "Issue", "pr": "PullRequest", "pull-request": "PullRequest"}
    wanted = {types[kind] for kind in criteria.kinds if kind in types} or set(types.values())
    for item in repository.items():
        if item.typename not in wanted or not updated.holds(item.updated) or not created.holds(item.created):
            continue
        if not repository.has_issues and item.typename == "Issue":
            continue
        if {"open", "closed", "merged"} & criteria.kinds and not _states(item) & criteria.kinds:
            continue
        if all(word in item.title.lower() for word in criteria.text):
            yield item


def _states(item: Item) -> set[str]:
    return {"closed", "merged"} if item.state == "merged" else {item.state}


def _named(name: str, criteria: Criteria) -> bool:
    return (not criteria.repositories or name in criteria.repositories) and all(word in name for word in criteria.text)


def _name(database_id: int) -> str:
    return f"maker-{database_id % 9_973}/project-{database_id}"
