-- The named repositories and where each kind starts; writes down the start of those swept for the first time.
WITH chosen AS (
  SELECT r.id, r.node_id, r.full_name, r.follow_from, issues.swept_at AS issues_swept_at, pulls.swept_at AS pulls_swept_at
  FROM repository r
  LEFT JOIN checkpoint issues ON issues.repository_id = r.id AND issues.kind = 'issue'
  LEFT JOIN checkpoint pulls ON pulls.repository_id = r.id AND pulls.kind = 'pull_request'
  WHERE r.host = %(host)s AND r.node_id = ANY (%(nodes)s) AND NOT purged_repository(r.host, r.full_name, r.node_id)
), first_time AS (
  UPDATE repository r SET follow_from = %(since)s FROM chosen c WHERE r.id = c.id AND r.follow_from IS NULL
)
SELECT
  id, node_id, full_name,
  coalesce(issues_swept_at, follow_from, %(since)s) AS issues_start, coalesce(pulls_swept_at, follow_from, %(since)s) AS pulls_start
FROM chosen
ORDER BY least(issues_swept_at, pulls_swept_at) NULLS FIRST, id
