-- Purges that reach everything and end, and leases of repositories for crawls that share a list.

ALTER TABLE purge
  ADD COLUMN repository_node_id text,  -- a renamed repository stays purged, and whoever takes its name is not
  ADD COLUMN item_node_id text,  -- an item stays purged when it is transferred
  ADD COLUMN finished_at timestamptz;  -- null: rows are still being deleted; the same command goes on
CREATE UNIQUE INDEX purge_once ON purge (
  host, lower(coalesce(repository, '')), coalesce(repository_node_id, ''), coalesce(number, 0), lower(coalesce(author, ''))
);
CREATE INDEX purge_author ON purge (lower(author)) WHERE author IS NOT NULL;
CREATE INDEX purge_repository ON purge (lower(repository)) WHERE repository IS NOT NULL;
CREATE INDEX purge_repository_node ON purge (repository_node_id) WHERE repository_node_id IS NOT NULL;
CREATE INDEX purge_item_node ON purge (item_node_id) WHERE item_node_id IS NOT NULL;

-- Whether a purge names it. A repository is the same by node id, or by name as long as one of the two does not know the node id.
-- Each EXISTS finds its rows by an index, so a long list of purges costs no more than a short one.
CREATE FUNCTION purged_repository(host text, name text, node text) RETURNS boolean LANGUAGE sql STABLE RETURN
  EXISTS (SELECT FROM purge p WHERE p.host = $1 AND p.repository_node_id = $3 AND p.number IS NULL AND p.author IS NULL)
  OR EXISTS (
    SELECT FROM purge p WHERE p.host = $1 AND p.repository IS NOT NULL AND lower(p.repository) = lower($2)
      AND (p.repository_node_id IS NULL OR $3 IS NULL) AND p.number IS NULL AND p.author IS NULL
  );

CREATE FUNCTION purged_item(host text, name text, node text, number integer, item_node text, author text) RETURNS boolean
LANGUAGE sql STABLE RETURN
  EXISTS (SELECT FROM purge p WHERE p.host = $1 AND p.item_node_id = $5)
  OR EXISTS (
    SELECT FROM purge p WHERE p.host = $1 AND p.author IS NOT NULL AND lower(p.author) = lower($6) AND p.repository IS NULL
  )
  OR EXISTS (
    SELECT FROM purge p WHERE p.host = $1 AND p.repository_node_id = $3
      AND (p.number IS NULL OR p.number = $4) AND (p.author IS NULL OR lower(p.author) = lower($6))
  )
  OR EXISTS (
    SELECT FROM purge p WHERE p.host = $1 AND p.repository IS NOT NULL AND lower(p.repository) = lower($2)
      AND (p.repository_node_id IS NULL OR $3 IS NULL)
      AND (p.number IS NULL OR p.number = $4) AND (p.author IS NULL OR lower(p.author) = lower($6))
  );

-- A repository of the followed list is leased by the crawl that sweeps it, so that crawls at the same time share the list.
ALTER TABLE repository
  ADD COLUMN released_at timestamptz NOT NULL DEFAULT 'epoch',  -- when its last lease ended, by our clock: longest ago comes first
  ADD COLUMN not_before timestamptz,  -- archived and gone ones are looked at more rarely; by GitHub's clock
  ADD COLUMN lease_token bigint,
  ADD COLUMN lease_worker integer,
  ADD COLUMN lease_until timestamptz;
ALTER TABLE repository SET (fillfactor = 70);  -- every crawl updates every row twice
UPDATE repository r SET released_at = c.committed_at
FROM (SELECT repository_id, min(committed_at) AS committed_at FROM checkpoint GROUP BY 1) AS c WHERE r.id = c.repository_id;
CREATE INDEX repository_released ON repository (released_at, id) WHERE followed;
