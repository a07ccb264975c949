-- Answers to the questions that people ask. Nothing here holds data.

-- One row per pair and judge: both orders averaged, opposite verdicts of the two orders = a tie. The votes of one
-- order count by majority. `complete`: judged in both orders, or imported. The slow twin is `feedback.verdict.combine`.
CREATE OR REPLACE VIEW preferences AS
WITH by_order AS (
    SELECT pair_id, spec_id, shown_order, avg(p_a + p_tie / 2) AS p,
           CASE WHEN count_if(choice = 'a') > greatest(count_if(choice = 'b'), count_if(choice = 'tie')) THEN 'a'
                WHEN count_if(choice = 'b') > greatest(count_if(choice = 'a'), count_if(choice = 'tie')) THEN 'b'
                ELSE 'tie' END AS choice,
           any_value(context_id) AS context_id
    FROM labels GROUP BY pair_id, spec_id, shown_order
), judged AS (
    SELECT pair_id, spec_id AS judge, avg(p) AS p, count(*) AS orders,
           bool_or(choice = 'a') AS any_a, bool_or(choice = 'b') AS any_b,
           bool_or(shown_order = 'unknown') OR count(*) = 2 AS complete,
           count(*) = 2 AND count(DISTINCT choice) = 1 AS order_agreement, any_value(context_id) AS context_id
    FROM by_order GROUP BY pair_id, spec_id
), decided AS (
    SELECT *, CASE WHEN any_a AND any_b THEN 'tie'
                   WHEN any_a AND p > 0.5 THEN 'a'
                   WHEN any_b AND p < 0.5 THEN 'b'
                   ELSE 'tie' END AS choice
    FROM judged
)
SELECT d.pair_id, d.judge, s.prompt AS judge_prompt, d.context_id, q.video_id, p.question_id, q.kind,
       p.response_a, p.response_b, d.choice, d.p AS p_a, abs(2 * d.p - 1) AS strength,
       d.orders, d.complete, d.order_agreement, d.any_a AND d.any_b AS conflict,
       CASE d.choice WHEN 'a' THEN p.response_a WHEN 'b' THEN p.response_b END AS chosen,
       CASE d.choice WHEN 'a' THEN p.response_b WHEN 'b' THEN p.response_a END AS rejected,
       v.split
FROM decided d
JOIN pairs p USING (pair_id)
JOIN questions q ON q.question_id = p.question_id
JOIN videos v ON v.video_id = q.video_id
JOIN specs s ON s.spec_id = d.judge;

-- Failed requests that no later attempt has repaired; the newest attempt of each.
CREATE OR REPLACE VIEW open_failures AS
SELECT f.* FROM failures f
WHERE f.row_id NOT IN (
    SELECT caption_id FROM captions UNION ALL SELECT question_id FROM questions
    UNION ALL SELECT response_id FROM responses UNION ALL SELECT label_id FROM labels
    UNION ALL SELECT answer_id FROM answers UNION ALL SELECT score_id FROM scores
)
QUALIFY row_number() OVER (PARTITION BY f.row_id ORDER BY f.attempt DESC) = 1;

-- From a verdict back to the video, with every word in between.
CREATE OR REPLACE VIEW lineage AS
SELECT l.label_id, l.shown_order, l.choice, l.p_a, l.p_tie, l.reply,
       s.model AS judge_model, s.prompt AS judge_prompt, l.pair_id,
       a.text AS text_a, b.text AS text_b, q.text AS question, q.reference, q.kind, c.text AS context,
       v.video_id, v.uri, v.split, l.run_id AS label_run_id, a.run_id AS response_run_id
FROM labels l
JOIN specs s USING (spec_id)
JOIN pairs p USING (pair_id)
JOIN responses a ON a.response_id = p.response_a
JOIN responses b ON b.response_id = p.response_b
JOIN questions q ON q.question_id = p.question_id
JOIN videos v ON v.video_id = q.video_id
LEFT JOIN contexts c ON c.context_id = l.context_id;

-- How often a judge contradicts itself, and how often it names the response that it was shown first.
CREATE OR REPLACE VIEW judge_bias AS
SELECT l.spec_id AS judge, s.prompt AS judge_prompt, count(*) AS verdicts,
       avg((l.choice = 'tie')::INT) AS tie_rate,
       avg(CASE WHEN l.choice <> 'tie' AND l.shown_order <> 'unknown'
                THEN ((l.choice = 'a') = (l.shown_order = 'ab'))::INT END) AS first_position_rate,
       (SELECT avg(conflict::INT) FROM preferences p WHERE p.judge = l.spec_id) AS conflict_rate
FROM labels l JOIN specs s USING (spec_id)
GROUP BY l.spec_id, s.prompt;

-- Two judges on the same pairs.
CREATE OR REPLACE VIEW label_agreement AS
SELECT a.judge AS judge_1, b.judge AS judge_2, a.judge_prompt AS prompt_1, b.judge_prompt AS prompt_2,
       count(*) AS pairs, avg((a.choice = b.choice)::INT) AS agreement
FROM preferences a JOIN preferences b ON a.pair_id = b.pair_id AND a.judge < b.judge
GROUP BY ALL;

-- What every stage cost.
CREATE OR REPLACE VIEW cost AS
SELECT stage, count(*) AS runs, sum(rows_written) AS rows_written, sum(rows_failed) AS rows_failed,
       sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
       sum(epoch(ended_at - started_at)) AS seconds, sum(gpu_seconds) AS gpu_seconds
FROM runs GROUP BY stage;

-- Does the judge like the longer answer?
CREATE OR REPLACE VIEW length_gap AS
SELECT p.judge, p.judge_prompt, count(*) AS preferences,
       avg(c.tokens - r.tokens) AS mean_token_gap,
       avg(CASE WHEN c.tokens <> r.tokens THEN (c.tokens > r.tokens)::INT END) AS longer_wins_rate
FROM preferences p
JOIN responses c ON c.response_id = p.chosen
JOIN responses r ON r.response_id = p.rejected
GROUP BY p.judge, p.judge_prompt;

-- The training curve of every checkpoint, through all the runs that it took: a killed run goes on from its last saved
-- step, and what it trains a second time counts once.
CREATE OR REPLACE VIEW learning_curves AS
SELECT r.config->>'$.checkpoint_id' AS checkpoint_id, r.stage, s.step, s.metrics, s.run_id
FROM steps s JOIN runs r USING (run_id)
QUALIFY row_number() OVER (PARTITION BY checkpoint_id, s.step ORDER BY r.started_at DESC, s.run_id DESC) = 1;
