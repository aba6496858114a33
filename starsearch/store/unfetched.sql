-- Of these blocks the items whose text is still to be fetched and that nobody at work is about to fetch: no crawl leases their
-- repository, no backfill of the last week has their list open. Nor did anybody fail at them since the run began.
-- `repositories`: of those alone; null: of the whole host.
WITH waiting AS MATERIALIZED (
  SELECT s.id FROM unnest(%(blocks)s::bigint[]) AS open (block) CROSS JOIN LATERAL (
    SELECT id, state FROM item_state WHERE id = ANY (ids_of(open.block)) AND version_id = 0 OFFSET 0
  ) AS s
  WHERE s.state IN ('unfetched', 'stale')
)
SELECT i.node_id, r.node_id, r.id
FROM waiting w JOIN item i ON i.id = w.id JOIN repository r ON r.id = i.repository_id
WHERE r.host = %(host)s AND (%(repositories)s::bigint[] IS NULL OR r.id = ANY (%(repositories)s::bigint[]))
  AND i.node_id IS NOT NULL AND r.node_id IS NOT NULL
  AND NOT purged_item(r.host, r.full_name, r.node_id, i.number, i.node_id, i.author)
  AND NOT (r.lease_token IS NOT NULL AND r.lease_until > now() AND r.lease_worker IN (SELECT worker FROM living_worker))
  AND NOT EXISTS (
    SELECT FROM backfill_part p JOIN backfill b ON b.id = p.backfill_id AND b.finished_at IS NULL
    WHERE p.repository_id = r.id AND p.kind = i.type AND p.done_at IS NULL
      AND EXISTS (SELECT FROM run WHERE kind = 'backfill' AND finished_at IS NULL AND started_at > now() - interval '7 days')
  )
  AND NOT EXISTS (
    SELECT FROM fetch_failure f WHERE f.item_id = i.id AND f.failed_at >= (SELECT started_at FROM run WHERE id = %(run)s)
  )
ORDER BY i.id
