-- What is due among items whose content just changed, so that earlier attempts no longer count.
INSERT INTO due (version_id, item_id, priority)
SELECT version_id, id, %(priority)s
FROM item_state
WHERE id = ANY (%(ids)s::bigint[]) AND version_id <> 0 AND state IN ('missing', 'outdated', 'no summary', 'due')
ORDER BY version_id, id
ON CONFLICT (version_id, item_id) DO UPDATE SET attempts = 0, priority = least(due.priority, excluded.priority)
