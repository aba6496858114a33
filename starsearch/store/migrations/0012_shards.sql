-- Flow runs at work and the shards that parents dispatched, so that nobody has to believe what Prefect says of a run.

CREATE TABLE flow_run (
  id uuid PRIMARY KEY,  -- Prefect's
  worker integer NOT NULL,  -- alive as long as it is in living_worker
  began_at timestamptz NOT NULL DEFAULT now(),
  ended_at timestamptz
);
CREATE INDEX flow_run_open ON flow_run (worker) WHERE ended_at IS NULL;

CREATE TABLE shard (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  parent uuid NOT NULL,  -- the flow run that dispatched it
  number integer NOT NULL,
  attempt integer NOT NULL,
  size integer NOT NULL,  -- items it may lease
  dispatched_at timestamptz NOT NULL DEFAULT now(),
  flow_run uuid,  -- null: not told to Prefect yet, or that was not written down
  run_id bigint REFERENCES run,  -- set when it begins, with began_at
  began_at timestamptz,
  ended_at timestamptz,
  failure text,  -- why it ended without doing what it could
  UNIQUE (parent, number, attempt),
  CHECK (number > 0 AND attempt > 0 AND size > 0),
  CHECK ((began_at IS NULL) = (run_id IS NULL)),
  CHECK (failure IS NULL OR ended_at IS NOT NULL)
);
CREATE INDEX shard_open ON shard (dispatched_at) WHERE ended_at IS NULL;
