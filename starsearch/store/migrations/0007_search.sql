-- What search needs: an index for each filter that can be selective, and one view of all that may be found.

-- Labels are compared without case, as on GitHub.
CREATE FUNCTION lowered(text[]) RETURNS text[] LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN ARRAY(SELECT lower(label) FROM unnest($1) AS label);

CREATE INDEX item_partition_at ON item (partition_at);
DROP INDEX item_created_at;  -- nothing reads it: "since" and "until" mean partition_at, which undated items have too
CREATE INDEX item_author ON item (lower(author));
CREATE INDEX item_labels ON item USING gin (lowered(labels));

-- Ranking reads the words of up to 2,000 items a question: they stay in the row, unpacked, and the body moves out before them.
-- 7 ms a question instead of 20; rows stored before change as they are written again.
ALTER TABLE item ALTER COLUMN words SET STORAGE MAIN;
-- More of the common words are known by name and frequency, so that a search need not count them; see store/weigh.sql.
ALTER TABLE item ALTER COLUMN words SET STATISTICS 400;

-- Everything that search can find, one row an item, by the version that serves: for SQL, and for whoever joins more to it.
CREATE VIEW searchable AS
SELECT
  i.id, r.host, r.full_name AS repo, i.number, i.type, i.state, i.title, s.text AS summary, s.source AS summary_source, i.url,
  i.author, i.labels, i.partition_at, i.created_at, i.updated_at, i.closed_at, i.merged_at, i.words, d.embedding, d.version_id,
  left(v.fingerprint, 12) AS index_version
FROM index_version v
JOIN digest d ON d.version_id = v.id
JOIN item i ON i.id = d.item_id AND i.partition_at = d.partition_at
JOIN repository r ON r.id = i.repository_id
JOIN summary s ON s.key = d.summary_key
WHERE v.status = 'active' AND i.tombstoned_at IS NULL AND r.gone_at IS NULL;

-- `ask` spends too.
ALTER TABLE engine_call
  DROP CONSTRAINT engine_call_purpose_check,
  ADD CONSTRAINT engine_call_purpose_check CHECK (purpose IN ('summary', 'embedding', 'answer'));
ALTER TABLE engine_usage
  DROP CONSTRAINT engine_usage_purpose_check,
  ADD CONSTRAINT engine_usage_purpose_check CHECK (purpose IN ('summary', 'embedding', 'answer'));
