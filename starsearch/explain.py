"""Where a digest came from: content, prompt, model, run, tokens, times."""

import re
from typing import Any

from psycopg.rows import dict_row

from starsearch.store.database import Pool

_SHORT = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)#(?P<number>\d{1,9})")
_URL = re.compile(r"https?://(?P<host>[^/]+)/(?P<repo>[\w.-]+/[\w.-]+)/(?:issues|pull)/(?P<number>\d{1,9})(?:[/?#].*)?")

EXPLANATION = """
SELECT
  i.url, r.full_name AS repo, i.number, i.type, i.state, i.title, i.excerpt, i.known_at, i.stored_at, i.updated_at, i.tombstoned_at,
  -- as `status` counts it: stored or not, and by index version
  (SELECT jsonb_object_agg(coalesce(left(w.fingerprint, 12), 'fetch'), s.state) FROM item_state s
     LEFT JOIN index_version w ON w.id = s.version_id WHERE s.id = i.id) AS states,
  encode(i.content_hash, 'hex') AS content_hash, i.hash_recipe,
  CASE WHEN d.item_id IS NULL THEN NULL ELSE d.content_hash = i.content_hash END AS digest_is_current,
  left(v.fingerprint, 12) AS index_version, v.embedding_model, v.embedding_revision, v.dimensions, v.text_recipe,
  s.model AS summary_model, s.prompt_version, encode(s.key, 'hex') AS prompt_key, s.source AS summary_source, s.gate_reason,
  s.gate_detail, s.text AS summary, s.prompt_tokens, s.completion_tokens, s.created_at AS summarized_at, s.run_id AS summary_run_id,
  d.created_at AS embedded_at,
  d.run_id, run.kind AS run_kind, run.started_at AS run_started_at,
  spent.requests AS spent_requests, spent.tokens AS spent_tokens,
  u.since AS waiting_since, coalesce(u.attempts, x.attempts, f.attempts) AS attempts,
  coalesce(u.reason, x.reason, f.reason) AS failure, coalesce(u.detail, x.detail, f.detail) AS failure_detail,
  x.created_at AS dead_since
FROM item i
JOIN repository r ON r.id = i.repository_id
LEFT JOIN index_version v ON v.status = 'active'
LEFT JOIN digest d ON d.version_id = v.id AND d.item_id = i.id
LEFT JOIN summary s ON s.key = d.summary_key
LEFT JOIN run ON run.id = d.run_id
LEFT JOIN due u ON u.version_id = v.id AND u.item_id = i.id
LEFT JOIN dead_letter x ON x.version_id = v.id AND x.item_id = i.id
LEFT JOIN fetch_failure f ON f.item_id = i.id
-- all that was ever asked for it, failures too; a call for several items is shared by them
LEFT JOIN LATERAL (
  SELECT sum(requests::float8 / items) AS requests, sum((prompt_tokens + completion_tokens)::float8 / items) AS tokens
  FROM engine_call WHERE item_ids @> ARRAY[i.id]
) spent ON true
WHERE lower(r.full_name) = lower(%(repo)s) AND i.number = %(number)s AND r.host = %(host)s AND r.gone_at IS NULL
"""


def parse_address(address: str, *, host: str) -> dict[str, Any] | None:
    """An item's URL, or owner/name#number on `host`, to host, repo and number; None for anything else."""
    match = _URL.fullmatch(address.strip()) or _SHORT.fullmatch(address.strip())
    if not match:
        return None
    return {"host": host} | match.groupdict() | {"number": int(match["number"])}


async def explain(pool: Pool, address: dict[str, Any]) -> dict[str, Any] | None:
    """Everything known of one item's digest; None for an item that is not stored."""
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(EXPLANATION, address)
        row: dict[str, Any] | None = await cursor.fetchone()
        return row
