-- Completeness that costs the same at a million items as at a thousand: the state of every item is defined once (item_state), kept
-- as counts per block of items (tally), and counted again where something changed (tally_dirty).
--
-- Triggers do the marking, once per statement, so whoever changes a row by hand marks it too; they are ENABLE ALWAYS, so that
-- session_replication_role does not switch them off. Marks are only ever inserted by writers: 24 of them share no hot row.

CREATE TABLE tally (
  block bigint NOT NULL,
  version_id smallint NOT NULL,  -- 0: what no index version changes (known, stored, fetched)
  state text NOT NULL,
  items integer NOT NULL,
  PRIMARY KEY (block, version_id, state)
);
CREATE INDEX tally_gaps ON tally (version_id, state, block) WHERE state NOT IN ('stored', 'digested', 'due');
CREATE TABLE tally_dirty (block bigint NOT NULL);  -- to be counted again

-- Rows of item that were deleted by anything but a purge or a merge of repositories: nothing else would tell that they were there.
CREATE TABLE lost_item (
  repository_id bigint NOT NULL,
  number integer NOT NULL,
  url text,
  lost_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (repository_id, number)
);

-- What maintain found when it counted everything.
CREATE TABLE reconciliation (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  counted_at timestamptz NOT NULL DEFAULT now(),
  items bigint NOT NULL,
  differences jsonb NOT NULL,  -- [{version_id, state, kept, counted}]; empty: the kept counts were right
  seconds real NOT NULL
);

-- From a change on GitHub to searchable, for items that changed while they were followed; one row per batch.
CREATE TABLE latency (
  finished_at timestamptz NOT NULL DEFAULT now(),
  version_id smallint NOT NULL,
  seconds real[] NOT NULL
);
CREATE INDEX latency_finished ON latency (finished_at);

-- Nearest vectors by the index against nearest vectors by counting them all.
CREATE TABLE recall (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  measured_at timestamptz NOT NULL DEFAULT now(),
  version_id smallint NOT NULL,
  filter text NOT NULL,
  queries integer NOT NULL,
  recall real NOT NULL
);

ALTER TABLE due ADD COLUMN since timestamptz NOT NULL DEFAULT now();  -- for how long it has been waiting, failures included

CREATE FUNCTION block_of(item_id bigint) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN item_id / 128;

-- Every counted item once under version 0, and once more under each version that is not retired.
CREATE VIEW item_state AS
SELECT
  i.id, 0::smallint AS version_id,
  CASE
    WHEN i.stored_at IS NULL AND f.dead THEN 'unfetchable'
    WHEN i.stored_at IS NULL THEN 'unfetched'
    WHEN i.seen_updated_at > coalesce(i.updated_at, '-infinity') AND f.dead IS NOT TRUE THEN 'stale'
    ELSE 'stored'
  END AS state
FROM item i JOIN repository r ON r.id = i.repository_id LEFT JOIN fetch_failure f ON f.item_id = i.id
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

CREATE FUNCTION mark_items() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty SELECT DISTINCT block_of(id) FROM changed;
  RETURN NULL;
END $$;

CREATE FUNCTION mark_deleted_items() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty SELECT DISTINCT block_of(id) FROM changed;
  IF coalesce(current_setting('starsearch.removing', true), '') = '' THEN
    INSERT INTO lost_item (repository_id, number, url) SELECT repository_id, number, url FROM changed WHERE tombstoned_at IS NULL
    ON CONFLICT (repository_id, number) DO UPDATE SET lost_at = now();
  END IF;
  RETURN NULL;
END $$;

CREATE FUNCTION mark_item_ids() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty SELECT DISTINCT block_of(item_id) FROM changed;
  RETURN NULL;
END $$;

CREATE FUNCTION mark_summaries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty SELECT DISTINCT block_of(d.item_id) FROM changed JOIN digest d ON d.summary_key = changed.key;
  RETURN NULL;
END $$;

CREATE FUNCTION mark_repository() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty SELECT DISTINCT block_of(id) FROM item WHERE repository_id = NEW.id;
  RETURN NULL;
END $$;

CREATE FUNCTION mark_everything() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO tally_dirty
  SELECT block FROM tally UNION SELECT generate_series(0, (SELECT block_of(max(id)) FROM item));
  RETURN NULL;
END $$;

CREATE FUNCTION watch(watched regclass, operation text, transition text, function text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format(
    'CREATE TRIGGER tally_%s AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %I()',
    lower(operation), operation, watched, transition, function
  );
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER tally_%s', watched, lower(operation));
END $$;

-- A statement that names a partition fires the partition's triggers only: each gets its own when it is made.
CREATE FUNCTION watch_items_of(watched regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM watch(watched, 'INSERT', 'REFERENCING NEW TABLE AS changed', 'mark_item_ids');
  PERFORM watch(watched, 'UPDATE', 'REFERENCING NEW TABLE AS changed', 'mark_item_ids');
  PERFORM watch(watched, 'DELETE', 'REFERENCING OLD TABLE AS changed', 'mark_item_ids');
  PERFORM watch(watched, 'TRUNCATE', '', 'mark_everything');
END $$;

SELECT watch('item', 'INSERT', 'REFERENCING NEW TABLE AS changed', 'mark_items');
SELECT watch('item', 'UPDATE', 'REFERENCING NEW TABLE AS changed', 'mark_items');
SELECT watch('item', 'DELETE', 'REFERENCING OLD TABLE AS changed', 'mark_deleted_items');
SELECT watch('item', 'TRUNCATE', '', 'mark_everything');
SELECT watch('summary', 'UPDATE', 'REFERENCING OLD TABLE AS changed', 'mark_summaries');
SELECT watch('summary', 'DELETE', 'REFERENCING OLD TABLE AS changed', 'mark_summaries');
SELECT watch('summary', 'TRUNCATE', '', 'mark_everything');
SELECT watch('index_version', 'INSERT', '', 'mark_everything');
SELECT watch('index_version', 'DELETE', '', 'mark_everything');
SELECT watch('due', 'INSERT', 'REFERENCING NEW TABLE AS changed', 'mark_item_ids');
SELECT watch('due', 'DELETE', 'REFERENCING OLD TABLE AS changed', 'mark_item_ids');  -- its updates are leases: they change no state
SELECT watch('due', 'TRUNCATE', '', 'mark_everything');
SELECT watch_items_of(watched) FROM unnest('{digest, dead_letter, fetch_failure}'::regclass[]) AS watched;
SELECT watch_items_of(inhrelid) FROM pg_inherits WHERE inhparent = 'digest'::regclass;

CREATE TRIGGER tally_gone AFTER UPDATE OF gone_at ON repository
FOR EACH ROW WHEN (OLD.gone_at IS DISTINCT FROM NEW.gone_at) EXECUTE FUNCTION mark_repository();
ALTER TABLE repository ENABLE ALWAYS TRIGGER tally_gone;
CREATE TRIGGER tally_retired AFTER UPDATE OF status ON index_version
FOR EACH ROW WHEN ((OLD.status = 'retired') <> (NEW.status = 'retired')) EXECUTE FUNCTION mark_everything();
ALTER TABLE index_version ENABLE ALWAYS TRIGGER tally_retired;

-- Which digests a summary serves: asked when one is deleted, by a purge or by hand.
CREATE INDEX digest_summary ON digest (summary_key);
-- Freshness of what waits, and leases that are not plain waiting.
CREATE INDEX due_since ON due (version_id, since);

INSERT INTO tally_dirty SELECT generate_series(0, (SELECT block_of(max(id)) FROM item));
