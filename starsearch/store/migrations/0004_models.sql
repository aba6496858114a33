-- What the models behind a version's names looked like when it was made, so that another one behind the same name is noticed.

ALTER TABLE index_version
  ADD COLUMN probe real[],             -- a row for each of a few fixed texts: what the embedding model made of it
  ADD COLUMN summary_identity jsonb;   -- what the chat engine says about the weights behind the name
