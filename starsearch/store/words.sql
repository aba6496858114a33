-- The text leg: the digests of one index version that hold the question's rarest words, best first.
-- In braces, filled in by words.py: the filters and plain numbers.
WITH word AS MATERIALIZED (
  SELECT * FROM unnest(%(words)s::text[]::tsquery[], %(rarities)s::float8[]) AS word (query, rarity)
), matching AS MATERIALIZED (
  SELECT i.id, i.words
  FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
  WHERE i.words @@ %(picks)s::text::tsquery AND {filters}
  LIMIT {candidates}
), relevant AS MATERIALIZED (
  -- BM25, but for the count of a word in a text: ts_rank of one word is a sum of 1/i^2 over its places, which rises and levels off as
  -- BM25's n / (n + k) does. It finds as much, at a tenth of the cost of unpacking every candidate's words into rows.
  SELECT
    id, length(words) AS length,
    (SELECT sum(rarity * ts_rank('{{1,1,1,1}}', words, query)) FROM word) AS relevance
  FROM matching
), scored AS (
  SELECT id, relevance / ({flat} + (1 - {flat}) * length / nullif(avg(length) OVER (), 0)) AS score, avg(length) OVER () AS usual
  FROM relevant
)
SELECT id, score, usual FROM scored WHERE score > 0 ORDER BY score DESC, id LIMIT {depth}
