"""Completeness: known = stored = summarized = embedded + dead letters, counted from the rows themselves, every gap named."""

from dataclasses import asdict, dataclass, field
from typing import Any

from psycopg.rows import dict_row

from starsearch.store.database import Pool

STAGES = """
SELECT
  count(*) AS known,
  count(stored_at) AS stored,
  count(*) FILTER (WHERE d.content_hash = i.content_hash) AS digested,
  count(*) FILTER (WHERE x.content_hash = i.content_hash AND d.content_hash IS DISTINCT FROM i.content_hash) AS dead,
  count(*) FILTER (
    WHERE stored_at IS NOT NULL AND u.item_id IS NULL
      AND d.content_hash IS DISTINCT FROM i.content_hash AND x.content_hash IS DISTINCT FROM i.content_hash
  ) AS forgotten,
  count(*) FILTER (WHERE stored_at IS NULL AND f.dead) AS unfetchable,
  count(*) FILTER (WHERE stored_at IS NOT NULL AND i.seen_updated_at > coalesce(updated_at, '-infinity') AND f.dead IS NOT TRUE) AS stale
FROM item i
JOIN repository r ON r.id = i.repository_id AND r.gone_at IS NULL
LEFT JOIN fetch_failure f ON f.item_id = i.id
LEFT JOIN index_version v ON v.status = 'active'
LEFT JOIN digest d ON d.version_id = v.id AND d.item_id = i.id
LEFT JOIN dead_letter x ON x.version_id = v.id AND x.item_id = i.id
LEFT JOIN due u ON u.version_id = v.id AND u.item_id = i.id
WHERE i.tombstoned_at IS NULL
"""
PENDING = """
SELECT CASE
    WHEN lease_worker IS NOT NULL THEN 'being digested'
    WHEN attempts > 0 THEN 'failed, will be tried again: ' || coalesce(due.reason, 'unknown')
    ELSE 'waiting'
  END AS reason, count(*) AS count
FROM due JOIN index_version v ON v.id = version_id AND v.status = 'active'
WHERE item_id NOT IN (SELECT id FROM item WHERE repository_id IN (SELECT id FROM repository WHERE gone_at IS NOT NULL))
GROUP BY 1 ORDER BY 2 DESC
"""
DEAD = """
SELECT stage, x.reason, count(*) AS count
FROM dead_letter x JOIN index_version v ON v.id = version_id AND v.status = 'active' JOIN item i ON i.id = item_id
WHERE x.content_hash = i.content_hash AND i.tombstoned_at IS NULL GROUP BY 1, 2
UNION ALL
SELECT 'fetch', reason, count(*) FROM fetch_failure JOIN item i ON i.id = item_id
WHERE dead AND i.tombstoned_at IS NULL GROUP BY 1, 2
ORDER BY 3 DESC
"""
SWEEPS = """
SELECT split_part(failure, ':', 1) AS reason, count(*) AS count
FROM repository WHERE gone_at IS NULL AND failure IS NOT NULL GROUP BY 1 ORDER BY 2 DESC
"""
USAGE = """
SELECT
  coalesce(sum(prompt_tokens), 0) AS prompt_tokens, coalesce(sum(completion_tokens), 0) AS completion_tokens,
  coalesce(sum(requests) FILTER (WHERE purpose = 'summary'), 0) AS llm_requests,
  count(*) FILTER (WHERE settled_at IS NULL OR outcome = 'abandoned') AS unsettled_calls,
  bool_and(model LIKE 'embedded-%%' OR model = 'minilm-l6-v2') AS free
FROM engine_call
"""
REST = """
SELECT
  (SELECT count(*) FROM repository WHERE gone_at IS NULL) AS repositories,
  (SELECT count(*) FROM rejection) AS rejected,
  (SELECT extract(epoch FROM now() - max(finished_at)) FROM run WHERE kind IN ('ingest', 'crawl')) AS freshness_seconds,
  (SELECT count(*) FROM repository WHERE followed) AS followed,
  (SELECT github || jsonb_build_object('run', id, 'started_at', started_at) FROM run WHERE github IS NOT NULL ORDER BY id DESC LIMIT 1)
    AS github,
  (SELECT fingerprint FROM index_version WHERE status = 'active') AS fingerprint
"""


@dataclass(frozen=True)
class Gap:
    stage: str
    reason: str
    count: int


@dataclass(frozen=True)
class Status:
    """What the database holds. `cost_usd` is None where an engine was used whose price we do not know.

    `github` is what GitHub charged the last run that asked it over GraphQL. `freshness_seconds` is the time since a crawl or an
    ingest last finished; None before the first.
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
    index_version: str | None
    usage: dict[str, Any]
    github: dict[str, Any] | None
    gaps: list[Gap] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def read_status(pool: Pool) -> Status:
    """Count everything in one snapshot, so that the numbers agree with each other while others write."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        stages = await (await cursor.execute(STAGES)).fetchone() or {}
        rest = await (await cursor.execute(REST)).fetchone() or {}
        usage = await (await cursor.execute(USAGE)).fetchone() or {}
        pending = [Gap("digest", row["reason"], row["count"]) async for row in await cursor.execute(PENDING)]
        pending += [Gap("sweep", f"repositories not swept: {row['reason']}", row["count"]) async for row in await cursor.execute(SWEEPS)]
        dead = [Gap(row["stage"], f"dead letter: {row['reason']}", row["count"]) async for row in await cursor.execute(DEAD)]
    unfetched = stages["known"] - stages["stored"] - stages["unfetchable"]
    if unfetched:
        pending.append(Gap("fetch", "known, text not fetched yet", unfetched))
    if stages["stale"]:
        pending.append(Gap("fetch", "changed, new text not fetched yet", stages["stale"]))
    if stages["forgotten"]:
        pending.append(Gap("digest", "not digested yet: run `starsearch digest`", stages["forgotten"]))
    dead_letters = stages["dead"] + stages["unfetchable"]
    waiting = stages["known"] - stages["digested"] - dead_letters
    return Status(
        repositories=rest["repositories"],
        followed=rest["followed"],
        items=stages["stored"],
        known=stages["known"],
        stored=stages["stored"],
        summarized=stages["digested"],
        embedded=stages["digested"],
        pending=waiting,
        dead_letters=dead_letters,
        rejected=rest["rejected"],
        complete=waiting == 0 and not pending,
        freshness_seconds=None if rest["freshness_seconds"] is None else round(float(rest["freshness_seconds"]), 1),
        index_version=rest["fingerprint"] and rest["fingerprint"][:12],
        usage={
            "prompt_tokens": int(usage["prompt_tokens"]),
            "completion_tokens": int(usage["completion_tokens"]),
            "cost_usd": 0.0 if usage["free"] in {True, None} else None,
            "llm_requests": int(usage["llm_requests"]),
            "unsettled_calls": usage["unsettled_calls"],
        },
        github=rest["github"],
        gaps=pending + dead,
    )
