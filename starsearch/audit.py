"""Completeness: known = stored = summarized = embedded + dead letters, per index version, every gap named.

The counts are kept ones (store/tallies.py), exact at the snapshot they are read at: what changed since they were folded is counted
here. `reconcile` counts every item and says whether the kept counts were right; `status` shows what it last said.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import dict_row

from starsearch.cost import Prices, bill, read_prices
from starsearch.store.database import Pool
from starsearch.store.ledger import count_unsettled, read_usage
from starsearch.store.tallies import Counted, GapItem, fold, last_reconciliation, read_counts, read_gap_items

RECALL_TARGET = 0.95
# the states that are gaps: stage, reason
GAPS = {
    "lost": ("known", "its row is gone and no purge took it: crawl or ingest it again"),
    "unfetched": ("fetch", "known, text not fetched yet"),
    "stale": ("fetch", "changed, new text not fetched yet"),
    "missing": ("digest", "not digested yet: run `starsearch digest`"),
    "outdated": ("digest", "digested from an older text: run `starsearch digest`"),
    "no summary": ("summarize", "its summary is gone: run `starsearch digest`"),
    "orphan": ("embed", "a digest of no item: delete it"),
}
VERSIONS = """
SELECT v.id, left(v.fingerprint, 12) AS index_version, v.status, c.oid IS NOT NULL AS has_table,
  EXISTS (
    SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_am a ON a.oid = i.relam
    WHERE x.indrelid = c.oid AND a.amname = 'hnsw' AND x.indisvalid
  ) AS has_index
