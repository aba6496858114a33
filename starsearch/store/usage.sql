-- The ledger's totals by purpose and model, of some runs or of all. Hours: while anybody used the model, overlapping runs once.
WITH totals AS (
  SELECT purpose, model, sum(calls) AS calls, sum(failed) AS failed, sum(items) AS items, sum(requests) AS requests,
    sum(unanswered) AS unanswered, sum(prompt_tokens)::bigint AS prompt_tokens, sum(cached_tokens)::bigint AS cached_tokens,
    sum(completion_tokens)::bigint AS completion_tokens, sum(seconds) AS seconds, range_agg(tstzrange(first_at, last_at)) AS used
  FROM engine_usage WHERE %(runs)s::bigint[] IS NULL OR run_id = ANY (%(runs)s) GROUP BY purpose, model
)
SELECT purpose, model, calls, failed, items, requests, unanswered, prompt_tokens, cached_tokens, completion_tokens, seconds,
  coalesce((SELECT sum(extract(epoch FROM upper(span) - lower(span))) FROM unnest(used) AS span), 0)::float8 / 3600 AS hours
FROM totals ORDER BY purpose DESC, model
