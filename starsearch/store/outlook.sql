-- What is due in a version at this priority or a more urgent one, the shards at work, and those of one parent that failed.
WITH latest AS (
  SELECT DISTINCT ON (number) number, attempt, failure FROM shard WHERE parent = %(parent)s ORDER BY number, attempt DESC
)
SELECT
  count(*) FILTER (WHERE lease_token IS NOT NULL OR due_at <= now()) AS due,
  min(due_at) FILTER (WHERE lease_token IS NULL AND due_at > now()) AS retry_at,
  (SELECT count(*) FROM shard WHERE ended_at IS NULL) AS open,
  (
    SELECT count(*) FROM shard s JOIN run r ON r.id = s.run_id
    WHERE s.parent = %(parent)s AND (s.ended_at IS NULL OR (s.failure IS NULL AND r.finished_at IS NULL))
  ) AS reporting,
  (SELECT count(*) FROM shard WHERE ended_at IS NULL AND began_at IS NOT NULL) AS begun,
  ARRAY(SELECT failure FROM latest WHERE failure IS NOT NULL ORDER BY number) AS failures,
  ARRAY(SELECT failure FROM latest WHERE failure IS NOT NULL AND attempt >= %(attempts)s ORDER BY number) AS worn_out
FROM due WHERE version_id = %(version)s AND priority <= %(priority)s