FROM index_version v LEFT JOIN (
  SELECT c.oid, pg_get_expr(c.relpartbound, c.oid) AS bound FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
  WHERE inhparent = 'digest'::regclass
) AS c ON c.bound = 'FOR VALUES IN (''' || v.id || ''')'
WHERE v.status <> 'retired' ORDER BY v.status <> 'active', v.id
"""
# what is due and not just waiting
PENDING = """
SELECT CASE WHEN u.lease_worker IS NOT NULL THEN 'being digested' ELSE 'failed, will be tried again: ' || coalesce(u.reason, 'unknown')
  END AS reason, count(*) AS count
FROM due u JOIN item i ON i.id = u.item_id JOIN repository r ON r.id = i.repository_id
WHERE u.version_id = %s AND (u.lease_worker IS NOT NULL OR u.attempts > 0) AND i.tombstoned_at IS NULL AND r.gone_at IS NULL
GROUP BY 1 ORDER BY 2 DESC
"""
# as item_state counts them; an item whose newer text is dead is counted as stored, in its older one
DEAD = """
SELECT stage, 'dead letter: ' || x.reason AS reason, count(*) AS count
FROM dead_letter x JOIN item i ON i.id = item_id JOIN repository r ON r.id = i.repository_id
WHERE x.version_id = %s AND x.content_hash = i.content_hash AND i.tombstoned_at IS NULL AND r.gone_at IS NULL GROUP BY 1, 2
UNION ALL
SELECT 'fetch', CASE WHEN i.stored_at IS NULL THEN '' ELSE 'changed, its new text is a ' END || 'dead letter: ' || reason, count(*)
FROM fetch_failure f
JOIN item i ON i.id = item_id AND i.seen_updated_at IS NOT DISTINCT FROM f.seen_updated_at
JOIN repository r ON r.id = i.repository_id
WHERE dead AND (i.stored_at IS NULL OR i.seen_updated_at > coalesce(i.updated_at, '-infinity'))
  AND i.tombstoned_at IS NULL AND r.gone_at IS NULL
GROUP BY 1, 2
ORDER BY 3 DESC
"""
SWEEPS = """
SELECT split_part(failure, ':', 1) AS reason, count(*) AS count
FROM repository WHERE gone_at IS NULL AND failure IS NOT NULL GROUP BY 1 ORDER BY 2 DESC
"""
GATED = """
SELECT gate_reason, count(*) AS count FROM summary s JOIN index_version v ON v.status = 'active'
WHERE gate_reason IS NOT NULL AND s.model = v.summary_model AND s.prompt_version = v.prompt_version GROUP BY 1 ORDER BY 2 DESC
"""
REST = """
SELECT
  (SELECT count(*) FROM repository WHERE gone_at IS NULL) AS repositories,
  (SELECT count(*) FROM rejection) AS rejected,
  (SELECT extract(epoch FROM now() - max(finished_at)) FROM run WHERE kind IN ('ingest', 'crawl') AND failure IS NULL) AS freshness_seconds,
  (SELECT failure FROM run WHERE kind = 'crawl' AND finished_at IS NOT NULL ORDER BY id DESC LIMIT 1) AS failure,
  (SELECT failure FROM run WHERE kind = 'digest' AND finished_at IS NOT NULL ORDER BY id DESC LIMIT 1) AS digest_failure,
  (SELECT count(*) FROM repository WHERE followed) AS followed,
  (SELECT coalesce(sum(items), 0)::bigint FROM engine_call WHERE purpose = 'embedding' AND outcome = 'ok'
     AND settled_at >= date_trunc('hour', now()) - interval '1 hour' AND settled_at < date_trunc('hour', now())) AS digests_per_hour,
  (SELECT to_char(since AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' UTC (' || reason || ')' FROM pause) AS paused,
  (SELECT github || jsonb_build_object('run', id, 'kind', kind, 'started_at', started_at)
    FROM run WHERE github IS NOT NULL ORDER BY id DESC LIMIT 1) AS github
"""
FRESHNESS = """
SELECT
  (SELECT extract(epoch FROM now() - min(since)) FROM due WHERE version_id = %(version)s) AS oldest_due_seconds,
  (SELECT percentile_cont(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY s) FROM latency CROSS JOIN unnest(seconds) AS s
     WHERE version_id = %(version)s AND finished_at > now() - interval '1 day') AS percentiles
"""
RECALL = """
SELECT DISTINCT ON (filter) filter, recall, queries, measured_at FROM recall WHERE version_id = %s ORDER BY filter, id DESC
"""

Cursor = AsyncCursor[dict[str, Any]]


@dataclass(frozen=True)
class Gap:
    """`repositories`: the ones with most of these items, {repository, count, urls}; empty where items are not told apart."""

    stage: str
    reason: str
    count: int
    index_version: str | None = None
    repositories: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class VersionStatus:
    """How far one index version is. stored = summarized + dead_letters + pending."""

    index_version: str
    status: str
    summarized: int
    embedded: int
    dead_letters: int
    pending: int
    complete: bool


@dataclass(frozen=True)
class Status:
    """What the database holds. `usage` is the ledger: see cost.bill.

    `github` is what GitHub charged the last run that asked it over GraphQL. `freshness_seconds` is the time since a crawl or an
    ingest last ended well; None before the first. `searchable_seconds`: from a change on GitHub to its being searchable, over the last
    day. `digests_per_hour`: items digested within the last full hour, by the clock. `counted`: what the last full count said of the kept
    counts. `gated`: summaries whose model's answers did not pass the gate, by reason; their items are complete, with their own sentences
    for a summary.
    """

    repositories: int
    followed: int
    items: int
    known: int
    stored: int
    summarized: int
    embedded: int
    pending: int
    dead_letters: int
    rejected: int
    complete: bool
    freshness_seconds: float | None
    oldest_due_seconds: float | None
    searchable_seconds: dict[str, float] | None
    digests_per_hour: int
    index_version: str | None
    usage: dict[str, Any]
    github: dict[str, Any] | None
    counted: dict[str, Any] | None
    recall: list[dict[str, Any]]
    versions: list[VersionStatus]
    warnings: list[str]
    gaps: list[Gap] = field(default_factory=list)
    gated: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lag_seconds(self) -> float:
        """The longer of: since the last crawl, and since the oldest due item became due. Infinite before the first crawl."""
        return max(float("inf") if self.freshness_seconds is None else self.freshness_seconds, self.oldest_due_seconds or 0)


async def read_status(pool: Pool, prices: Prices | None = None, *, every_gap: bool = False) -> Status:
    """Everything in one snapshot, so that the numbers agree with each other while others write."""
    await fold(pool)
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return _status(await _look(connection, cursor, prices or read_prices(), every_gap=every_gap))


class _Seen(NamedTuple):
    """One snapshot. The versions begin with the active one, where there is one."""

    versions: list[dict[str, Any]]
    counts: Counted
    gaps: list[Gap]
    dead: list[dict[str, Any]]
    rest: dict[str, Any]
    usage: dict[str, Any]
    freshness: dict[str, Any]
    recall: list[dict[str, Any]]
    counted: dict[str, Any] | None
    gated: dict[str, int]


async def _look(connection: AsyncConnection, cursor: Cursor, prices: Prices, *, every_gap: bool) -> _Seen:
    versions = await (await cursor.execute(VERSIONS)).fetchall()
    counts = await read_counts(connection)
    items = await read_gap_items(connection, [version["id"] for version in versions], every_one=every_gap)
    active = next((version["id"] for version in versions if version["status"] == "active"), 0)
    gaps = [*_structure(versions, counts), *_gaps(versions, counts, items), *await _pending(cursor, versions, counts)]
    sweeps = await (await cursor.execute(SWEEPS)).fetchall()
    gaps += [Gap("sweep", f"repositories not swept: {row['reason']}", row["count"]) for row in sweeps]
    return _Seen(
        versions=versions,
        counts=counts,
        gaps=gaps,
        dead=await (await cursor.execute(DEAD, [active])).fetchall(),
        rest=await (await cursor.execute(REST)).fetchone() or {},
        usage=bill(await read_usage(connection), prices) | {"unsettled_calls": await count_unsettled(connection)},
        freshness=await (await cursor.execute(FRESHNESS, {"version": active})).fetchone() or {},
        recall=await (await cursor.execute(RECALL, [active])).fetchall(),
        counted=await _counted(connection),
        gated={row["gate_reason"]: row["count"] for row in await (await cursor.execute(GATED)).fetchall()},
    )


def _status(seen: _Seen) -> Status:
    counts, rest, stored = seen.counts, seen.rest, _stored(seen.counts)
    found = [_version(version, counts, seen.gaps) for version in seen.versions]
    active = bool(seen.versions) and seen.versions[0]["status"] == "active"
    serving = found[0] if active else VersionStatus("", "none", 0, 0, 0, stored, complete=False)
    ours = [gap for gap in seen.gaps if gap.index_version in {None, serving.index_version}]
    return Status(
        repositories=rest["repositories"],
        followed=rest["followed"],
        items=stored,
        known=sum(number for (version, _), number in counts.items() if version == 0),
        stored=stored,
        summarized=serving.summarized,
        embedded=serving.embedded,
        pending=serving.pending + counts.get((0, "unfetched"), 0),
        dead_letters=serving.dead_letters + counts.get((0, "unfetchable"), 0),
        rejected=rest["rejected"],
        complete=not ours,
        freshness_seconds=_seconds(rest["freshness_seconds"]),
        oldest_due_seconds=_seconds(seen.freshness["oldest_due_seconds"]),
        searchable_seconds=_percentiles(seen.freshness["percentiles"]),
        digests_per_hour=rest["digests_per_hour"],
        index_version=serving.index_version or None,
        usage=seen.usage,
        github=rest["github"],
        counted=seen.counted,
        recall=seen.recall,
        versions=found,
        warnings=[*_warnings(seen.recall, seen.counted, rest)],
        gaps=seen.gaps + [Gap(row["stage"], row["reason"], row["count"]) for row in seen.dead],
        gated=seen.gated,
    )


def _stored(counts: Counted) -> int:
    return counts.get((0, "stored"), 0) + counts.get((0, "stale"), 0)


def _version(version: dict[str, Any], counts: Counted, gaps: Iterable[Gap]) -> VersionStatus:
    def of(*states: str) -> int:
        return sum(counts.get((version["id"], state), 0) for state in states)

    summarized, dead = of("digested"), of("dead")
    return VersionStatus(
        index_version=version["index_version"],
        status=version["status"],
        summarized=summarized,
        embedded=summarized + of("no summary"),
        dead_letters=dead,
        pending=_stored(counts) - summarized - dead,
        complete=not any(gap.index_version == version["index_version"] for gap in gaps),
    )


def _structure(versions: Sequence[dict[str, Any]], counts: Counted) -> Iterable[Gap]:
    """Versions that are not whole: made by hand, or damaged."""
    for version in versions:
        name, digests = version["index_version"], counts.get((version["id"], "digested"), 0)
        if not version["has_table"]:
            yield Gap("version", "it has no table for its digests: retire it, or build it with `starsearch reprocess`", digests, name)
        elif not version["has_index"] and version["status"] == "active":
            yield Gap("version", "its vectors have no valid HNSW index: searches read all of them", digests, name)
    if versions and versions[0]["status"] != "active":
        yield Gap("version", "no version is active: nothing can be found", _stored(counts))
    if not versions and _stored(counts):
        yield Gap(*GAPS["missing"], _stored(counts))


def _gaps(versions: Sequence[dict[str, Any]], counts: Counted, items: Sequence[GapItem]) -> Iterable[Gap]:
    names = {0: None} | {version["id"]: version["index_version"] for version in versions}
    examples: dict[tuple[int, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for item in items:
        repositories = examples[item.version_id, item.state]
        repository = {"repository": item.repository, "count": item.total, "urls": []}
        repositories.setdefault(item.repository, repository)["urls"].append(item.address)
    for version_id, name in names.items():
        for state, (stage, reason) in GAPS.items():
            found = list(examples[version_id, state].values())
            number = sum(each["count"] for each in found) if state == "lost" else counts.get((version_id, state), 0)
            if number:
                yield Gap(stage, reason, number, name, found)


async def _pending(cursor: Cursor, versions: Sequence[dict[str, Any]], counts: Counted) -> list[Gap]:
    """What is due: leased, failed before, or only waiting."""
    gaps = []
    for version in versions:
        rows = await (await cursor.execute(PENDING, [version["id"]])).fetchall()
        waiting = counts.get((version["id"], "due"), 0) - sum(row["count"] for row in rows)
        rows += [{"reason": "waiting", "count": waiting}] if waiting > 0 else []
        gaps += [Gap("digest", row["reason"], row["count"], version["index_version"]) for row in rows]
    return gaps


async def _counted(connection: AsyncConnection) -> dict[str, Any] | None:
    last = await last_reconciliation(connection)
    return asdict(last) if last else None


def _warnings(recall: Sequence[dict[str, Any]], counted: dict[str, Any] | None, rest: dict[str, Any]) -> Iterable[str]:
    if rest["paused"]:
        yield f"work is paused since {rest['paused']}: `starsearch resume` lets it go on"
    if rest["failure"]:
        yield f"the last crawl failed: {rest['failure']}"
    if rest["digest_failure"] and not rest["paused"]:
        yield f"the last digest failed: {rest['digest_failure']}"
    for measured in recall:
        if measured["recall"] < RECALL_TARGET:
            yield f"recall@10 is {measured['recall']:.2f} ({measured['filter']}), below {RECALL_TARGET}: see docs/operations.md"
    if counted and counted["differences"]:
        number = sum(abs(each["kept"] - each["counted"]) for each in counted["differences"])
        age = (datetime.now(UTC) - counted["counted_at"]).total_seconds() / 3600
        yield f"{number:,} items were in another state than counted, found and corrected {age:.0f} h ago: did somebody switch triggers off?"


def _percentiles(values: Sequence[float] | None) -> dict[str, float] | None:
    return (values and {"p50": round(values[0], 1), "p95": round(values[1], 1)}) or None


def _seconds(value: Any) -> float | None:
    return None if value is None else round(float(value), 1)
