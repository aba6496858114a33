-- A failed fetch is about the update that had been seen then: it makes nothing of a later one dead, and ends when the text is stored.
CREATE OR REPLACE VIEW item_state AS
SELECT
  i.id, 0::smallint AS version_id,
  CASE
    WHEN i.stored_at IS NULL AND f.dead THEN 'unfetchable'
    WHEN i.stored_at IS NULL THEN 'unfetched'
    WHEN i.seen_updated_at > coalesce(i.updated_at, '-infinity') AND f.dead IS NOT TRUE THEN 'stale'
    ELSE 'stored'
  END AS state
FROM item i JOIN repository r ON r.id = i.repository_id
LEFT JOIN fetch_failure f ON f.item_id = i.id AND f.seen_updated_at IS NOT DISTINCT FROM i.seen_updated_at
WHERE i.tombstoned_at IS NULL AND r.gone_at IS NULL
UNION ALL
SELECT
  i.id, v.id,
  CASE
    WHEN d.content_hash = i.content_hash AND s.key IS NOT NULL THEN 'digested'
    WHEN x.content_hash = i.content_hash THEN 'dead'
    WHEN u.item_id IS NOT NULL THEN 'due'
    WHEN d.content_hash = i.content_hash THEN 'no summary'
    WHEN d.item_id IS NOT NULL THEN 'outdated'
    ELSE 'missing'
  END
FROM index_version v
CROSS JOIN item i
JOIN repository r ON r.id = i.repository_id
LEFT JOIN digest d ON d.version_id = v.id AND d.item_id = i.id AND d.partition_at = i.partition_at
LEFT JOIN summary s ON s.key = d.summary_key
LEFT JOIN dead_letter x ON x.version_id = v.id AND x.item_id = i.id
LEFT JOIN due u ON u.version_id = v.id AND u.item_id = i.id
WHERE v.status <> 'retired' AND i.stored_at IS NOT NULL AND i.tombstoned_at IS NULL AND r.gone_at IS NULL
UNION ALL
SELECT d.item_id, d.version_id, 'orphan'
FROM digest d JOIN index_version v ON v.id = d.version_id AND v.status <> 'retired'
WHERE NOT EXISTS (SELECT FROM item i WHERE i.id = d.item_id AND i.partition_at = d.partition_at);

-- What the view says of these has changed; those whose text was stored after all are over.
INSERT INTO tally_dirty SELECT DISTINCT block_of(item_id) FROM fetch_failure;
DELETE FROM fetch_failure f USING item i
WHERE i.id = f.item_id AND i.stored_at IS NOT NULL AND (i.seen_updated_at > coalesce(i.updated_at, '-infinity')) IS NOT TRUE;
