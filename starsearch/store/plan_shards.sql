-- The shards that a parent starts now: those it wrote down and perhaps did not start, and new ones for what is due beyond them.
-- A shard that failed is followed, after a pause, by its next attempt, whose place no other shard takes.
WITH due_now AS (
  SELECT count(*) AS items FROM due
  WHERE version_id = %(version)s AND priority <= %(priority)s AND (lease_token IS NOT NULL OR due_at <= now())
), at_work AS (
  SELECT count(*) AS shards FROM shard WHERE ended_at IS NULL
), room AS (
  SELECT greatest(0, least(ceil(items::numeric / %(size)s), %(most)s) - shards)::integer AS places FROM due_now, at_work
), latest AS (
  SELECT DISTINCT ON (number) number, attempt, failure, ended_at FROM shard WHERE parent = %(parent)s ORDER BY number, attempt DESC
), failed AS (
  SELECT number, attempt, ended_at FROM latest WHERE failure IS NOT NULL
), next AS (
  SELECT number, attempt + 1 AS attempt FROM failed WHERE attempt < %(attempts)s AND ended_at < now() - attempt * %(pause)s::interval
  UNION ALL
  SELECT (SELECT coalesce(max(number), 0) FROM latest) + n, 1
  FROM room, generate_series(1, places - (SELECT count(*)::integer FROM failed)) AS n
), new AS (
  INSERT INTO shard (parent, number, attempt, size)
  SELECT %(parent)s, number, attempt, %(size)s FROM next ORDER BY number LIMIT (SELECT places FROM room)
  RETURNING id, parent, number, attempt, size
)
SELECT id, parent, number, attempt, size FROM shard
WHERE parent = %(parent)s AND flow_run IS NULL AND ended_at IS NULL
UNION ALL
SELECT * FROM new ORDER BY number
