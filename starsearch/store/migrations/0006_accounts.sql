-- What digesting costs, per call and per run, and whose turn it is to ask for a summary that several items share.

ALTER TABLE engine_call
  ADD COLUMN item_ids bigint[] NOT NULL DEFAULT '{}',  -- whom it was for, once settled; they share its cost. A null element: purged
  ADD COLUMN unanswered integer,  -- of the requests: no answer came, so what they cost is unknown
  ADD COLUMN cached_tokens integer,  -- of the prompt tokens
  ADD COLUMN seconds real;
CREATE INDEX engine_call_items ON engine_call USING gin (item_ids);
CREATE INDEX engine_call_unsettled ON engine_call (id) WHERE settled_at IS NULL OR outcome = 'abandoned';

-- The ledger's totals, kept in the transaction that settles a call: one row per run and model, so that years of calls add up in
-- milliseconds, and stay added up when old calls are removed. Several runs never write the same row.
CREATE TABLE engine_usage (
  run_id bigint NOT NULL REFERENCES run ON DELETE CASCADE,
  purpose text NOT NULL CHECK (purpose IN ('summary', 'embedding')),
  model text NOT NULL,
  calls integer NOT NULL,
  failed integer NOT NULL,
  items integer NOT NULL,  -- of the calls that succeeded
  requests integer NOT NULL,
  unanswered integer NOT NULL,
  prompt_tokens bigint NOT NULL,
  cached_tokens bigint NOT NULL,
  completion_tokens bigint NOT NULL,
  seconds double precision NOT NULL,  -- of all calls added up, although many run at a time
  first_at timestamptz NOT NULL,
  last_at timestamptz NOT NULL,
  PRIMARY KEY (run_id, purpose, model)
);
INSERT INTO engine_usage
SELECT run_id, purpose, model, count(*), count(*) FILTER (WHERE outcome <> 'ok'), coalesce(sum(items) FILTER (WHERE outcome = 'ok'), 0),
  coalesce(sum(requests), 0), 0, coalesce(sum(prompt_tokens), 0), 0, coalesce(sum(completion_tokens), 0), 0, min(intended_at), max(settled_at)
FROM engine_call WHERE settled_at IS NOT NULL AND requests IS NOT NULL AND run_id IS NOT NULL GROUP BY 1, 2, 3;

CREATE VIEW item_usage AS
SELECT u.item_id, c.id AS call_id, c.run_id, c.purpose, c.model, c.outcome,
  c.requests::float8 / cardinality(c.item_ids) AS requests, c.prompt_tokens::float8 / cardinality(c.item_ids) AS prompt_tokens,
  c.cached_tokens::float8 / cardinality(c.item_ids) AS cached_tokens,
  c.completion_tokens::float8 / cardinality(c.item_ids) AS completion_tokens, c.seconds / cardinality(c.item_ids) AS seconds
FROM engine_call c CROSS JOIN unnest(c.item_ids) AS u (item_id);

-- The workers whose session lives: store/leases.py has the number.
CREATE VIEW living_worker AS
SELECT objid::bigint AS worker FROM pg_locks
WHERE locktype = 'advisory' AND classid = 78271 AND objsubid = 2
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- Who asks for a summary that is not made yet. Such a row lives as long as the batch that asks; after a crash of the server no
-- batch lives, so it needs no log. A worker that died, or whose time has passed, holds nothing.
CREATE UNLOGGED TABLE summary_lease (
  key bytea PRIMARY KEY,
  lease_token bigint NOT NULL,
  worker integer NOT NULL,
  expires_at timestamptz NOT NULL
);
CREATE INDEX summary_lease_token ON summary_lease (lease_token);
