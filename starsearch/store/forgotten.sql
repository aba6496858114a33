-- What is due and was forgotten, looked for where the kept counts say that something is missing, or may be. What a shadow lacks is
-- bulk work (2), done by `reprocess` and behind everything else.
INSERT INTO due (version_id, item_id, priority)
SELECT s.version_id, s.id, CASE v.status WHEN 'shadow' THEN 2 ELSE 0 END
FROM (
  SELECT block FROM tally WHERE version_id <> 0 AND state IN ('missing', 'outdated', 'no summary') UNION SELECT block FROM tally_dirty
) AS open CROSS JOIN LATERAL (
  SELECT version_id, id, state FROM item_state WHERE id = ANY (ids_of(open.block)) OFFSET 0
) AS s
JOIN index_version v ON v.id = s.version_id
WHERE s.version_id <> 0 AND s.state IN ('missing', 'outdated', 'no summary')
ORDER BY s.version_id, s.id
ON CONFLICT (version_id, item_id) DO NOTHING
