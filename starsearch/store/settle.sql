-- Settle calls, and add them to their run's totals. A call that is settled already is left alone.
WITH settled AS (
  UPDATE engine_call c SET settled_at = clock_timestamp(), outcome = s.outcome, items = cardinality(s.items::bigint[]),
    item_ids = s.items::bigint[], requests = s.requests, unanswered = s.unanswered, prompt_tokens = s.prompt,
    cached_tokens = s.cached, completion_tokens = s.completion, seconds = s.seconds
  FROM unnest(
    %(ids)s::bigint[], %(outcomes)s::text[], %(items)s::text[], %(requests)s::integer[], %(unanswered)s::integer[], %(prompt)s::integer[],
    %(cached)s::integer[], %(completion)s::integer[], %(seconds)s::real[]
  ) AS s (id, outcome, items, requests, unanswered, prompt, cached, completion, seconds)
  WHERE c.id = s.id AND (c.settled_at IS NULL OR c.outcome = 'abandoned')
  RETURNING c.*
)
INSERT INTO engine_usage AS u (
  run_id, purpose, model, calls, failed, items, requests, unanswered, prompt_tokens, cached_tokens, completion_tokens, seconds,
  first_at, last_at
)
SELECT run_id, purpose, model, count(*), count(*) FILTER (WHERE outcome <> 'ok'), coalesce(sum(items) FILTER (WHERE outcome = 'ok'), 0),
  sum(requests), sum(unanswered), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens), sum(seconds),
  min(intended_at), max(settled_at)
FROM settled GROUP BY run_id, purpose, model ORDER BY run_id, purpose, model
ON CONFLICT (run_id, purpose, model) DO UPDATE SET
  calls = u.calls + excluded.calls, failed = u.failed + excluded.failed, items = u.items + excluded.items,
  requests = u.requests + excluded.requests, unanswered = u.unanswered + excluded.unanswered,
  prompt_tokens = u.prompt_tokens + excluded.prompt_tokens, cached_tokens = u.cached_tokens + excluded.cached_tokens,
  completion_tokens = u.completion_tokens + excluded.completion_tokens, seconds = u.seconds + excluded.seconds,
  first_at = least(u.first_at, excluded.first_at), last_at = greatest(u.last_at, excluded.last_at)
