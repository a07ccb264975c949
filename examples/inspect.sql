-- Questions to ask a warehouse. They read views and tables, change nothing and need no model.
-- One at a time:  vlm-rlaif sql w.duckdb "FROM judge_bias"
-- All of them, with DuckDB's own shell:  duckdb -readonly w.duckdb < examples/inspect.sql

-- The clearest preferences, in words.
SELECT p.judge_prompt, q.text AS question, c.text AS chosen, r.text AS rejected, p.strength
FROM preferences p
JOIN questions q USING (question_id)
JOIN responses c ON c.response_id = p.chosen
JOIN responses r ON r.response_id = p.rejected
ORDER BY p.strength DESC, p.pair_id LIMIT 10;

-- How much each judge leaves to learn from: decided pairs, ties, contradictions between the two orders, by split.
SELECT judge_prompt, split, count(*) AS pairs, count(chosen) AS decided,
       count(*) FILTER (conflict) AS conflicts, count(*) FILTER (orders < 2) AS one_order_only
FROM preferences GROUP BY ALL ORDER BY ALL;

-- What is pending, for every stage and spec that has run.
SELECT stage, model, prompt, rows_wanted, rows_missing, open_failures FROM pending_work ORDER BY rows_missing DESC;

-- Where a judge contradicts itself most: the two orders named different winners.
SELECT judge_prompt, question, text_a, text_b, p_a_shown_first, p_a_shown_second
FROM conflicts ORDER BY gap DESC LIMIT 5;

-- Position bias: does a judge name what it was shown first? 0.5 is fair.
SELECT judge_prompt, verdicts, tie_rate, first_position_rate, conflict_rate FROM judge_bias ORDER BY judge_prompt;

-- Length bias: how often does the longer answer win, and by how many tokens?
SELECT judge_prompt, preferences, mean_token_gap, longer_wins_rate FROM length_gap ORDER BY judge_prompt;

-- Do two judges (with and without context, say) agree?
SELECT prompt_1, prompt_2, pairs, agreement, kappa FROM label_agreement ORDER BY pairs DESC;

-- Where context changed the verdict: the same pair, two judges, opposite winners.
SELECT a.pair_id, q.text AS question, a.judge_prompt AS judge_1, a.choice AS choice_1, b.judge_prompt AS judge_2,
       b.choice AS choice_2
FROM preferences a
JOIN preferences b ON a.pair_id = b.pair_id AND a.judge < b.judge
JOIN questions q ON q.question_id = a.question_id
WHERE a.chosen = b.rejected
ORDER BY a.pair_id LIMIT 10;

-- What every stage cost, and how fast it was, by model and engine.
SELECT stage, model, engine, rows_written, rows_failed, tokens_in, tokens_out, seconds, rows_per_s
FROM cost ORDER BY seconds DESC;

-- From one verdict back to the video, with every word in between.
SELECT label_id, uri, question, context, text_a, text_b, shown_order, choice, p_a, judge_model, reply
FROM lineage ORDER BY label_id LIMIT 3;

-- What failed and was not repaired, with the model's own words.
SELECT stage, kind, count(*) AS rows, max(attempt) AS attempts, any_value(message) AS message,
       any_value(reply) AS a_reply
FROM open_failures GROUP BY stage, kind ORDER BY rows DESC;

-- Which prompts and models are behind the rows that stand.
SELECT stage, model, revision, prompt, prompt_hash, spec_id FROM specs ORDER BY stage, model;

-- Learning curves: what every PPO run said about itself, each step once, however often it was interrupted.
SELECT checkpoint_id, step, metrics->>'$."objective/scores"' AS score, metrics->>'$."objective/truth"' AS truth,
       metrics->>'$."objective/kl"' AS kl, metrics->>'$."val/length_mean"' AS tokens
FROM learning_curves WHERE stage = 'ppo' ORDER BY checkpoint_id, step LIMIT 100;
