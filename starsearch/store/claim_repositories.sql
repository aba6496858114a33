-- Lease the next repositories of the followed list to one crawl, those that waited longest first; with where each kind starts.
-- Not those that were swept since this crawl began: another one at the same time did that. The same conditions: unswept.sql.
WITH picked AS (
  SELECT id FROM repository
  WHERE followed AND lease_token IS NULL AND released_at < %(began)s AND host = %(host)s AND node_id IS NOT NULL
    AND (not_before IS NULL OR not_before < %(now)s)
    AND NOT purged_repository(host, full_name, node_id)
  ORDER BY released_at, id LIMIT %(size)s FOR NO KEY UPDATE SKIP LOCKED
), token AS (
  SELECT nextval('lease_token') AS token
), leased AS (
  UPDATE repository r SET
    lease_token = token, lease_worker = %(worker)s, lease_until = now() + %(lease)s, follow_from = coalesce(r.follow_from, %(since)s)
  FROM picked, token WHERE r.id = picked.id
  RETURNING r.id, r.node_id, r.full_name, r.follow_from, r.lease_token
)
SELECT
  l.id, l.node_id, l.full_name, coalesce(issues.swept_at, l.follow_from) AS issues_start,
  coalesce(pulls.swept_at, l.follow_from) AS pulls_start, l.lease_token
FROM leased l
LEFT JOIN checkpoint issues ON issues.repository_id = l.id AND issues.kind = 'issue'
LEFT JOIN checkpoint pulls ON pulls.repository_id = l.id AND pulls.kind = 'pull_request'
ORDER BY l.id
