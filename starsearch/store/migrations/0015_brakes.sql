-- The kill switch: while the row is there, nothing new is begun anywhere.
CREATE TABLE pause (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  since timestamptz NOT NULL DEFAULT now(),
  reason text NOT NULL
);
-- What today's calls cost is asked every few seconds where there is a budget. The rows come in order of this column.
CREATE INDEX engine_call_intended ON engine_call USING brin (intended_at);
