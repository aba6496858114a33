-- A run's budget is its parent's: whose shard a run is, is asked every few seconds where there is one.
CREATE INDEX shard_run ON shard (run_id);

-- An answer of the web process costs the same money, and that process may write no ledger. So it may add a call that is over, and nothing
-- else: it cannot see, change or lower what others cost.
CREATE FUNCTION account_answer(
  model text, outcome text, requests integer, unanswered integer, prompt integer, cached integer, completion integer, seconds real
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
  began timestamptz := now() - make_interval(secs => account_answer.seconds);
  asked bigint;
BEGIN
  IF least(requests, unanswered, prompt, cached, completion, seconds) < 0 THEN
    RAISE EXCEPTION 'nothing costs less than nothing' USING ERRCODE = 'check_violation';
  END IF;
  INSERT INTO run (kind, started_at, finished_at, counts)
  VALUES ('ask', began, now(), jsonb_build_object('llm_requests', requests, 'seconds', seconds)) RETURNING id INTO asked;
  INSERT INTO engine_call AS c (
    run_id, purpose, model, lease_token, items, intended_at, settled_at, outcome, requests, unanswered, prompt_tokens, cached_tokens,
    completion_tokens, seconds
  ) VALUES (asked, 'answer', model, 0, 0, began, now(), outcome, requests, unanswered, prompt, cached, completion, seconds);
  INSERT INTO engine_usage (
    run_id, purpose, model, calls, failed, items, requests, unanswered, prompt_tokens, cached_tokens, completion_tokens, seconds, first_at,
    last_at
  ) VALUES (
    asked, 'answer', model, 1, (outcome <> 'ok')::integer, 0, requests, unanswered, prompt, cached, completion, seconds, began, now()
  );
END
$$;
REVOKE ALL ON FUNCTION account_answer FROM PUBLIC;
DO $$
BEGIN
  -- what runs with its owner's rights looks for tables in our schema alone, never among a caller's temporary ones
  EXECUTE format('ALTER FUNCTION account_answer SET search_path = %I, pg_temp', current_schema());
  IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'starsearch_reader') THEN
    GRANT EXECUTE ON FUNCTION account_answer TO starsearch_reader;
  END IF;
END
$$;
