"""What a person sees: progress, tables, hits. Progress and messages go to stderr, results to stdout.

Titles and summaries were written by strangers: control characters (a terminal would obey them) are shown as U+FFFD, and rich's
markup is never interpreted in them.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from starsearch.audit import Gap, Status
from starsearch.models import Answer, Explanation, Hit
from starsearch.progress import Progress as ProgressReport
from starsearch.progress import no_progress
from starsearch.untrusted import safe

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE, default=str))
    sys.stdout.flush()


@contextmanager
def progress_bars() -> Iterator[ProgressReport]:
    """Bars with rate and time left; nothing where stderr is not a terminal."""
    if not err.is_terminal:
        yield no_progress
        return
    columns = (
        TextColumn("{task.description:>7}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, rate="")
            task = bars.tasks[tasks[stage]]
            rate = f"{task.speed:,.0f}/s" if task.speed else ""
            bars.update(tasks[stage], completed=done, total=total, rate=rate)

        yield report


def print_counts(counts: Mapping[str, Any]) -> None:
    seconds = counts["seconds"]
    done = counts["items"] or counts["embedded"] + counts["dead_letters"]
    rate = f", {done / seconds:,.0f} a second" if seconds and done else ""
    parts = [f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items() if name not in {"seconds", "cost_usd"}]
    out.print(f"{', '.join(parts)}, {_dollars(counts['cost_usd'])} in {seconds:,.1f} s{rate}")


def _dollars(amount: float | None) -> str:
    return "cost unknown" if amount is None else f"${amount:,.4f}" if 0 < amount < 0.01 else f"${amount:,.2f}"


def print_ranking(counts: Mapping[str, int | float]) -> None:
    done = f"{counts['repositories']:,} repositories followed: {counts['came']:,} came, {counts['went']:,} went"
    asked = f"{counts['requests']:,} requests, {counts['points']:,} points" if counts["requests"] else f"{counts['rejected']:,} rejected"
    out.print(f"{done}; {asked} in {counts['seconds']:,.1f} s")


def print_hits(hits: Sequence[Hit]) -> None:
    for position, hit in enumerate(hits, 1):
        kind = hit.type.replace("_", " ")
        title = Text(f"{position:>2}  ").append(safe(hit.title), style="bold")
        out.print(title.append(f"  {hit.score:.3f}", style="cyan"))
        out.print(Text(f"    {hit.repo} #{hit.number} · {kind} · {hit.state} · {safe(hit.url)}", style="dim"))
        out.print(Text(_indented(safe(hit.summary))))


def nothing_found(explanation: Explanation, mode: str) -> str:
    """Why there are no hits: the nearest vector always exists, so only filters keep a search by meaning empty."""
    if mode != "text":
        return "nothing found: no item passes these filters"
    if not explanation.words:
        return "nothing found: no stored item holds any of these words (the commonest are left out); --mode hybrid searches by meaning"
    return "nothing found: no item that holds these words passes the filters"


def print_answer(answer: Answer) -> None:
    if answer.text is None:
        out.print("nothing close was found" + ("; the nearest:" if answer.hits else ""))
        print_hits(answer.hits[:3])
        return
    if answer.kind == "quotes":
        out.print(Text("no chat model is configured (STARSEARCH_LLM_BASE_URL), so these are quotes, not an answer:", style="dim"))
    out.print(Text(safe(answer.text)))
    for number, hit in answer.citations.items():
        out.print(Text(f"[{number}] {safe(hit.title)}  {safe(hit.url)}", style="dim"))


def print_explanation(explanation: Explanation) -> None:
    passing = "" if explanation.matching is None else f"; about {explanation.matching:,} items pass the filters"
    ways = {
        None: "not by vector",
        "index": "by vector: a walk of the HNSW index",
        "exact": "by vector: exact, every item that passes is compared",
        "index, then exact": "by vector: the walk of the index found too few, so every item that passes was compared",
    }
    out.print(Text(ways[explanation.path] + passing, style="dim"))
    for word in explanation.words:
        role = "picks candidates" if word.picks else "only ranks"
        out.print(Text(f"by word: {safe(word.text)} in {word.items:,} items, worth {word.rarity:.1f}, {role}", style="dim"))


def _indented(summary: str) -> str:
    text = " ".join(summary.split())
    return "    " + (text if len(text) <= 240 else text[:240].rsplit(" ", 1)[0] + " …")


def print_status(status: Status) -> None:
    colour = "green" if status.complete else "yellow"
    out.print(Text("complete" if status.complete else "incomplete", style=f"bold {colour}"))
    out.print(
        f"{status.known:,} known, {status.stored:,} stored, {status.summarized:,} summarized, {status.embedded:,} embedded, "
        f"{status.pending:,} pending, {status.dead_letters:,} dead letters, in {status.repositories:,} repositories"
    )
    for version in status.versions[1:]:
        out.print(
            f"{version.status} {version.index_version}: {version.summarized:,} summarized, {version.embedded:,} embedded, "
            f"{version.pending:,} pending, {version.dead_letters:,} dead letters"
        )
    for gap in status.gaps:
        _print_gap(gap, named=len(status.versions) > 1)
    for warning in status.warnings:
        out.print(Text(f"warning: {warning}", style="yellow"))
    out.print(_freshness(status))
    if status.gated:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in status.gated.items())
        out.print(f"{sum(status.gated.values()):,} summaries did not pass the gate; the items' own sentences stand for them: {reasons}")
    usage = status.usage
    cost = _dollars(usage["cost_usd"])
    if usage["unpriced"]:
        cost += f" (no price for {', '.join(map(safe, usage['unpriced']))}: see STARSEARCH_PRICES)"
    elif usage["usd_per_million_items"]:
        cost += f" (${usage['usd_per_million_items']:,.2f} per million items)"
    tokens = usage["prompt_tokens"] + usage["completion_tokens"]
    if status.github:
        spent = status.github
        waits = f"{spent['waits']} waits of {spent['waited_seconds']:.0f} s"
        out.print(
            f"{status.followed:,} followed; the last {spent['kind']} cost {spent['points']:,} points, {spent['requests']:,} requests to "
            f"GitHub, {spent['splits']} splits, {waits}"
        )
    out.print(f"{usage['llm_requests']:,} engine requests, {tokens:,} tokens, {cost}; {status.rejected:,} rejected lines")


def _print_gap(gap: Gap, *, named: bool) -> None:
    """`named`: say which version, where there are several."""
    version = f" [{gap.index_version}]" if named and gap.index_version else ""
    out.print(Text(f"  {gap.count:,} {gap.stage}: {safe(gap.reason)}{version}"))
    for repository in gap.repositories:
        more = repository["count"] - len(repository["urls"])
        addresses = [*repository["urls"], *([f"and {more:,} more"] if more > 0 else [])]
        out.print(Text(f"    {safe(', '.join(addresses))}", style="dim"))


def _freshness(status: Status) -> str:
    parts = []
    if status.freshness_seconds is not None:
        parts.append(f"last crawl or ingest {_ago(status.freshness_seconds)} ago")
    if status.oldest_due_seconds is not None:
        parts.append(f"oldest due item waits {_ago(status.oldest_due_seconds)}")
    if status.searchable_seconds:
        p50, p95 = (_ago(status.searchable_seconds[name]) for name in ("p50", "p95"))
        parts.append(f"from a change to searchable {p50} (95 %: {p95})")
    if status.digests_per_hour:
        parts.append(f"{status.digests_per_hour:,} items digested in the last full hour")
    if status.counted:
        parts.append(f"counted in full at {status.counted['counted_at']:%Y-%m-%d %H:%M} UTC")
    parts += [f"recall@10 {each['recall']:.3f} ({each['filter']})" for each in status.recall]
    return "; ".join(parts) or "nothing was crawled or ingested yet"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def print_measures(result: Mapping[str, Any]) -> None:
    table = Table(title=f"{result['questions']} questions")
    for heading in ("mode", "recall@1", "recall@10", "MRR"):
        table.add_column(heading, justify="left" if heading == "mode" else "right")
    for mode, measured in result["modes"].items():
        table.add_row(mode, *(f"{measured[name]:.2f}" for name in ("recall_at_1", "recall_at_10", "mrr")))
    out.print(table)


def print_versions(found: Sequence[Mapping[str, Any]]) -> None:
    for row in found:
        served = f"served since {row['activated_at']:%Y-%m-%d %H:%M}" if row["activated_at"] else "never served"
        out.print(Text(f"{row['version']}  {row['status']}", style="bold" if row["status"] == "active" else ""))
        models = f"{row['embedding_model']} {row['dimensions']}d, {row['summary_model']} {row['prompt_version']}"
        out.print(
            Text(f"    {safe(models)}: {row['digests']:,} digests, {row['due']:,} due, {row['dead_letters']:,} dead letters, {served}")
        )


MEASURES = ("recall@10 hybrid", "recall@10 vector", "index beside exact search")


def print_comparison(result: Mapping[str, Any]) -> None:
    source = "titles of stored items" if result["questions"] == "titles" else result["questions"]
    out.print(f"{result['asked']} questions: {source}")
    for row in result["versions"]:
        out.print(Text(safe(row["name"]), style="bold" if row["serves"] else ""))
        out.print(f"    {_measures(row)}, {sum(row['missing'].values()):,} missing")


def _measures(row: Mapping[str, Any]) -> str:
    values = (row["recall_at_10"]["hybrid"], row["recall_at_10"]["vector"], row["ann_recall"])
    return ", ".join(f"{name} {value:.2f}" for name, value in zip(MEASURES, values, strict=True))


def print_swap(done: Mapping[str, Any]) -> None:
    for name, row in (("before", done["before"]), ("now", done["after"])):
        out.print(f"{name:>6}: {row['version']}" + (f", {_measures(row)}" if "ann_recall" in row else ""))
    for objection in done["objections"]:
        out.print(Text(f"in spite of: {safe(objection)}", style="yellow"))


def print_fields(fields: Mapping[str, Any]) -> None:
    width = max(map(len, fields))
    for name, value in fields.items():
        if value is not None:
            out.print(Text(f"{name.replace('_', ' '):>{width}}  ", style="dim").append(safe(str(value)), style="default"))


def print_dead_letters(found: Mapping[str, Any]) -> None:
    """Reasons and details come from GitHub and from engines."""
    out.print(f"{found['total']:,} dead letters")
    for each in found["reasons"]:
        out.print(Text(f"  {each['count']:,} {each['stage']}: {safe(each['reason'])}"))
    for letter in found["dead_letters"]:
        out.print(Text(f"\n{safe(letter['url'])}  ", style="bold").append(f"{letter['dead_since']:%Y-%m-%d %H:%M}", style="dim"))
        out.print(Text(f"    {letter['stage']}, {letter['attempts']} attempts: {safe(letter['reason'])}"))
        out.print(Text(_indented(safe(letter["detail"])), style="dim"))


def print_cost(found: Mapping[str, Any]) -> None:
    """The ledger, then what the same summaries would cost elsewhere, with what the comparison rests on."""
    table = Table("", "for", title="spent")
    for heading in ("items", "requests", "failed calls", "prompt", "cached", "completion", "cost"):
        table.add_column(heading, justify="right")
    numbers = ("items", "requests", "failed", "prompt_tokens", "cached_tokens", "completion_tokens")
    for line in found["spent"]:
        cells = [f"{line[name]:,}" for name in numbers]
        table.add_row(Text(safe(str(next(iter(line.values()))))), line["purpose"], *cells, _dollars(line["cost_usd"]))
    out.print(table)
    total, elsewhere = found["total"], found["elsewhere"]
    per_million = total["usd_per_million_items"]
    out.print(f"in all {_dollars(total['cost_usd'])}" + (f", {_dollars(per_million)} per million items" if per_million is not None else ""))
    if total["unpriced"]:
        out.print(Text(f"no price for {', '.join(map(safe, total['unpriced']))}: put one into a file and name it in STARSEARCH_PRICES"))
    each = f"{elsewhere['prompt_tokens_per_item']:,.0f} + {elsewhere['completion_tokens_per_item']:,.0f} tokens each"
    out.print(f"\nThe same summaries elsewhere, without embeddings: {each}, {elsewhere['items_per_day']:,} a day; dollars per million")
    _print_apis(elsewhere["apis"])
    _print_engines(elsewhere["engines"])


def _print_apis(apis: Sequence[Mapping[str, Any]]) -> None:
    table = Table("API", "per million", "price of")
    for api in apis:
        table.add_row(Text(safe(api["model"])), f"${api['usd_per_million_items']:,.2f}", api["date"])
    out.print(table)


def _print_engines(engines: Sequence[Mapping[str, Any]]) -> None:
    table = Table("own engine", "an hour", "busy", "while busy", "always on", "breaks even at", "price of")
    for engine in engines:
        even = engine["break_even_items_per_day"]
        table.add_row(
            Text(safe(engine["engine"])),
            f"${engine['usd_per_hour']:,.2f}",
            f"{engine['busy_share']:.1%}" + (f" of {engine['engines']}" if engine["engines"] > 1 else ""),
            f"${engine['usd_per_million_items_busy']:,.2f}",
            f"${engine['usd_per_million_items_always_on']:,.2f}",
            f"{even:,} a day" if even else "never",
            engine["date"],
        )
    out.print(table)
    out.print(
        "Break-even is with the cheapest API above. How fast such an engine is was published for other models and texts, and is scaled by "
        'tokens: see starsearch/prices.toml. One that is switched on only for the work costs what "while busy" says.'
    )
