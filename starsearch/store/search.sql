-- The best digests of one index version, of what both legs found: by cosine, by words, or by both.
-- In braces, filled in by search.py: what a text is worth by its words (as in words.sql), the vector length and plain numbers.
WITH word AS MATERIALIZED (
  SELECT * FROM unnest(%(words)s::text[]::tsquery[], %(rarities)s::float8[]) AS word (query, rarity)
), worded AS MATERIALIZED (
  SELECT * FROM unnest(%(worded)s::bigint[], %(word_scores)s::float8[]) AS worded (id, words)
), other AS MATERIALIZED (
  -- what is near by vector has a word score too
  SELECT
    id, length(words) AS length, {relevance} AS relevance, coalesce(%(usual)s::float8, avg(length(words)) OVER ()) AS usual
  FROM item
  WHERE id = ANY (%(nearest)s::bigint[]) AND id NOT IN (SELECT id FROM worded)
), candidate AS (
  SELECT id, words FROM worded
  UNION ALL
  SELECT id, {discounted} FROM other
), scored AS (
  SELECT
    c.id, d.summary_key,
    CASE WHEN %(mode)s <> 'text' THEN 1 - (d.embedding::halfvec({dimensions}) <=> %(vector)s) END AS cosine,
    CASE WHEN %(mode)s <> 'vector' THEN coalesce(c.words / nullif(max(c.words) OVER (), 0), 0) END AS words
  FROM candidate c
  JOIN item i ON i.id = c.id
  JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
), best AS MATERIALIZED (
  SELECT
    id, summary_key, cosine, words,
    CASE %(mode)s WHEN 'vector' THEN cosine WHEN 'text' THEN words ELSE cosine + {text_weight} * words END AS score
  FROM scored
  ORDER BY score DESC, id
  LIMIT {places}
), placed AS (
  -- only the first ones are read in full: the texts of a hundred take as long as finding them
  SELECT *, row_number() OVER (ORDER BY score DESC, id) AS place FROM best
)
SELECT
  placed.id, i.url, r.full_name AS repo, i.number, i.type, i.state, i.author, i.labels, i.title, s.text AS summary,
  s.source AS summary_source, score, cosine, placed.words AS word_score, i.created_at, i.updated_at, i.closed_at
FROM placed
LEFT JOIN item i ON i.id = CASE WHEN place <= {limit} THEN placed.id END
LEFT JOIN repository r ON r.id = i.repository_id
LEFT JOIN summary s ON s.key = CASE WHEN place <= {limit} THEN placed.summary_key END
ORDER BY place
