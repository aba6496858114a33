-- A run's budget is its parent's: whose shard a run is, is asked every few seconds where there is one.
CREATE INDEX shard_run ON shard (run_id);
