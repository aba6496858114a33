"""The status as panels: a headline, a plot for the glance, and the numbers behind it. Shared by the status page and the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starsearch.audit import RECALL_TARGET, Status
from starsearch.cost import Comparison
from starsearch.store.reading import Hour
from starsearch.web import plots
from starsearch.web.shown import duration, shown

Row = Sequence[str]
LEVELS = 8  # of a backlog's parts that are drawn; the table has all
SPENT = ("read", "read from the cache", "written")
MODE_NAMES = {"hybrid": "meaning and words", "vector": "meaning only", "text": "words only"}  # as the search page calls them


@dataclass(frozen=True)
class Panel:
    """captions: words under the plot, each with the tone of its part where it has one; levels: name, bar, value."""

    title: str
    headline: str
    headings: Row
    rows: Sequence[Row]
    plot: str = ""
    captions: Sequence[tuple[str, str]] = ()
    levels: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()


def panels(status: Status, hours: Sequence[Hour], comparison: Comparison | None) -> list[Panel]:
    """hours: oldest first. comparison: None before anything was summarized."""
    found = [completeness(status), freshness(status), backlog(status, hours), digested(hours), tokens(hours), cost(status.usage)]
    if comparison:
        found.append(break_even(comparison))
    return [*found, recall(status.recall)]


def completeness(status: Status) -> Panel:
    parts = (status.embedded, status.pending, status.dead_letters)
    names = ("searchable", "pending", "dead letters")
    captions = [(f"{part:,} {name}", tone) for part, name, tone in zip(parts, names, plots.TONES, strict=True)]
    gaps = [(shown(gap.reason), gap.stage, f"{gap.count:,}") for gap in status.gaps]
    stages = [(name, "", f"{getattr(status, name):,}") for name in ("known", "stored", "summarized", "embedded", "dead_letters")]
    return Panel(
        "Completeness",
        f"{status.embedded:,} of {status.known:,} items are searchable",
        ("what", "stage", "items"),
        [(name.replace("_", " "), stage, count) for name, stage, count in stages] + gaps,
        plots.stack(parts, "; ".join(text for text, _ in captions)),
        captions,
        notes=[f"{count} ({stage}): {reason}" for reason, stage, count in gaps] + [shown(each) for each in status.warnings],
    )


def freshness(status: Status) -> Panel:
    age, searchable = status.freshness_seconds, status.searchable_seconds or {}
    told = [
        ("since the last crawl or ingest", age),
        ("the oldest item waits for its digest", status.oldest_due_seconds),
        *((f"from a change on GitHub to searchable, {name}", value) for name, value in searchable.items()),
    ]
    known = [(name, value) for name, value in told if value is not None]
    longest = max((value for _, value in known), default=0.0)
    return Panel(
        "Freshness",
        "No crawl or ingest has finished yet" if age is None else f"Read from its sources {duration(age)} ago",
        ("what", "seconds"),
        [(name, f"{value:,.0f}") for name, value in known],
        levels=[(name, plots.level(value, longest, f"{name}: {duration(value)}"), duration(value)) for name, value in known],
    )


def backlog(status: Status, hours: Sequence[Hour]) -> Panel:
    """What is known and not searchable yet, by where it stands; and how long that takes at the pace of the last hour or this one."""
    waiting = [(shown(gap.reason), gap.count) for gap in status.gaps if not gap.reason.startswith("dead letter")]
    pace = max(hour.digested for hour in hours[-2:])
    headline = f"{status.pending:,} items wait" if status.pending else "Nothing waits"
    if status.pending and pace:
        headline += f", {duration(status.pending / pace * 3600)} of work at {pace:,} an hour"
    most = max((count for _, count in waiting), default=0)
    return Panel(
        "Backlog",
        headline,
        ("where it stands", "items"),
        [("pending in all", f"{status.pending:,}"), *((reason, f"{count:,}") for reason, count in waiting)],
        levels=[(reason, plots.level(count, most, f"{reason}: {count:,}"), f"{count:,}") for reason, count in waiting[:LEVELS]],
    )


def digested(hours: Sequence[Hour]) -> Panel:
    values = [hour.digested for hour in hours]
    return _by_hour("Items an hour", hours, values, f"{sum(values):,} items digested in {len(hours)} hours", "digested")


def tokens(hours: Sequence[Hour]) -> Panel:
    values = [hour.tokens for hour in hours]
    return _by_hour("Tokens an hour", hours, values, f"{sum(values):,} tokens read and written in {len(hours)} hours", "tokens")


def _by_hour(title: str, hours: Sequence[Hour], values: Sequence[int], headline: str, unit: str) -> Panel:
    rows = [(f"{hour.hour:%Y-%m-%d %H:00}", f"{value:,}") for hour, value in zip(hours, values, strict=True)][::-1]
    captions = [(f"{hours[0].hour:%-d %b %H:00}", ""), (f"highest: {max(values):,}", ""), ("this hour (UTC)", "")]
    return Panel(title, headline, ("hour (UTC)", unit), rows, plots.bars(values, headline), captions)


def cost(usage: dict[str, Any]) -> Panel:
    dollars, each, unpriced = usage["cost_usd"], usage["usd_per_million_items"], usage["unpriced"]
    headline = f"${dollars:,.2f} so far" if dollars is not None else f"Unknown: no price for {', '.join(map(shown, unpriced))}"
    if each is not None:
        headline += f", ${each:,.2f} per million items"
    figures = [(name, value) for name, value in usage.items() if isinstance(value, int | float)]
    rows = [(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.2f}") for name, value in figures]
    read, cached, written = usage["prompt_tokens"] - usage["cached_tokens"], usage["cached_tokens"], usage["completion_tokens"]
    captions = [(f"{n:,} tokens {name}", tone) for n, name, tone in zip((read, cached, written), SPENT, plots.TONES, strict=True)]
    plot = plots.stack((read, cached, written), "; ".join(text for text, _ in captions))
    return Panel("Cost", headline, ("what", "so far"), rows, plot, captions)


def break_even(comparison: Comparison) -> Panel:
    """Dollars for a million summaries like those made so far: APIs by the token, engines always on at this many items a day."""
    apis = [(shown(api["model"]), api["usd_per_million_items"], "") for api in comparison.apis]
    engines = [
        (
            f"{engine['engines']} of {engine['engine']}",
            engine["usd_per_million_items_always_on"],
            "never" if engine["break_even_items_per_day"] is None else f"{engine['break_even_items_per_day']:,} items a day",
        )
        for engine in comparison.engines
    ]
    top = max((price for _, price, _ in apis + engines), default=0.0)
    cheapest = min(apis, key=lambda api: api[1], default=None)
    return Panel(
        "An API or engines of our own",
        f"{cheapest[0]} would cost ${cheapest[1]:,.2f} per million items" if cheapest else "No API has a price",
        ("engine", "dollars per million items", "cheaper than the cheapest API from"),
        [(name, f"{price:,.2f}", note) for name, price, note in apis + engines],
        levels=[(name, plots.level(price, top, f"{name}: ${price:,.2f}"), f"${price:,.2f}") for name, price, _ in apis + engines],
        notes=[f"Engines are always on, at {comparison.items_per_day:,} items a day; prices and their dates: starsearch/prices.toml."],
    )


def recall_by_mode(measured: dict[str, Any] | None) -> Panel:
    """measured: as evaluate.evaluate returns it; None where nobody gave questions to measure with."""
    title = "Recall by mode"
    if measured is None:
        return Panel(
            title,
            "Not measured",
            (),
            (),
            notes=["starsearch report FILE --questions FILE.jsonl measures it on questions whose right item is known."],
        )
    modes = [(MODE_NAMES[mode], found) for mode, found in measured["modes"].items()]
    best, top = max(modes, key=lambda each: each[1]["recall_at_10"])
    levels = [(name, found["recall_at_10"]) for name, found in modes]
    return Panel(
        title,
        f"{top['recall_at_10']:.0%} of {measured['questions']:,} questions find their item among the first ten, by {best}",
        ("match", "recall@1", "recall@10", "MRR"),
        [(name, *(f"{found[measure]:.3f}" for measure in ("recall_at_1", "recall_at_10", "mrr"))) for name, found in modes],
        levels=[(name, plots.level(value, 1, f"{name}: {value:.3f}"), f"{value:.3f}") for name, value in levels],
    )


def recall(measured: Sequence[dict[str, Any]]) -> Panel:
    if not measured:
        return Panel("Recall of the index", "Not measured yet", (), (), notes=["The daily flow “maintain” measures it."])
    low = min(measured, key=lambda each: each["recall"])
    verdict = "as it should be" if low["recall"] >= RECALL_TARGET else f"below {RECALL_TARGET}"
    return Panel(
        "Recall of the index",
        f"At least {low['recall']:.3f} of the ten nearest are found, {verdict}",
        ("filter", "recall@10", "queries", "measured"),
        [(each["filter"], f"{each['recall']:.3f}", f"{each['queries']:,}", f"{each['measured_at']:%Y-%m-%d %H:%M}") for each in measured],
        levels=[
            (each["filter"], plots.level(each["recall"], 1, f"{each['filter']}: {each['recall']:.3f}"), f"{each['recall']:.3f}")
            for each in measured
        ],
    )
