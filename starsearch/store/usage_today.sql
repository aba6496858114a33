-- What was settled of the calls made since midnight UTC, by purpose and model, in the shape of usage.sql. Hours: while anybody used the
-- model, overlapping runs once; nobody knows until when an abandoned call lasted, only when it was found.
WITH used AS (
  SELECT purpose, model, count(*) AS calls, count(*) FILTER (WHERE outcome <> 'ok') AS failed,
    sum(items) FILTER (WHERE outcome = 'ok') AS items, sum(requests) AS requests, sum(unanswered) AS unanswered,
    sum(prompt_tokens) AS prompt_tokens, sum(cached_tokens) AS cached_tokens, sum(completion_tokens) AS completion_tokens,
    sum(seconds) AS seconds, min(intended_at) AS first, max(settled_at) FILTER (WHERE outcome <> 'abandoned') AS last
  FROM engine_call WHERE intended_at >= date_trunc('day', now(), 'UTC') GROUP BY purpose, model, run_id
), totals AS (
  SELECT purpose, model, sum(calls)::bigint AS calls, sum(failed)::bigint AS failed, coalesce(sum(items), 0)::bigint AS items,
    coalesce(sum(requests), 0)::bigint AS requests, coalesce(sum(unanswered), 0)::bigint AS unanswered,
    coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens, coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
    coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens, coalesce(sum(seconds), 0)::float8 AS seconds,
    -- the clock of a database may be set back while a call is made
    range_agg(tstzrange(first, greatest(first, last))) FILTER (WHERE last IS NOT NULL) AS spans
  FROM used GROUP BY purpose, model
)
SELECT purpose, model, calls, failed, items, requests, unanswered, prompt_tokens, cached_tokens, completion_tokens, seconds,
  coalesce((SELECT sum(extract(epoch FROM upper(span) - lower(span))) FROM unnest(spans) AS span), 0)::float8 / 3600 AS hours
FROM totals
