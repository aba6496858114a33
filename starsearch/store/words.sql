-- The text leg: the digests of one index version that hold the question's rarest words, best first; those kept were found already.
-- In braces, filled in by words.py: the filters, what a text is worth before its length counts, and plain numbers.
WITH word AS MATERIALIZED (
  SELECT * FROM unnest(%(words)s::text[]::tsquery[], %(rarities)s::float8[]) AS word (query, rarity)
), kept AS MATERIALIZED (
  SELECT unnest(%(kept)s::bigint[]) AS id
), matching AS MATERIALIZED (
  (
    SELECT i.id, i.words
    FROM item i JOIN digest d ON d.version_id = {version} AND d.item_id = i.id AND d.partition_at = i.partition_at
    WHERE i.words @@ %(picks)s::text::tsquery AND i.id NOT IN (SELECT id FROM kept) AND {filters}
    LIMIT {candidates}
  )
  UNION ALL
  SELECT i.id, i.words FROM kept JOIN item i USING (id)
), relevant AS MATERIALIZED (
  SELECT id, length(words) AS length, {relevance} AS relevance, avg(length(words)) OVER () AS usual FROM matching
), scored AS (
  SELECT id, {discounted} AS score, usual FROM relevant
)
SELECT id, score, usual FROM scored WHERE score > 0 ORDER BY score DESC, id LIMIT {depth}
