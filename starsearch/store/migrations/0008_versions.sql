-- An index version owns all that makes its digests and where its engines are; a shadow is built beside the active one, and swapped.

ALTER TABLE index_version
  ADD COLUMN summary_base_url text,  -- null: the embedded engine, as for embedding_base_url
  ADD COLUMN sends_dimensions boolean NOT NULL DEFAULT false,  -- whether the engine is told how long its vectors are to be
  ADD COLUMN activated_at timestamptz,  -- when it last came to serve; a rollback goes to the shadow that served last
  ADD COLUMN gate jsonb;  -- what was measured of it and of the one before when it came to serve
UPDATE index_version SET activated_at = created_at WHERE status = 'active';
ALTER TABLE index_version ADD CHECK (status <> 'active' OR activated_at IS NOT NULL);

-- What a version's digests mean never changes; only where its engines are, and whether it serves.
CREATE FUNCTION refuse_changed_recipe() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the recipe of index version % is fixed: another recipe is another version', old.id USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER index_version_recipe
BEFORE UPDATE OF fingerprint, embedding_model, embedding_revision, dimensions, text_recipe, summary_model, prompt_version ON index_version
FOR EACH ROW WHEN (
  (old.fingerprint, old.embedding_model, old.embedding_revision, old.dimensions, old.text_recipe, old.summary_model, old.prompt_version)
  IS DISTINCT FROM
  (new.fingerprint, new.embedding_model, new.embedding_revision, new.dimensions, new.text_recipe, new.summary_model, new.prompt_version)
)
EXECUTE FUNCTION refuse_changed_recipe();

-- A digest's summary was made by its version's own model and prompt. Once per statement: the foreign keys cost more than this.
CREATE FUNCTION refuse_mixed_digests() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (
    SELECT FROM written w
    JOIN index_version v ON v.id = w.version_id
    JOIN summary s ON s.key = w.summary_key
    WHERE (s.model, s.prompt_version) IS DISTINCT FROM (v.summary_model, v.prompt_version)
  ) THEN
    RAISE EXCEPTION 'a digest of one index version cannot have the summary of another model or prompt' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NULL;
END
$$;
-- A statement that names a partition fires the partition's triggers only: each gets its own when it is made.
CREATE FUNCTION refuse_mixed_digests_of(digests regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER unmixed_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS written '
    'FOR EACH STATEMENT EXECUTE FUNCTION refuse_mixed_digests()', digests);
  EXECUTE format('CREATE TRIGGER unmixed_update AFTER UPDATE ON %s REFERENCING NEW TABLE AS written '
    'FOR EACH STATEMENT EXECUTE FUNCTION refuse_mixed_digests()', digests);
END
$$;
SELECT refuse_mixed_digests_of('digest');
SELECT refuse_mixed_digests_of(inhrelid) FROM pg_inherits WHERE inhparent = 'digest'::regclass;
