-- Following tens of thousands of repositories: the list and its history, checkpoints per kind, what is known and not fetched yet.

ALTER TABLE repository
  ADD COLUMN followed boolean NOT NULL DEFAULT false,  -- in the current list
  ADD COLUMN rank integer,
  ADD COLUMN stars integer,
  ADD COLUMN archived boolean NOT NULL DEFAULT false,  -- swept weekly
  ADD COLUMN follow_from timestamptz,  -- where its first crawl starts; set once, so that failing for a week loses nothing
  ADD COLUMN checked_at timestamptz,  -- when GitHub was last asked for one that it did not find; by GitHub's clock
  ADD COLUMN failure text;  -- why its last sweep failed; null: it did not
CREATE INDEX repository_followed ON repository (rank) WHERE followed;
CREATE INDEX repository_gone ON repository (id) WHERE gone_at IS NOT NULL;  -- every search leaves these out

-- Every refresh of the list: who came, who went, when.
CREATE TABLE ranking (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  taken_at timestamptz NOT NULL DEFAULT now(),
  source text NOT NULL,  -- 'search', or the name of a file
  repositories integer NOT NULL,
  came integer NOT NULL,
  went integer NOT NULL
);
CREATE TABLE ranking_change (
  ranking_id bigint NOT NULL REFERENCES ranking ON DELETE CASCADE,
  repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
  change text NOT NULL CHECK (change IN ('came', 'went')),
  rank integer,
  stars integer,
  PRIMARY KEY (ranking_id, repository_id)
);

-- One checkpoint per repository and kind. What the listing of both kinds had reached holds for each.
ALTER TABLE checkpoint RENAME TO checkpoint_before;
ALTER TABLE checkpoint_before RENAME CONSTRAINT checkpoint_pkey TO checkpoint_before_pkey;
CREATE TABLE checkpoint (
  repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind IN ('issue', 'pull_request')),
  high_water timestamptz,  -- the newest update on the first page read; null: it had none in reach
  swept_at timestamptz NOT NULL,  -- GitHub's time when that sweep began; the next one starts here
  committed_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (repository_id, kind)
) WITH (fillfactor = 70);
INSERT INTO checkpoint (repository_id, kind, high_water, swept_at, committed_at)
SELECT repository_id, kind, high_water, high_water, committed_at
FROM checkpoint_before CROSS JOIN (VALUES ('issue'), ('pull_request')) AS kinds (kind);
DROP TABLE checkpoint_before;

-- The newest update that a sweep has told of. Later than updated_at: its text is still to be fetched.
ALTER TABLE item ADD COLUMN seen_updated_at timestamptz;

-- Items whose text GitHub would not give. Three attempts, and it is a dead letter of the fetch until it changes again.
CREATE TABLE fetch_failure (
  item_id bigint PRIMARY KEY REFERENCES item ON DELETE CASCADE,
  attempts smallint NOT NULL,
  dead boolean NOT NULL,
  reason text NOT NULL,
  detail text NOT NULL,
  seen_updated_at timestamptz,
  failed_at timestamptz NOT NULL DEFAULT now()
);

-- Where a check that goes round all items has got to.
CREATE TABLE rotation (
  name text PRIMARY KEY,
  item_id bigint NOT NULL,
  turned_at timestamptz NOT NULL DEFAULT now()
);

-- What GitHub charged a run, beside its counts.
ALTER TABLE run ADD COLUMN github jsonb;

-- A range of history asked for by hand; the same request again goes on with what is not done.
CREATE TABLE backfill (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  request jsonb NOT NULL,  -- as it was asked for
  since timestamptz NOT NULL,
  until timestamptz NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz
);
CREATE UNIQUE INDEX backfill_unfinished ON backfill (request) WHERE finished_at IS NULL;
CREATE TABLE backfill_part (
  backfill_id bigint NOT NULL REFERENCES backfill ON DELETE CASCADE,
  repository_id bigint NOT NULL REFERENCES repository ON DELETE CASCADE,
  kind text NOT NULL CHECK (kind IN ('issue', 'pull_request')),
  done_at timestamptz,
  PRIMARY KEY (backfill_id, repository_id, kind)
);
