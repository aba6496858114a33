"""History by hand: a range of time over some repositories, priced before it runs, resumable, and behind the live work.

GitHub tells how items are now, not how they were: an item touched in the range and again later has its later date. So the range
takes what was updated at `since` or later and created up to `until`.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from psycopg import AsyncConnection

from starsearch.cost import Estimate, Prices, estimate
from starsearch.crawling import CrawlOptions, resolve_names
from starsearch.cycle import Cycle, Mark
from starsearch.errors import Backlog, PreconditionMissing, TooMuch
from starsearch.fetching import Fetcher
from starsearch.github.client import GitHub
from starsearch.github.counting import count_items
from starsearch.github.credentials import BACKFILL_RESERVE
from starsearch.models import ITEM_TYPES, ItemType, is_repository_name
from starsearch.pipeline import Run
from starsearch.progress import Progress, no_progress
from starsearch.storage import Store
from starsearch.store import backfills
from starsearch.store.leases import BACKFILL
from starsearch.store.ledger import read_usage
from starsearch.store.repositories import listed
from starsearch.store.versions import active_version

SAMPLE = 400  # repositories counted for a price; of more, every so-manieth
PAGE = 100
LONG = timedelta(days=366)  # a range beyond it is begun only when its price was seen

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to read again: named repositories, or the `top` ones of the followed list."""

    since: datetime
    until: datetime
    repositories: tuple[str, ...] = ()
    top: int | None = None
    kinds: tuple[ItemType, ...] = ITEM_TYPES
    spelled: tuple[str, str] = ("", "")  # since and until as they were asked for: "7d" again is the same request

    def as_json(self) -> dict[str, Any]:
        """What makes it the same request."""
        since, until = self.spelled
        return {
            "repositories": sorted(name.lower() for name in self.repositories),
            "top": self.top,
            "kinds": sorted(self.kinds),
            "since": since or self.since.isoformat(),
            "until": until,
        }


@dataclass(frozen=True)
class Price:
    """An estimate. `counted` of `repositories` were asked for; what digesting takes is None before anything was digested here."""

    repositories: int
    counted: int
    items: int
    requests: int
    points: int
    github_hours: float
    tokens: int | None
    digest_hours: float | None
    engine_hours: float | None
    cost_usd: float | None
    usd_per_million_items: float | None
    not_found: dict[str, str] = field(default_factory=dict)  # of the named repositories, with the reason

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """What something may come to before it is begun; None: anything. confirmed: a range of more than a year may begin."""

    items: int | None = None
    usd: float | None = None
    confirmed: bool = False

    def need_price(self, request: Request) -> bool:
        return self.items is not None or self.usd is not None or (_is_long(request) and not self.confirmed)

    def check(self, items: int, usd: float | None, *, otherwise: str | None = None) -> None:
        """Raises TooMuch with every reason, and with what else speaks against it. usd is None where it is not known."""
        reasons = [otherwise] if otherwise else []
        if self.items is not None and items > self.items:
            reasons.append(f"{items:,} items are more than max_items allows ({self.items:,})")
        if self.usd is not None and usd is None:
            reasons.append("max_usd is set and the cost is not known: nothing was digested here yet, or a model has no price")
        if self.usd is not None and usd is not None and usd > self.usd:
            reasons.append(f"{usd:,.2f} dollars are more than max_usd allows ({self.usd:,.2f})")
        if reasons:
            raise TooMuch(f"not begun: {'; '.join(reasons)}")


def check_price(request: Request, limits: Limits, *, items: int, usd: float | None, hours: float) -> None:
    """Raises TooMuch where the request may not begin at this price. usd: of what will be digested; hours: of GitHub's quota."""
    days, objection = (request.until - request.since).days, None
    if _is_long(request) and not limits.confirmed:
        objection = (
            f"{days:,} days are more than a year, and come to about {items:,} items and {hours:,} hours of GitHub's quota: set confirmed"
        )
    limits.check(items, usd, otherwise=objection)


def _is_long(request: Request) -> bool:
    return request.until - request.since > LONG


async def price(store: Store, github: GitHub, request: Request, options: CrawlOptions, prices: Prices) -> Price:
    """What the request would cost; nothing is stored but names that had to be resolved."""
    await github.ping()
    chosen, not_found = await _choose(store, github, request, options)
    names = [name for _, name in chosen]
    step = math.ceil(len(names) / SAMPLE) or 1
    counted = names[::step]
    counts = await count_items(github, counted, since=request.since, until=request.until, kinds=request.kinds)
    scale = len(names) / len(counted) if counted else 0
    items = round(sum(counts) * scale)
    pages = round(sum(len(request.kinds) * math.ceil(count / PAGE / len(request.kinds) or 1) for count in counts) * scale)
    fetches = math.ceil(items / options.batch)
    points = pages + fetches * (2 if options.comments else 1)
    return Price(
        repositories=len(names),
        counted=len(counted),
        items=items,
        requests=pages + fetches,
        points=points,
        github_hours=round(points / (github.points_per_hour * (1 - BACKFILL_RESERVE)), 2),
        **asdict(await digest_estimate(store, items, prices)),
        not_found=not_found,
    )


