-- The best digests of one index version: of those nearest by vector, and those that hold the question's rarest words.
-- In braces, filled in by search.py: the filters, the vector length and plain numbers.
WITH word AS MATERIALIZED (
  SELECT * FROM unnest(%(words)s::text[]::tsquery[], %(rarities)s::float8[]) AS word (query, rarity)
), matching AS MATERIALIZED (
  SELECT i.id, i.partition_at, i.words
  FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
  WHERE i.words @@ %(picks)s::text::tsquery AND {filters}
  LIMIT {candidates}
), candidate AS (
  SELECT id, partition_at, words FROM matching
  UNION ALL
  SELECT id, partition_at, words FROM item
  WHERE id = ANY (%(nearest)s) AND id NOT IN (SELECT id FROM matching)
), relevant AS MATERIALIZED (
  -- BM25, but for the count of a word in a text: ts_rank of one word is a sum of 1/i^2 over its places, which rises and levels off as
  -- BM25's n / (n + k) does. It finds as much, at a tenth of the cost of unpacking every candidate's words into rows.
  SELECT
    id, partition_at, length(words) AS length,
    (SELECT sum(rarity * ts_rank('{{1,1,1,1}}', words, query)) FROM word) AS relevance
  FROM candidate
), worded AS MATERIALIZED (
  SELECT id, partition_at, relevance / ({flat} + (1 - {flat}) * length / nullif(avg(length) OVER (), 0)) AS words FROM relevant
), scored AS (
  SELECT
    w.id, d.summary_key,
    CASE WHEN %(mode)s <> 'text' THEN 1 - (d.embedding::halfvec({dimensions}) <=> %(vector)s) END AS cosine,
    CASE WHEN %(mode)s <> 'vector' THEN coalesce(w.words / nullif(max(w.words) OVER (), 0), 0) END AS words
  FROM worded w
  JOIN digest d ON d.version_id = {version} AND d.item_id = w.id AND d.partition_at = w.partition_at
  WHERE w.id = ANY (%(nearest)s) OR w.id IN (SELECT id FROM worded WHERE words > 0 ORDER BY words DESC, id LIMIT {depth})
), best AS MATERIALIZED (
  SELECT
    id, summary_key, cosine, words,
    CASE %(mode)s WHEN 'vector' THEN cosine WHEN 'text' THEN words ELSE cosine + {text_weight} * words END AS score
  FROM scored
  WHERE %(mode)s <> 'text' OR words > 0
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
