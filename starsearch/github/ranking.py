"""The repositories with the most stars, most first: a walk down the stars in searches of a thousand results.

One search gives at most 1,000 results and looks at about 4,000 matches, so each asks for a range of stars that is narrow enough;
how narrow follows from how fast the list has been growing. Stars move while pages are read, so ranges overlap by one star and
repositories are told apart by node id. GitHub does not say when a search over GraphQL was cut short: fewer results than it promised,
a null or an error beside the data mean that the range is read again, and a list with a hole is never handed out.
https://docs.github.com/rest/search/search
"""

import logging
import math
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from starsearch.errors import StarsearchError
from starsearch.github.client import TRIES, Answer, GitHub
from starsearch.github.nodes import read_facts
from starsearch.github.values import whole
from starsearch.models import RepositoryFacts
from starsearch.progress import Progress, no_progress

RESULTS = 1_000  # of one search
FOUND = 4_000  # matches that one search looks at; more, and the thousand best may not be among them
PAGE = 100
TARGET = 1_250  # matches of a range: over 1,000, so that every page of it is full, and far from 4,000
FIRST_LOW = 30_000  # stars; 1,104 repositories had them in August 2026 (../shared/data/top_repositories.csv.gz)
SLOPE = 1.3  # of the power law at the top: so many times fewer repositories at e times the stars
SLOPES = (0.5, 4.0)
DRIFT = 0.01  # of a range's results may get lost between two pages: somebody took a star back
EDGE = 9  # results; the middle one's stars are where the next span begins
EARLIEST = datetime(2007, 10, 1, tzinfo=UTC)  # no repository on GitHub is older

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Stars from low to high, both included; high None: no upper end. created: both ends included too."""

    low: int
    high: int | None = None
    created: tuple[datetime, datetime] | None = None

    @property
    def search(self) -> str:
        stars = f"stars:>={self.low}" if self.high is None else f"stars:{self.low}..{self.high}"
        created = "created:{:%Y-%m-%dT%H:%M:%SZ}..{:%Y-%m-%dT%H:%M:%SZ}".format(*self.created) if self.created else ""
        return f"{stars} is:public sort:stars-desc {created}".rstrip()

    def narrower(self) -> "Span":
        """The upper part, for a span with too many matches; halved as a power law is, by ratio."""
        if self.high is None:
            return Span(2 * self.low + 1)
        return Span(min(math.isqrt(max(self.low, 1) * self.high) + 1, self.high), self.high)

    def halves(self) -> tuple["Span", "Span"]:
        """By time of creation, to the second."""
        assert self.created is not None
        first, last = self.created
        middle = first + timedelta(seconds=(last - first) // timedelta(seconds=2))
        return Span(self.low, self.high, (first, middle)), Span(self.low, self.high, (middle + timedelta(seconds=1), last))


@dataclass
class Reading:
    """What one search gave, most stars first. count: how many match, as GitHub told on the first page."""

    count: int = 0
    facts: list[RepositoryFacts] = field(default_factory=list)
    pages: int = 0
    after: str | None = None
    spoiled: str = ""  # why it must not be believed

    def add(self, answer: Answer) -> None:
        self.pages += 1
        if answer.errors:
            self.spoiled = f"{answer.errors[0].type}: {answer.errors[0].message}"
            return
        try:
            found = answer.data["search"]
            self.count = self.count or whole(found["repositoryCount"])
            facts = [read_facts(node) for node in found["nodes"]]
            self.after = found["pageInfo"]["endCursor"] if found["pageInfo"]["hasNextPage"] else None
        except (KeyError, TypeError, ValueError) as error:
            self.spoiled = f"unreadable answer: {type(error).__name__} {error}"
            return
        if any(fact.stars is None for fact in facts):
            self.spoiled = "a repository without its stars"
        self.facts += facts

    @property
    def lowest(self) -> int:
        """Stars at the lower end. Of several, since search sorts by an index that is older than the number beside it."""
        return int(statistics.median_low([fact.stars or 0 for fact in self.facts[-EDGE:]]))

    @property
    def promised(self) -> int:
        """How many results the pages read must hold."""
        return min(self.count, RESULTS, PAGE * self.pages)

    @property
    def hole(self) -> str:
        """What is wrong with it; empty where nothing is."""
        missing = self.promised - len(self.facts)
        if not self.spoiled and (missing > math.ceil(DRIFT * self.promised) or (missing and not self.facts)):
            return f"{len(self.facts):,} of {self.promised:,} results"
        return self.spoiled


async def read_top(github: GitHub, wanted: int, progress: Progress = no_progress) -> list[RepositoryFacts]:
    """The `wanted` public repositories with the most stars, then by node id; fewer where there are no more. No forks.

    Raises RateLimited or SourceUnavailable, and StarsearchError where a search stays incomplete.
    """
    return await _Walk(github, wanted, progress).down()


@dataclass
class _Walk:
    github: GitHub
    wanted: int
    progress: Progress
    found: dict[str, RepositoryFacts] = field(default_factory=dict)  # by node id, in the order they were last read
    slope: float = SLOPE
    crowded: tuple[int, int] = (-1, -1)  # the low end of the last span with too many matches, and how many were found by then

    async def down(self) -> list[RepositoryFacts]:
        high: int | None = None
        low: int | None = FIRST_LOW
        while low is not None and len(self.found) < self.wanted:
            before = len(self.found)
            following = await self._step(Span(low, high))
            self._learn(before, high, following)
            high, low = following, self._low(following)
        by_name = {fact.full_name.lower(): fact for fact in self.found.values()}  # a name that changed hands is its last owner's
        return by_stars(list(by_name.values()))[: self.wanted]

    def _low(self, high: int) -> int | None:
        """Where the next span ends, so that about TARGET match; None below the last star."""
        if high < 0:
            return None
        rank = len(self.found)
        low = max(0, min(int(high * (rank / (rank + TARGET)) ** (1 / self.slope)), high - 1))
        crowded, by_then = self.crowded
        if by_then == rank and low <= crowded <= high:  # nothing was found since: it still is
            return Span(crowded, high).narrower().low
        return low

    def _learn(self, before: int, high: int | None, following: int) -> None:
        """How steep the list is here, from the span just read."""
        if before >= TARGET / 2 and high and 0 < following < high and len(self.found) > before:
            slope = math.log(len(self.found) / before) / math.log(high / following)
            self.slope = min(max(slope, SLOPES[0]), SLOPES[1])

    async def _step(self, span: Span) -> int:
        """Read the upper end of what is left; returns the stars at which to go on, -1 at the end."""
        reading = await self._read(span)
        while reading.count > FOUND and span.low != span.high:
            self.crowded = span.low, len(self.found)
            span = span.narrower()
            reading = await self._read(span)
        if reading.count <= RESULTS:
            return self._below(span)
        lowest = reading.lowest
        if span.high is None or lowest + 1 < span.high:
            return lowest + 1  # whoever gained a star since is found there
        await self._split(Span(lowest, span.high, (EARLIEST, self.github.now + timedelta(days=1))))
        return lowest - 1  # reading so many a second time would cost more than the few that move

    @staticmethod
    def _below(span: Span) -> int:
        """Below a span that was read whole, with one star of overlap where that leads on."""
        return span.low if 0 < span.low != span.high else span.low - 1

    async def _split(self, span: Span) -> None:
        """So many share these stars that only their age tells them apart."""
        for half in span.halves():
            reading = await self._read(half, whole=True)
            if reading.count > RESULTS:
                if half.created and half.created[0] >= half.created[1]:
                    raise StarsearchError(f"more than {RESULTS:,} repositories for {half.search}: this cannot be")
                await self._split(half)

    async def _read(self, span: Span, *, whole: bool = False) -> Reading:
        """One search to its end, asked again where it is incomplete. whole: only if it is not cut off at RESULTS."""
        for attempt in range(TRIES):
            reading = await self._ask(span, RESULTS if whole else FOUND)
            if not reading.hole:
                return reading
            log.info("%s: %s; asking again", span.search, reading.hole)
            if attempt < TRIES - 1:
                await self.github.nap(attempt)
        raise StarsearchError(
            f"GitHub's search stays incomplete for {span.search} ({reading.hole}): the list stays as it was; try again later"
        )

    async def _ask(self, span: Span, most: int) -> Reading:
        """`most`: with more matches than this, the first page only, for their number."""
        reading = Reading()
        new: set[str] = set()
        while True:
            reading.add(await self.github.ask("search_repositories", {"search": span.search, "after": reading.after}))
            new.update(fact.node_id for fact in reading.facts[-PAGE:] if fact.node_id not in self.found)
            enough = span.created is None and len(self.found) + len(new) >= self.wanted
            if reading.spoiled or reading.count > most:
                return reading
            self.progress("rank", min(len(self.found) + len(new), self.wanted), self.wanted)
            if reading.after is None or enough or len(reading.facts) >= RESULTS or reading.pages >= 2 * RESULTS // PAGE:
                self._keep(reading)
                return reading

    def _keep(self, reading: Reading) -> None:
        if not reading.hole:
            for fact in reading.facts:
                self.found.pop(fact.node_id, None)
                self.found[fact.node_id] = fact


def by_stars(facts: list[RepositoryFacts]) -> list[RepositoryFacts]:
    return sorted(facts, key=lambda fact: (-(fact.stars or 0), fact.node_id))
