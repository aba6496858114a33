-- How many items hold each word of a question. A common word's number comes from the planner's statistics (ANALYZE keeps those
-- of the commonest), because counting it would read half the table; any other is counted, up to {most}.
WITH size AS (
  -- the planner's estimate, and a count while the table is too young to have one
  SELECT CASE WHEN reltuples >= {most} THEN reltuples ELSE (SELECT count(*) FROM item) END::float8 AS rows
  FROM pg_class WHERE oid = 'item'::regclass
), common AS (
  SELECT u.word, u.frequency
  FROM pg_stats, unnest(most_common_elems::text::text[], most_common_elem_freqs) AS u (word, frequency)
  WHERE schemaname = current_schema() AND tablename = 'item' AND attname = 'words'
)
SELECT asked.word, coalesce(round(common.frequency * size.rows), counted.n)::bigint AS items, size.rows AS of
FROM (SELECT lexeme AS word FROM unnest(to_tsvector('english', %(query)s))) AS asked
CROSS JOIN size
LEFT JOIN common USING (word)
CROSS JOIN LATERAL (
  SELECT count(*) AS n FROM (
    SELECT FROM item
    WHERE common.word IS NULL
      AND words @@ ('''' || replace(replace(asked.word, '\', '\\'), '''', '''''') || '''')::tsquery
    LIMIT {most}
  ) AS matching
) AS counted
ORDER BY items, word
