-- The nearest digests of one index version: by vector, by words (BM25), or by a weighted sum of both.
-- In braces, filled in by search.py: the vector leg, the filters, the vector length and plain numbers.
WITH lexeme AS MATERIALIZED (
  -- How rare each word of the question is. Counting stops at {common}: beyond that a word says little.
  SELECT word, n, ln(1 + (rows - n + 0.5) / (n + 0.5)) AS rarity, sum(n) OVER (ORDER BY n, word) AS matches
  FROM
    (SELECT lexeme AS word FROM unnest(to_tsvector('english', %(query)s))) AS asked
    CROSS JOIN LATERAL (
      SELECT count(*) AS n FROM (SELECT FROM item WHERE words @@ quote_literal(word)::tsquery LIMIT {common}) AS matching
    ) AS frequency
    -- the planner's estimate, and a count while the table is too young to have one
    CROSS JOIN (
      SELECT greatest(reltuples, (SELECT count(*) FROM (SELECT FROM item LIMIT {common} * 2) AS first)) AS rows
      FROM pg_class WHERE oid = 'item'::regclass
    ) AS size
  WHERE n > 0 AND %(mode)s <> 'vector'
), matching AS MATERIALIZED (
  -- Only the rarest words pick candidates; a common one would rank half the table.
  SELECT i.id
  FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id
  WHERE {filters} AND i.words @@ (
    SELECT string_agg(quote_literal(word), ' | ')::tsquery FROM lexeme WHERE matches <= {candidates} OR matches = n
  )
  LIMIT {candidates}
), nearest AS MATERIALIZED (
  {nearest}
), candidate AS MATERIALIZED (
  SELECT i.id, i.words, length(i.words) / avg(length(i.words)) OVER () AS relative_length
  FROM item i WHERE i.id IN (SELECT id FROM matching UNION SELECT id FROM nearest)
), word_count AS (
  -- A word in the title counts twice.
  SELECT c.id, c.relative_length, l.rarity, cardinality(u.positions) + cardinality(array_positions(u.weights, 'A')) AS n
  FROM candidate c CROSS JOIN LATERAL unnest(c.words) AS u JOIN lexeme l ON l.word = u.lexeme
), bm25 AS (
  -- Robertson and Zaragoza 2009, with the usual k1 = 1.2 and b = 0.75
  SELECT id, sum(rarity * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * relative_length))) AS score FROM word_count GROUP BY id
), scored AS (
  SELECT
    c.id, d.summary_key,
    CASE WHEN %(mode)s <> 'text' THEN 1 - (d.embedding::halfvec({dimensions}) <=> %(vector)s) END AS cosine,
    CASE WHEN %(mode)s <> 'vector' THEN coalesce(b.score / nullif(max(b.score) OVER (), 0), 0) END AS words
  FROM candidate c
  JOIN digest d ON d.version_id = {version} AND d.item_id = c.id
  LEFT JOIN bm25 b ON b.id = c.id
)
SELECT
  i.id, i.url, r.full_name AS repo, i.number, i.type, i.state, i.author, i.labels, i.title, s.text AS summary, s.source AS summary_source,
  CASE %(mode)s WHEN 'vector' THEN cosine WHEN 'text' THEN scored.words ELSE cosine + {text_weight} * scored.words END AS score,
  cosine, scored.words AS word_score, i.created_at, i.updated_at, i.closed_at
FROM scored
JOIN item i ON i.id = scored.id
JOIN repository r ON r.id = i.repository_id
JOIN summary s ON s.key = scored.summary_key
WHERE %(mode)s <> 'text' OR scored.words > 0
ORDER BY score DESC, i.id
LIMIT {limit}