async def digest_estimate(store: Store, items: int, prices: Prices) -> Estimate:
    """What digesting so many items would take, by the models of the version that search uses, going by the ledger."""
    version = await active_version(store.pool)
    async with store.pool.connection() as connection:
        usages = await read_usage(connection)
    return estimate(items, usages, (version.summary_model, version.embedding_model) if version else (), prices)


async def backfill(store: Store, github: GitHub, request: Request, run: Run, options: CrawlOptions) -> dict[str, str]:
    """Store the items of the range; returns what was not read, with the reason. The same request again goes on.

    Raises Backlog where more would be due than engines get done: digest, and go on.
    """
    run.github = github.usage
    github.before_asking = partial(store.brakes.check_fetch, BACKFILL)
    await github.ping()
    chosen, failed = await _choose(store, github, request, options, run.progress)
    begun = await backfills.begin(store.pool, request.as_json(), since=request.since, until=request.until)
    await backfills.add_parts(store.pool, begun.id, [node for node, _ in chosen], request.kinds)

    async def done(connection: AsyncConnection, marks: Sequence[Mark]) -> None:
        await backfills.finish_parts(connection, begun.id, [(mark.repository.id, mark.kind) for mark in marks])

    fetcher = Fetcher(store, github, run, host=options.host, comments=options.comments, batch=options.batch, priority=BACKFILL)
    cycle = Cycle(github, fetcher, run.progress, host=options.host, batch=options.batch, done=done)
    parts = await backfills.open_parts(store.pool, begun)
    await cycle.read([Mark(repository, kind, begun.since, begun.until) for repository, kind in parts])
    await backfills.finish(store.pool, begun.id)
    return failed | cycle.failed


async def backfill_in_turns(
    store: Store, github: GitHub, request: Request, run: Run, options: CrawlOptions, digest: Callable[[], Awaitable[None]]
) -> dict[str, str]:
    """As `backfill`, but where engines are behind `digest` has its turn, and then it goes on."""
    while True:
        try:
            return await backfill(store, github, request, run, options)
        except Backlog as error:
            log.info("digesting first: %s", error)
        await digest()


async def _choose(
    store: Store, github: GitHub, request: Request, options: CrawlOptions, progress: Progress = no_progress
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """(node id, name) of the request's repositories, and those not found, with the reason."""
    failed, nodes = await resolve_names(store, github, request.repositories, host=options.host, progress=progress)
    chosen = await listed(store.pool, options.host, top=request.top, nodes=nodes if request.repositories else None)
    if not chosen and not request.repositories:
        raise PreconditionMissing("no repository is followed yet: `starsearch rank`, or name some with --repo")
    if not chosen:
        raise PreconditionMissing("nothing to read: " + "; ".join(f"{name}: {reason}" for name, reason in failed.items()))
    return chosen, failed


def read_request(
    since: str, until: str, repositories: Sequence[str] = (), top: int | None = None, kinds: Sequence[ItemType] = ITEM_TYPES
) -> Request:
    """A request as a person writes it. Raises ValueError with what is wrong with it."""
    if repositories and top:
        raise ValueError("name repositories, or take the top ones of the followed list, not both")
    now = datetime.now(UTC)
    try:
        moments = parse_moment(since, now=now), parse_moment(until, now=now, end=True)
    except ValueError as error:
        raise ValueError("write a day (2026-03-01) or days back (7d)") from error
    if moments[0] >= moments[1]:
        raise ValueError("since is not before until")
    for name in repositories:
        if not is_repository_name(name):
            raise ValueError(f"{name!r} is not owner/name")
    return Request(*moments, tuple(dict.fromkeys(repositories)), top, tuple(dict.fromkeys(kinds)), spelled=(since, until))


def parse_moment(text: str, *, now: datetime, end: bool = False) -> datetime:
    """A day (2026-03-01; its beginning, or its `end`), a time in ISO 8601, or so many days back (7d). Raises ValueError."""
    if text[-1:] == "d" and text[:-1].isdecimal():
        return now - timedelta(days=int(text[:-1]))
    moment = datetime.fromisoformat(text)
    if end and len(text) == len("2026-03-01"):
        moment += timedelta(days=1)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
