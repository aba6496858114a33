-- What a digest refers to is checked once per statement. As foreign keys, checked row by row, its summary, version and run took a
-- third of the time of writing 500 digests. The item stays a foreign key: it takes its digests along when it goes.

ALTER TABLE digest DROP CONSTRAINT digest_version_id_fkey, DROP CONSTRAINT digest_run_id_fkey, DROP CONSTRAINT digest_summary_key_fkey;

-- A digest's version, run and summary exist, and the summary was made by the version's own model and prompt. They are locked as a
-- foreign key locks them: who would delete one waits for us, and then finds the digest (refuse_removed).
CREATE OR REPLACE FUNCTION refuse_mixed_digests() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  all_ones bigint;
  right_ones bigint;
BEGIN
  SELECT count(*) INTO all_ones FROM written;
  IF all_ones = 0 THEN  -- INSERT … ON CONFLICT fires the trigger of UPDATE too
    RETURN NULL;
  END IF;
  PERFORM FROM index_version WHERE id IN (SELECT version_id FROM written) FOR KEY SHARE;
  PERFORM FROM run WHERE id IN (SELECT run_id FROM written) FOR KEY SHARE;
  SELECT count(*) INTO right_ones FROM (
    SELECT FROM written w
    JOIN index_version v ON v.id = w.version_id
    JOIN summary s ON s.key = w.summary_key AND s.model = v.summary_model AND s.prompt_version = v.prompt_version
    LEFT JOIN run r ON r.id = w.run_id
    WHERE w.run_id IS NULL OR r.id IS NOT NULL
    FOR KEY SHARE OF s
  ) AS right_one;
  IF right_ones = all_ones THEN
    RETURN NULL;
  END IF;
  IF EXISTS (SELECT FROM written w JOIN index_version v ON v.id = w.version_id JOIN summary s ON s.key = w.summary_key
    WHERE (s.model, s.prompt_version) IS DISTINCT FROM (v.summary_model, v.prompt_version))
  THEN
    RAISE EXCEPTION 'a digest of one index version cannot have the summary of another model or prompt' USING ERRCODE = 'check_violation';
  END IF;
  RAISE EXCEPTION 'a digest needs a version, a summary and a run that exist' USING ERRCODE = 'foreign_key_violation';
END
$$;

-- TG_ARGV: the column of digest that refers to the table's key, and that key.
CREATE FUNCTION refuse_removed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  used boolean;
BEGIN
  EXECUTE format('SELECT EXISTS (SELECT FROM removed r JOIN digest d ON d.%I = r.%I)', TG_ARGV[0], TG_ARGV[1]) INTO used;
  IF used THEN
    RAISE EXCEPTION 'digests still refer to it: % of %', TG_ARGV[1], TG_TABLE_NAME USING ERRCODE = 'foreign_key_violation';
  END IF;
  RETURN NULL;
END
$$;

CREATE FUNCTION refuse_change_under_digests() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'digests refer to %: its keys do not change, and it is not emptied', TG_TABLE_NAME USING ERRCODE = 'foreign_key_violation';
END
$$;

CREATE FUNCTION referred_to_by_digests(referred regclass, key text, column_of_digest text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format('CREATE TRIGGER in_use AFTER DELETE ON %s REFERENCING OLD TABLE AS removed FOR EACH STATEMENT '
    'EXECUTE FUNCTION refuse_removed(%L, %L)', referred, column_of_digest, key);
  EXECUTE format('CREATE TRIGGER fixed_key BEFORE UPDATE OF %I ON %s FOR EACH ROW WHEN (OLD.%I <> NEW.%I) '
    'EXECUTE FUNCTION refuse_change_under_digests()', key, referred, key, key);
  EXECUTE format('CREATE TRIGGER not_emptied BEFORE TRUNCATE ON %s EXECUTE FUNCTION refuse_change_under_digests()', referred);
END
$$;
SELECT referred_to_by_digests('summary', 'key', 'summary_key');
SELECT referred_to_by_digests('index_version', 'id', 'version_id');
SELECT referred_to_by_digests('run', 'id', 'run_id');
