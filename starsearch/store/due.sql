-- What is due: stored items whose digest in a live index version is missing or was made from other content.
-- With ids: only among those items, whose content just changed, so that earlier attempts no longer count.
INSERT INTO due (version_id, item_id, priority)
SELECT v.id, i.id, %(priority)s
FROM index_version v
CROSS JOIN item i
LEFT JOIN digest d ON d.version_id = v.id AND d.item_id = i.id AND d.partition_at = i.partition_at
LEFT JOIN dead_letter x ON x.version_id = v.id AND x.item_id = i.id
WHERE v.status <> 'retired'
  AND (%(ids)s::bigint[] IS NULL OR i.id = ANY (%(ids)s::bigint[]))
  AND i.stored_at IS NOT NULL AND i.tombstoned_at IS NULL
  AND i.repository_id NOT IN (SELECT id FROM repository WHERE gone_at IS NOT NULL)
  AND d.content_hash IS DISTINCT FROM i.content_hash
  AND x.content_hash IS DISTINCT FROM i.content_hash
ORDER BY v.id, i.id
ON CONFLICT (version_id, item_id) DO UPDATE
  SET attempts = 0, priority = least(due.priority, excluded.priority)
  WHERE %(ids)s::bigint[] IS NOT NULL
