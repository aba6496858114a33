-- Store one chunk of items; returns the rows that were inserted or changed. Rows must not repeat a key.
WITH r AS MATERIALIZED (
  SELECT * FROM json_to_recordset(%(rows)s) AS r (
    repository_id bigint, number integer, node_id text, database_id bigint, partition_at timestamptz, type text, state text, title text,
    body text, url text, author text, labels json, comments jsonb, comments_count integer, created_at timestamptz,
    updated_at timestamptz, closed_at timestamptz, merged_at timestamptz, excerpt boolean, content_hash text
  )
), before AS (
  SELECT i.id FROM item i JOIN r USING (repository_id, number) WHERE i.stored_at IS NOT NULL
), stored AS (
INSERT INTO item AS t (
  repository_id, number, node_id, database_id, partition_at, stored_at, type, state, title, body, url, author, labels, comments,
  comments_count, created_at, updated_at, closed_at, merged_at, excerpt, content_hash, hash_recipe
)
SELECT
  r.repository_id, r.number, r.node_id, r.database_id, coalesce(r.partition_at, now()), now(), r.type, r.state, r.title, r.body,
  r.url, r.author, ARRAY(SELECT json_array_elements_text(r.labels)), r.comments, r.comments_count, r.created_at, r.updated_at,
  r.closed_at, r.merged_at, r.excerpt, decode(r.content_hash, 'hex'), %(recipe)s
FROM r
ORDER BY r.repository_id, r.number
ON CONFLICT (repository_id, number) DO UPDATE SET
  node_id = coalesce(excluded.node_id, t.node_id),
  database_id = coalesce(excluded.database_id, t.database_id),
  -- set when the text is first stored, and never changed after that. Part of a key, so that this waits for who holds the item FOR KEY SHARE
  partition_at = CASE WHEN t.stored_at IS NULL THEN excluded.partition_at ELSE t.partition_at END,
  stored_at = now(), tombstoned_at = NULL,
  type = excluded.type, state = excluded.state, title = excluded.title, body = excluded.body, url = excluded.url,
  author = coalesce(excluded.author, t.author), labels = excluded.labels, comments = excluded.comments,
  comments_count = coalesce(excluded.comments_count, t.comments_count),
  created_at = coalesce(excluded.created_at, t.created_at),
  updated_at = coalesce(excluded.updated_at, t.updated_at),
  closed_at = excluded.closed_at,
  merged_at = coalesce(excluded.merged_at, t.merged_at),
  excerpt = excluded.excerpt, content_hash = excluded.content_hash, hash_recipe = excluded.hash_recipe
WHERE
  t.stored_at IS NULL  -- known so far, not fetched
  OR (
    -- a whole text beats an excerpt; between equals the later update wins, and unknown loses to known
    CASE
      WHEN t.excerpt <> excluded.excerpt THEN t.excerpt
      ELSE t.updated_at IS NULL OR excluded.updated_at >= t.updated_at
    END
    AND (
      t.tombstoned_at IS NOT NULL
      OR t.content_hash <> excluded.content_hash
      OR t.excerpt <> excluded.excerpt
      OR (excluded.node_id IS NOT NULL AND t.node_id IS DISTINCT FROM excluded.node_id)
      OR (t.type, t.url, t.labels, t.comments, t.closed_at)
        IS DISTINCT FROM (excluded.type, excluded.url, excluded.labels, excluded.comments, excluded.closed_at)
      OR (t.author, t.comments_count, t.created_at, t.updated_at, t.merged_at) IS DISTINCT FROM (
        coalesce(excluded.author, t.author), coalesce(excluded.comments_count, t.comments_count),
        coalesce(excluded.created_at, t.created_at), coalesce(excluded.updated_at, t.updated_at),
        coalesce(excluded.merged_at, t.merged_at)
      )
    )
  )
RETURNING t.id
)
SELECT id, id NOT IN (SELECT id FROM before) AS inserted FROM stored
