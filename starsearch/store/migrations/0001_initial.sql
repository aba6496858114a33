-- Items, what is due, digests by index version, and everything needed to prove that nothing is lost.
--
-- Identity of an item is (repository_id, number). Keys of large tables carry partition_at, which never changes, so that they can
-- be partitioned by time without renaming a key. No extension but vector, no collation but the database's own.

CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE repository (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  host text NOT NULL DEFAULT 'github.com',
  full_name text NOT NULL,
  node_id text,
  database_id bigint,
  first_seen_at timestamptz NOT NULL DEFAULT now(),
  gone_at timestamptz,  -- deleted, made private, or its name taken over by another repository
  UNIQUE (host, node_id),
  UNIQUE (host, database_id)
);
CREATE UNIQUE INDEX repository_name ON repository (host, lower(full_name)) WHERE gone_at IS NULL;

CREATE TABLE checkpoint (
  repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
  source text NOT NULL,
  high_water timestamptz NOT NULL,  -- everything updated before this moment is stored
  committed_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (repository_id, source)
);

-- A row without stored_at is an item whose existence a source has told us, and whose text is still to be fetched.
CREATE TABLE item (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
  number integer NOT NULL CHECK (number > 0),
  node_id text UNIQUE,
  database_id bigint UNIQUE,
  partition_at timestamptz NOT NULL DEFAULT now(),
  known_at timestamptz NOT NULL DEFAULT now(),
  stored_at timestamptz,
  type text CHECK (type IN ('issue', 'pull_request')),
  state text CHECK (state IN ('open', 'closed', 'merged')),
  title text,
  body text,
  url text,
  author text,
  labels text[] NOT NULL DEFAULT '{}',
  comments jsonb NOT NULL DEFAULT '[]',
  comments_count integer,
  created_at timestamptz,
  updated_at timestamptz,
  closed_at timestamptz,
  merged_at timestamptz,
  excerpt boolean NOT NULL DEFAULT false,
  content_hash bytea,
  hash_recipe text,
  tombstoned_at timestamptz,
  -- the first 8,000 characters hold the matter; a tsvector may not exceed 1 MB
  words tsvector GENERATED ALWAYS AS (
    setweight(to_tsvector('english', coalesce(title, '')), 'A') || to_tsvector('english', left(coalesce(body, ''), 8000))
  ) STORED,
  UNIQUE (repository_id, number),
  UNIQUE (id, partition_at),
  CHECK (stored_at IS NULL OR (type IS NOT NULL AND state IS NOT NULL AND title IS NOT NULL AND content_hash IS NOT NULL))
);
CREATE INDEX item_words ON item USING gin (words);
CREATE INDEX item_created_at ON item (created_at);
CREATE INDEX item_url ON item (url);

-- What was removed for good must not come back with the next crawl.
CREATE TABLE purge (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  host text NOT NULL DEFAULT 'github.com',
  repository text,
  number integer,
  author text,
  purged_at timestamptz NOT NULL DEFAULT now(),
  CHECK (author IS NOT NULL OR repository IS NOT NULL)
);

CREATE TABLE run (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  counts jsonb NOT NULL DEFAULT '{}'
);

CREATE TABLE rejection (
  run_id bigint NOT NULL REFERENCES run ON DELETE CASCADE,
  source text NOT NULL,
  line integer NOT NULL,
  reason text NOT NULL
);
CREATE INDEX rejection_run ON rejection (run_id);

-- One way to make digests. Exactly one serves search; a shadow is being built beside it.
CREATE TABLE index_version (
  id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  fingerprint text NOT NULL UNIQUE,
  embedding_model text NOT NULL,
  embedding_revision text NOT NULL,
  embedding_base_url text,
  dimensions integer NOT NULL CHECK (dimensions BETWEEN 1 AND 4000),
  text_recipe text NOT NULL,
  summary_model text NOT NULL,
  prompt_version text NOT NULL,
  status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'shadow', 'retired')),
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX index_version_active ON index_version (status) WHERE status = 'active';

-- Keyed by model, prompt version, parameters and truncated text: the same text is summarized once, whoever posted it.
CREATE TABLE summary (
  key bytea PRIMARY KEY,
  text text NOT NULL CHECK (text <> ''),
  source text NOT NULL CHECK (source IN ('model', 'extractive')),
  model text NOT NULL,
  prompt_version text NOT NULL,
  prompt_tokens integer NOT NULL,
  completion_tokens integer NOT NULL,
  run_id bigint REFERENCES run,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- One partition and one HNSW index per index version, made by store/versions.py: retiring a version drops a table.
CREATE TABLE digest (
  version_id smallint NOT NULL REFERENCES index_version,
  item_id bigint NOT NULL,
  partition_at timestamptz NOT NULL,
  content_hash bytea NOT NULL,
  summary_key bytea NOT NULL REFERENCES summary,
  embedding halfvec NOT NULL,
  run_id bigint REFERENCES run,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (version_id, item_id, partition_at),
  FOREIGN KEY (item_id, partition_at) REFERENCES item (id, partition_at) ON DELETE CASCADE
) PARTITION BY LIST (version_id);

-- What is due, filled by one query over content hash and version (store/due.sql) in the transaction that stores an item.
-- due_at doubles as the lease's expiry; lease_token fences whoever held the lease before.
CREATE SEQUENCE lease_token;
CREATE SEQUENCE worker AS integer CYCLE;
CREATE TABLE due (
  version_id smallint NOT NULL REFERENCES index_version,
  item_id bigint NOT NULL REFERENCES item ON DELETE CASCADE,
  priority smallint NOT NULL DEFAULT 0,  -- 0 live, 1 backfill
  due_at timestamptz NOT NULL DEFAULT now(),
  lease_token bigint,
  lease_worker integer,
  attempts smallint NOT NULL DEFAULT 0,
  reason text,
  detail text,
  PRIMARY KEY (version_id, item_id)
) WITH (fillfactor = 70);
CREATE INDEX due_next ON due (version_id, priority, attempts, item_id);

CREATE TABLE dead_letter (
  version_id smallint NOT NULL REFERENCES index_version,
  item_id bigint NOT NULL REFERENCES item ON DELETE CASCADE,
  stage text NOT NULL,
  reason text NOT NULL,
  detail text NOT NULL,
  attempts smallint NOT NULL,
  content_hash bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (version_id, item_id)
);

-- An intent is written before each call to an engine; what a kill leaves open is counted, not guessed.
CREATE TABLE engine_call (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id bigint REFERENCES run ON DELETE CASCADE,
  purpose text NOT NULL CHECK (purpose IN ('summary', 'embedding')),
  model text NOT NULL,
  lease_token bigint NOT NULL,
  items integer NOT NULL,
  intended_at timestamptz NOT NULL DEFAULT now(),
  settled_at timestamptz,
  outcome text,
  requests integer,
  prompt_tokens integer,
  completion_tokens integer
);
CREATE INDEX engine_call_open ON engine_call (lease_token) WHERE settled_at IS NULL;
