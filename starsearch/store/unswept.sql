-- What claim_repositories.sql has still to give to a crawl: all of it, and how much of that is in nobody's hands.
SELECT count(*), count(*) FILTER (WHERE lease_token IS NULL) FROM repository
WHERE followed AND released_at < %(began)s AND host = %(host)s AND node_id IS NOT NULL
  AND (not_before IS NULL OR not_before < %(now)s)
  AND NOT purged_repository(host, full_name, node_id)
