-- The items behind the gaps: of each state the repositories with most of them, and the first items of each.
-- Looks into the first few blocks of each state, which is all of them unless tens of thousands of items are missing.
WITH dirty AS MATERIALIZED (
  SELECT DISTINCT block FROM tally_dirty
), open AS MATERIALIZED (
  SELECT block FROM (
    SELECT block, row_number() OVER (PARTITION BY version_id, state ORDER BY block) AS place FROM tally
    WHERE version_id = ANY (%(versions)s::smallint[]) AND state NOT IN ('stored', 'digested', 'due')
      AND state NOT IN ('dead', 'unfetchable')
  ) AS kept WHERE place <= coalesce(%(blocks)s::integer, place)
  UNION SELECT block FROM dirty
), found AS (
  SELECT s.version_id, s.state, s.id FROM open CROSS JOIN LATERAL (
    SELECT version_id, state, id FROM item_state WHERE id = ANY (ids_of(open.block)) OFFSET 0
  ) AS s
  WHERE s.version_id = ANY (%(versions)s::smallint[]) AND s.state NOT IN ('stored', 'digested', 'due', 'dead', 'unfetchable')
), named AS (
  SELECT
    f.version_id, f.state, coalesce(r.full_name, '') AS repository,
    coalesce(i.url, r.full_name || '#' || i.number, 'item ' || f.id) AS address, f.id
  FROM found f LEFT JOIN item i ON i.id = f.id LEFT JOIN repository r ON r.id = i.repository_id
  UNION ALL
  SELECT 0, 'lost', coalesce(r.full_name, ''), coalesce(l.url, coalesce(r.full_name, 'repository ' || l.repository_id) || '#' || l.number), 0
  FROM lost_item l LEFT JOIN repository r ON r.id = l.repository_id
  WHERE NOT EXISTS (SELECT FROM item i WHERE i.repository_id = l.repository_id AND i.number = l.number)
    AND NOT EXISTS (SELECT FROM item i WHERE i.url = l.url)
), ranked AS (
  SELECT *,
    count(*) OVER by_repository AS total,
    row_number() OVER (PARTITION BY version_id, state, repository ORDER BY id, address) AS place
  FROM named WINDOW by_repository AS (PARTITION BY version_id, state, repository)
), placed AS (
  SELECT *, dense_rank() OVER (PARTITION BY version_id, state ORDER BY total DESC, repository) AS repository_place FROM ranked
)
SELECT version_id, state, repository, address, total FROM placed
WHERE place <= coalesce(%(examples)s::integer, place) AND repository_place <= coalesce(%(repositories)s::integer, repository_place)
ORDER BY version_id, state, repository_place, place
