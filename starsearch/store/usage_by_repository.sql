-- What the repositories with most tokens used, by purpose and model. A call for several items counts with each one's share.
WITH used AS (
  SELECT repository_id, purpose, model, count(*) AS calls, count(*) FILTER (WHERE outcome <> 'ok') AS failed,
    count(DISTINCT item_id) FILTER (WHERE outcome = 'ok') AS items, sum(requests) AS requests, sum(prompt_tokens) AS prompt,
    sum(cached_tokens) AS cached, sum(completion_tokens) AS completion, sum(seconds) AS seconds
  FROM item_usage JOIN item ON item.id = item_id GROUP BY 1, 2, 3
), dearest AS (
  SELECT repository_id, sum(prompt + completion) AS tokens FROM used GROUP BY 1 ORDER BY 2 DESC NULLS LAST LIMIT %(limit)s
)
SELECT full_name, purpose, model, calls, failed, items, round(requests)::bigint, 0::bigint, round(prompt)::bigint, round(cached)::bigint,
  round(completion)::bigint, seconds, 0::float8
FROM used JOIN dearest USING (repository_id) JOIN repository r ON r.id = repository_id
ORDER BY tokens DESC NULLS LAST, r.id, purpose DESC, model
