-- Items whose attempts are spent: of the digest in every version that is not retired, and of the fetch of the newest text known.
WITH dead AS (
  SELECT x.item_id, x.version_id, x.stage, x.reason, x.detail, x.attempts, x.created_at AS dead_since,
    left(v.fingerprint, 12) AS index_version
  FROM dead_letter x JOIN index_version v ON v.id = x.version_id AND v.status <> 'retired' JOIN item i ON i.id = x.item_id
  WHERE x.content_hash = i.content_hash
  UNION ALL
  SELECT f.item_id, NULL, 'fetch', f.reason, f.detail, f.attempts, f.failed_at, NULL
  FROM fetch_failure f JOIN item i ON i.id = f.item_id AND i.seen_updated_at IS NOT DISTINCT FROM f.seen_updated_at
  WHERE f.dead AND (i.stored_at IS NULL OR i.seen_updated_at > coalesce(i.updated_at, '-infinity'))
)
SELECT d.*, r.full_name AS repo, i.number, i.title, coalesce(
    i.url, 'https://' || r.host || '/' || r.full_name || CASE i.type WHEN 'pull_request' THEN '/pull/' ELSE '/issues/' END || i.number
  ) AS url
FROM dead d JOIN item i ON i.id = d.item_id JOIN repository r ON r.id = i.repository_id AND r.gone_at IS NULL
WHERE i.tombstoned_at IS NULL
  AND (%(stage)s::text IS NULL OR d.stage = %(stage)s)
  AND (%(error)s::text IS NULL OR strpos(lower(d.reason || ': ' || d.detail), %(error)s) > 0)
  AND (%(number)s::integer IS NULL OR (i.number = %(number)s AND lower(r.full_name) = lower(%(repo)s) AND r.host = %(host)s))
ORDER BY d.dead_since DESC, d.item_id, d.version_id LIMIT %(limit)s
