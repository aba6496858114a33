-- What the web process needs of its own: keys of programs, people's thumbs, and a secret that all its replicas share.

CREATE TABLE api_key (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL CHECK (name <> ''),
  sha256 bytea NOT NULL UNIQUE CHECK (length(sha256) = 32),  -- a key is 256 random bits: nothing slower than a hash is needed
  requests_per_minute integer CHECK (requests_per_minute > 0),  -- null: the process's own limit
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);
CREATE UNIQUE INDEX api_key_name ON api_key (name) WHERE revoked_at IS NULL;

-- Whether a hit, or an answer (item_id is null), was what somebody looked for. Nothing about who says so; gone with its item.
CREATE TABLE feedback (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  given_at timestamptz NOT NULL DEFAULT now(),
  about text NOT NULL CHECK (about IN ('hit', 'answer')),
  query text NOT NULL CHECK (query <> '' AND length(query) <= 2000),
  mode text NOT NULL CHECK (mode IN ('hybrid', 'vector', 'text')),
  index_version text NOT NULL CHECK (index_version ~ '^[0-9a-f]{12}$'),
  item_id bigint REFERENCES item ON DELETE CASCADE,
  useful boolean NOT NULL,
  CHECK ((about = 'hit') = (item_id IS NOT NULL))
);
CREATE INDEX feedback_item ON feedback (item_id);

-- Signs what the server hands out and gets back. 244 random bits.
CREATE TABLE web_secret (
  single boolean PRIMARY KEY DEFAULT true CHECK (single),
  secret bytea NOT NULL DEFAULT sha256(convert_to(gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'))
);
INSERT INTO web_secret DEFAULT VALUES;

-- Work done by hour, for the status page.
CREATE INDEX engine_call_settled ON engine_call (settled_at);

-- Who serves the web reads, and adds thumbs; nothing else. New tables are readable too. A user without the right to make roles goes on
-- without: `serve` then says what to do (docs/operations.md). Roles belong to the server, so another database may have made it already.
DO $$
BEGIN
  BEGIN
    CREATE ROLE starsearch_reader NOLOGIN;
  EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL;
    WHEN insufficient_privilege THEN RETURN;
  END;
  BEGIN
    EXECUTE format('GRANT starsearch_reader TO %I', current_user);
  EXCEPTION
    WHEN insufficient_privilege THEN NULL;
  END;
  EXECUTE format('GRANT USAGE ON SCHEMA %I TO starsearch_reader', current_schema());
  EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA %I TO starsearch_reader', current_schema());
  EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT ON TABLES TO starsearch_reader', current_schema());
  GRANT INSERT ON feedback TO starsearch_reader;
END
$$;
