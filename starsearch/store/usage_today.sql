-- What was settled of the calls made since midnight UTC, by purpose and model, in the shape of usage.sql. Hours: from the first to the last.
SELECT purpose, model, count(*) AS calls, count(*) FILTER (WHERE outcome <> 'ok') AS failed,
  coalesce(sum(items) FILTER (WHERE outcome = 'ok'), 0) AS items, coalesce(sum(requests), 0) AS requests,
  coalesce(sum(unanswered), 0) AS unanswered, coalesce(sum(prompt_tokens), 0) AS prompt_tokens,
  coalesce(sum(cached_tokens), 0) AS cached_tokens, coalesce(sum(completion_tokens), 0) AS completion_tokens,
  coalesce(sum(seconds), 0)::float8 AS seconds,
  coalesce(extract(epoch FROM max(settled_at) - min(intended_at)), 0)::float8 / 3600 AS hours
FROM engine_call WHERE intended_at >= date_trunc('day', now(), 'UTC') GROUP BY purpose, model
