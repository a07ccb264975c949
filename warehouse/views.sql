-- Answers to the questions that people ask. Nothing here holds data.

-- Which response does a judge prefer? One row per pair and judge: both orders averaged, opposite verdicts of the two
-- orders = a tie. The votes of one order count by majority. `complete`: judged in both orders, imported, or derived from
-- other verdicts. `order_agreement` is NULL where there are no two orders. `vote_spread`: how far the votes of one order
-- lie apart (standard deviation of p, mean over the orders); NULL with one vote. The slow twin is
-- `feedback.verdict.combine`.
CREATE OR REPLACE VIEW preferences AS
WITH by_order AS (
    SELECT pair_id, spec_id, shown_order, avg(p_a + p_tie / 2) AS p,
           CASE WHEN count_if(choice = 'a') > greatest(count_if(choice = 'b'), count_if(choice = 'tie')) THEN 'a'
                WHEN count_if(choice = 'b') > greatest(count_if(choice = 'a'), count_if(choice = 'tie')) THEN 'b'
                ELSE 'tie' END AS choice,
           any_value(context_id) AS context_id,
           CASE WHEN count(*) > 1 THEN stddev_pop(p_a + p_tie / 2) END AS spread
    FROM labels GROUP BY pair_id, spec_id, shown_order
), judged AS (
    SELECT pair_id, spec_id AS judge, avg(p) AS p, count(*) AS orders,
           bool_or(choice = 'a') AS any_a, bool_or(choice = 'b') AS any_b,
           bool_or(shown_order IN ('unknown', 'both')) OR count(*) = 2 AS complete,
           CASE WHEN count(*) = 2 THEN min(choice) = max(choice) END AS order_agreement,
           any_value(context_id) AS context_id, avg(spread) AS vote_spread
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
       d.orders, d.complete, d.order_agreement, d.vote_spread,
       d.any_a AND d.any_b AS conflict,
       CASE d.choice WHEN 'a' THEN p.response_a WHEN 'b' THEN p.response_b END AS chosen,
       CASE d.choice WHEN 'a' THEN p.response_b WHEN 'b' THEN p.response_a END AS rejected,
       v.split
FROM decided d
JOIN pairs p USING (pair_id)
JOIN questions q ON q.question_id = p.question_id
JOIN videos v ON v.video_id = q.video_id
JOIN specs s ON s.spec_id = d.judge;

-- What is in a version of the data set? Its preferences with the verdicts as they were when it was made.
CREATE OR REPLACE VIEW dataset_preferences AS
SELECT d.name AS dataset, p.* REPLACE (
           r.choice AS choice, r.p_a AS p_a, abs(2 * r.p_a - 1) AS strength,
           CASE r.choice WHEN 'a' THEN p.response_a WHEN 'b' THEN p.response_b END AS chosen,
           CASE r.choice WHEN 'a' THEN p.response_b WHEN 'b' THEN p.response_a END AS rejected)
FROM datasets d
JOIN dataset_rows r USING (rows_hash)
JOIN preferences p ON p.pair_id = r.pair_id AND p.judge = r.judge;

-- What failed and was not repaired by a later attempt? The newest attempt of each. A refused annotation of an audit is
-- repaired by a later version of it, a missing task by a verdict on its pair.
CREATE OR REPLACE VIEW open_failures AS
WITH refused AS (
    SELECT row_id, said->>'$.plan_id' AS plan_id, said->>'$.pair_id' AS pair_id, said->>'$.annotation' AS annotation,
           TRY_CAST(said->>'$.updated_at' AS TIMESTAMP) AS updated_at
    FROM (SELECT row_id, TRY_CAST(reply AS JSON) AS said FROM failures WHERE stage = 'audit')
), repaired AS (
    SELECT caption_id AS row_id FROM captions WHERE caption_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT context_id FROM contexts WHERE context_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT question_id FROM questions WHERE question_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT rating_id FROM ratings WHERE rating_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT response_id FROM responses WHERE response_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT label_id FROM labels WHERE label_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT probe_id FROM probes WHERE probe_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT answer_id FROM answers WHERE answer_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT score_id FROM scores WHERE score_id IN (SELECT row_id FROM failures)
    UNION ALL SELECT r.row_id FROM refused r JOIN audits a ON a.plan_id = r.plan_id AND CASE
        WHEN r.annotation IS NULL THEN a.pair_id = r.pair_id
        ELSE a.annotation = r.annotation AND a.updated_at >= coalesce(r.updated_at, a.updated_at) END
)
SELECT f.* FROM failures f WHERE f.row_id NOT IN (FROM repaired)
QUALIFY row_number() OVER (PARTITION BY f.row_id ORDER BY f.attempt DESC) = 1;

-- Where does a verdict come from? Back to the video, with every word in between.
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

-- What did a policy learn from? From its checkpoint over the reward model that taught it, and the version of the data
-- set that this one read, back to the videos.
CREATE OR REPLACE VIEW policy_lineage AS
SELECT c.checkpoint_id, t.checkpoint_id AS reward_checkpoint_id, r.rows_hash, r.pair_id, p.question_id, q.video_id, v.uri
FROM checkpoints c
JOIN checkpoints t ON t.checkpoint_id = (c.config->>'$.inputs.reward')
JOIN dataset_rows r ON r.rows_hash = t.data_hash
JOIN pairs p USING (pair_id)
JOIN questions q ON q.question_id = p.question_id
JOIN videos v ON v.video_id = q.video_id
WHERE c.kind = 'ppo';

-- What is pending? For every stage and spec that has run: the rows that its inputs ask for now, those that stand, those
-- that are missing, and how many of the missing ones have failed. Of a checklist and of votes it expects as many as
-- have been given somewhere. Left out: rankings and claims that are sentences, labels that nobody is asked for, and
-- evaluation, for how many questions it reads stands in the recipe (`vlm-rlaif plan` knows, and knows what no run has
-- begun).
CREATE OR REPLACE VIEW pending_work AS
WITH answered AS (
    SELECT r.spec_id, q.spec_id AS ask, max(r.sample_index) + 1 AS samples, bool_or(r.shown_video_id IS NOT NULL) AS other
    FROM responses r JOIN questions q USING (question_id) GROUP BY ALL
), sources AS (
    SELECT split, count(DISTINCT video_group) AS n FROM videos WHERE status = 'ok' GROUP BY split
), unanswerable AS (
    SELECT question_id FROM ratings WHERE item = 'answerable' AND value < 0.5
), compared AS (
    SELECT a.spec_id, p.question_id, p.pair_id FROM pairs p JOIN responses a ON a.response_id = p.response_a
    UNION ALL
    SELECT b.spec_id, p.question_id, p.pair_id FROM pairs p JOIN responses a ON a.response_id = p.response_a
    JOIN responses b ON b.response_id = p.response_b WHERE b.spec_id <> a.spec_id
), of_pairs AS (
    SELECT upstream->>'$.rating' FROM specs WHERE stage = 'rated'
), rated AS (
    SELECT DISTINCT c.spec_id, p.question_id, unnest([p.response_a, p.response_b]) AS response_id
    FROM compared c JOIN pairs p USING (pair_id) WHERE c.spec_id IN (SELECT upstream->>'$.respond' FROM specs
        WHERE stage IN ('check', 'split', 'verify') OR spec_id IN (FROM of_pairs))
), items AS (
    SELECT spec_id, count(DISTINCT item) AS items FROM ratings
    WHERE spec_id IN (SELECT spec_id FROM specs WHERE stage = 'check') GROUP BY ALL
), votes AS (
    SELECT spec_id, max(vote) + 1 AS votes FROM labels GROUP BY ALL
), wanted AS (
    SELECT s.spec_id, count(*) AS n
    FROM specs s JOIN clips c ON c.method = (s.upstream->>'$.clip') WHERE s.stage = 'caption' GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(DISTINCT c.video_id)
    FROM specs s JOIN specs u ON u.spec_id = (s.upstream->>'$.caption')
    JOIN clips c ON c.method = (u.upstream->>'$.clip')
    WHERE s.stage = 'context' GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*)
    FROM specs s JOIN contexts x ON x.spec_id = (s.upstream->>'$.context')
    WHERE s.stage IN ('refine', 'summarise') GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*)
    FROM specs s JOIN videos v ON v.status = 'ok' AND v.duration_s > 0
    WHERE s.stage = 'templates' AND v.video_id NOT IN (SELECT video_id FROM questions WHERE spec_id IS NULL)
      AND ((s.upstream->>'$.clip') IS NULL
           OR v.video_id IN (SELECT video_id FROM clips WHERE method = (s.upstream->>'$.clip'))) GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*)
    FROM specs s JOIN questions q ON q.spec_id = (s.upstream->>'$.ask')
    JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = (s.upstream->>'$.context')
    WHERE s.stage = 'answerable' GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*)
    FROM specs s JOIN contexts x ON x.spec_id = (s.upstream->>'$.context')
    WHERE s.stage = 'ask' AND x.video_id NOT IN (SELECT video_id FROM questions WHERE spec_id IS NULL) GROUP BY ALL
    UNION ALL
    SELECT a.spec_id, sum(a.samples)
    FROM answered a JOIN questions q ON q.spec_id IS NOT DISTINCT FROM a.ask JOIN videos v USING (video_id)
    JOIN sources o ON o.split = v.split
    WHERE v.status = 'ok' AND (o.n > 1 OR NOT a.other) AND q.question_id NOT IN (FROM unanswerable) GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*)
    FROM specs s JOIN responses r ON r.spec_id = (s.upstream->>'$.respond') JOIN questions q USING (question_id)
    LEFT JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = (s.upstream->>'$.context')
    WHERE s.stage = 'rate' AND s.spec_id NOT IN (FROM of_pairs)
      AND ((s.upstream->>'$.context') IS NULL OR x.context_id IS NOT NULL) GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, count(*) * any_value(coalesce(i.items, 1))
    FROM specs s JOIN rated r ON r.spec_id = (s.upstream->>'$.respond')
    JOIN questions q ON q.question_id = r.question_id
    LEFT JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = (s.upstream->>'$.context')
    LEFT JOIN items i ON i.spec_id = s.spec_id
    WHERE (s.stage IN ('check', 'split') OR (s.stage = 'rate' AND s.spec_id IN (FROM of_pairs)))
      AND ((s.upstream->>'$.context') IS NULL OR x.context_id IS NOT NULL) GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, sum(c.value)
    FROM specs s JOIN ratings c ON c.spec_id = (s.upstream->>'$.split') AND c.item = 'claims'
    JOIN rated r ON r.spec_id = (s.upstream->>'$.respond') AND r.response_id = c.response_id
    JOIN questions q ON q.question_id = c.question_id
    LEFT JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = (s.upstream->>'$.context')
    WHERE s.stage = 'verify' AND ((s.upstream->>'$.context') IS NULL OR x.context_id IS NOT NULL) GROUP BY ALL
    UNION ALL
    SELECT s.spec_id, 2 * count(*) * any_value(coalesce(v.votes, 1))
    FROM specs s JOIN compared p ON p.spec_id = (s.upstream->>'$.respond')
    JOIN questions q ON q.question_id = p.question_id
    LEFT JOIN contexts x ON x.video_id = q.video_id AND x.spec_id = (s.upstream->>'$.context')
    LEFT JOIN votes v ON v.spec_id = s.spec_id
    WHERE s.stage = 'label' AND ((s.upstream->>'$.context') IS NULL OR x.context_id IS NOT NULL) GROUP BY ALL
), standing AS (
    SELECT spec_id, count(*) AS n FROM captions GROUP BY ALL
    UNION ALL SELECT spec_id, count(*) FROM contexts GROUP BY ALL
    UNION ALL SELECT spec_id, count(DISTINCT video_id) FROM questions WHERE spec_id IS NOT NULL GROUP BY ALL
    UNION ALL SELECT spec_id, count(*) FROM responses GROUP BY ALL
    UNION ALL SELECT spec_id, count(*) FROM ratings GROUP BY ALL
    UNION ALL SELECT spec_id, count(*) FROM labels GROUP BY ALL
), failed AS (
    SELECT r.config->>'$.spec_id' AS spec_id, count(*) AS n FROM open_failures f JOIN runs r USING (run_id)
    WHERE f.stage NOT IN ('probe', 'anchor') GROUP BY ALL
)
SELECT s.stage, s.spec_id, s.model, s.prompt, w.n::BIGINT AS rows_wanted, coalesce(t.n, 0) AS rows_standing,
       greatest(w.n::BIGINT - coalesce(t.n, 0), 0) AS rows_missing, coalesce(f.n, 0) AS open_failures
FROM specs s JOIN wanted w USING (spec_id) LEFT JOIN standing t USING (spec_id) LEFT JOIN failed f USING (spec_id);

-- How many of the questions that a model wrote can be answered, says the model that was asked? `below_half` get no
-- responses where `at_least` is 0.5.
CREATE OR REPLACE VIEW answerability AS
SELECT r.spec_id, s.model, s.prompt, count(*) AS questions, avg(r.value) AS mean,
       count(*) FILTER (r.value < 0.5) AS below_half
FROM ratings r JOIN specs s USING (spec_id) WHERE r.item = 'answerable' GROUP BY ALL;

-- Are the answers to spoilt videos really worse? One row for every judged pair of such an answer and the same policy's
-- answer to the video as it is: `confirmed` where the judge prefers the latter.
CREATE OR REPLACE VIEW negative_pairs AS
WITH spoilt AS (
    SELECT r.response_id, coalesce(s.frames->>'$.perturb', s.sampling->>'$.perturb') AS perturbation
    FROM responses r JOIN specs s USING (spec_id) WHERE s.stage = 'respond' AND perturbation IS NOT NULL
), judged AS (
    SELECT n.response_id AS spoilt, n.perturbation, p.* FROM spoilt n JOIN preferences p ON p.response_a = n.response_id
    UNION ALL
    SELECT n.response_id, n.perturbation, p.* FROM spoilt n JOIN preferences p ON p.response_b = n.response_id
)
SELECT perturbation, pair_id, judge, judge_prompt,
       CASE WHEN choice = 'tie' THEN 'tied' WHEN rejected = spoilt THEN 'confirmed' ELSE 'contradicted' END AS verdict,
       strength, conflict, spoilt AS negative_response, question_id, video_id, split
FROM judged WHERE complete;

-- The same by kind of perturbation: how many negatives are worth their name?
CREATE OR REPLACE VIEW negatives AS
SELECT perturbation, judge, judge_prompt, count(*) AS pairs, count(*) FILTER (verdict = 'confirmed') AS confirmed,
       count(*) FILTER (verdict = 'tied') AS tied, count(*) FILTER (verdict = 'contradicted') AS contradicted,
       avg((verdict = 'confirmed')::INT) AS confirmed_rate
FROM negative_pairs GROUP BY ALL;

-- Where does a judge contradict itself? Pairs whose two orders named different winners, with what each of them said:
-- how probable it is that response a is better, shown first and shown second.
CREATE OR REPLACE VIEW conflicts AS
WITH torn AS (
    SELECT * FROM preferences WHERE conflict
), said AS (
    SELECT pair_id, spec_id AS judge, avg(p_a + p_tie / 2) FILTER (shown_order = 'ab') AS p_a_shown_first,
           avg(p_a + p_tie / 2) FILTER (shown_order = 'ba') AS p_a_shown_second
    FROM labels WHERE pair_id IN (SELECT pair_id FROM torn) GROUP BY ALL
)
SELECT t.pair_id, t.judge, t.judge_prompt, s.p_a_shown_first, s.p_a_shown_second,
       abs(s.p_a_shown_first - s.p_a_shown_second) AS gap,
       q.text AS question, a.text AS text_a, b.text AS text_b, t.kind, t.split, t.video_id
FROM torn t JOIN said s USING (pair_id, judge) JOIN questions q USING (question_id)
JOIN responses a ON a.response_id = t.response_a JOIN responses b ON b.response_id = t.response_b;

-- How often does a judge contradict itself, of the pairs that it was shown in two orders, and how often does it name the
-- response that it was shown first? (0.5 is fair.)
CREATE OR REPLACE VIEW judge_bias AS
WITH torn AS (
    SELECT judge, avg(conflict::INT) AS rate FROM preferences WHERE orders = 2 GROUP BY judge
)
SELECT l.spec_id AS judge, s.prompt AS judge_prompt, count(*) AS verdicts,
       avg((l.choice = 'tie')::INT) AS tie_rate,
       avg(CASE WHEN l.choice <> 'tie' AND l.shown_order IN ('ab', 'ba')
                THEN ((l.choice = 'a') = (l.shown_order = 'ab'))::INT END) AS first_position_rate,
       any_value(t.rate) AS conflict_rate
FROM labels l JOIN specs s USING (spec_id) LEFT JOIN torn t ON t.judge = l.spec_id
GROUP BY l.spec_id, s.prompt;

-- Do two judges agree on the same pairs? `kappa` (Cohen's) is what their agreement is above chance: 0 = two coins with
-- their habits, 1 = always.
CREATE OR REPLACE VIEW label_agreement AS
WITH verdicts AS MATERIALIZED (
    SELECT pair_id, judge, judge_prompt, choice FROM preferences WHERE complete
), counted AS (
    SELECT a.judge AS judge_1, b.judge AS judge_2, a.judge_prompt AS prompt_1, b.judge_prompt AS prompt_2,
           count(*) AS pairs, avg((a.choice = b.choice)::INT) AS agreement,
           avg((a.choice = 'a')::INT) * avg((b.choice = 'a')::INT)
           + avg((a.choice = 'b')::INT) * avg((b.choice = 'b')::INT)
           + avg((a.choice = 'tie')::INT) * avg((b.choice = 'tie')::INT) AS by_chance
    FROM verdicts a JOIN verdicts b ON a.pair_id = b.pair_id AND a.judge < b.judge
    GROUP BY ALL
)
SELECT * EXCLUDE (by_chance), (agreement - by_chance) / nullif(1 - by_chance, 0) AS kappa FROM counted;

-- What did every stage cost, how fast was it, and what mostly held it back, by model and engine? `hit_rate` is the share
-- of prompt tokens that were found in a prefix cache. Stages that ran together share the time by their rows.
CREATE OR REPLACE VIEW cost AS
WITH timed AS (
    SELECT *, coalesce(nullif(seconds, 0), epoch(ended_at - started_at)) AS took FROM runs
)
SELECT stage, coalesce(config->>'$.model', config->>'$.settings.model') AS model, engine, count(*) AS runs,
       sum(rows_written) AS rows_written, sum(rows_failed) AS rows_failed,
       sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out,
       sum(cached_tokens) / nullif(sum(tokens_in), 0) AS hit_rate,
       sum(took) AS seconds, sum(gpu_seconds) / 3600 AS gpu_hours,
       sum(rows_written) FILTER (took IS NOT NULL) / nullif(sum(took), 0) AS rows_per_s,
       sum(tokens_in + tokens_out) FILTER (took IS NOT NULL) / nullif(sum(took), 0) AS tokens_per_s,
       arg_max(bound_by, took) FILTER (bound_by <> '') AS bound_by
FROM timed GROUP BY ALL;

-- Does the judge like the longer answer?
CREATE OR REPLACE VIEW length_gap AS
SELECT p.judge, p.judge_prompt, count(*) AS preferences,
       avg(c.tokens - r.tokens) AS mean_token_gap,
       avg(CASE WHEN c.tokens <> r.tokens THEN (c.tokens > r.tokens)::INT END) AS longer_wins_rate
FROM preferences p
JOIN responses c ON c.response_id = p.chosen
JOIN responses r ON r.response_id = p.rejected
GROUP BY p.judge, p.judge_prompt;

-- How did a model learn? The training curve of every checkpoint, through all the runs that it took: a killed run goes
-- on from its last saved step, and what it trains a second time counts once.
CREATE OR REPLACE VIEW learning_curves AS
SELECT r.config->>'$.checkpoint_id' AS checkpoint_id, r.stage, s.step, s.metrics, s.run_id
FROM steps s JOIN runs r USING (run_id)
QUALIFY row_number() OVER (PARTITION BY checkpoint_id, s.step ORDER BY r.started_at DESC, s.run_id DESC) = 1;

-- How do answers change from round to round (`run --round`)? One row per round and judge of its pairs: lengths, answers
-- that were cut off, `length_drift` = mean tokens over those of round 1, ties and conflicts of the judge, and the
-- accuracy of the reward model in its last ten steps of training.
CREATE OR REPLACE VIEW rounds AS
WITH RECURSIVE policies AS (
    SELECT * FROM specs WHERE stage = 'respond' AND (frames->>'$.perturb') IS NULL AND (sampling->>'$.perturb') IS NULL
), trained AS (
    SELECT checkpoint_id, parent, path || '/merged' AS merged FROM checkpoints WHERE kind = 'ppo'
), chain AS (
    SELECT s.spec_id, 1 AS round, s.spec_id AS first_spec, NULL::VARCHAR AS policy FROM policies s
    WHERE NOT EXISTS (SELECT 1 FROM trained t WHERE ends_with(s.model, t.merged))
    UNION ALL
    SELECT s.spec_id, c.round + 1, c.first_spec, t.checkpoint_id
    FROM chain c JOIN policies b USING (spec_id) JOIN trained t ON t.parent = b.revision
    JOIN policies s ON ends_with(s.model, t.merged) AND s.prompt_hash = b.prompt_hash AND s.frames = b.frames
        AND s.sampling = b.sampling
), said AS (
    SELECT spec_id, count(*) AS responses, avg(tokens) AS mean_tokens, median(tokens) AS median_tokens,
           avg(length(text)) AS mean_characters, median(length(text)) AS median_characters,
           avg((finish = 'length')::INT) AS cut_off_rate
    FROM responses GROUP BY spec_id
), judged AS (
    SELECT s.upstream->>'$.respond' AS spec_id, p.judge, p.judge_prompt, count(*) AS pairs,
           avg((p.choice = 'tie')::INT) AS tie_rate, avg(p.conflict::INT) AS conflict_rate
    FROM preferences p JOIN specs s ON s.spec_id = p.judge WHERE p.complete GROUP BY ALL
), learned AS (
    SELECT checkpoint_id, avg((metrics->>'$."reward/accuracy"')::DOUBLE) AS accuracy FROM (
        FROM learning_curves QUALIFY row_number() OVER (PARTITION BY checkpoint_id ORDER BY step DESC) <= 10
    ) GROUP BY checkpoint_id
), rewarded AS (
    SELECT d.judge, avg(l.accuracy) AS reward_accuracy
    FROM (SELECT DISTINCT rows_hash, judge FROM dataset_rows) d JOIN checkpoints c ON c.data_hash = d.rows_hash
    JOIN learned l USING (checkpoint_id)
    WHERE c.kind = 'reward' AND (c.config->>'$.settings.use_video')::BOOLEAN GROUP BY d.judge
)
SELECT c.round, c.spec_id AS respond_spec, c.policy, s.* EXCLUDE (spec_id), s.mean_tokens / f.mean_tokens AS length_drift,
       j.judge, j.judge_prompt, j.pairs, j.tie_rate, j.conflict_rate, r.reward_accuracy
FROM chain c JOIN said s USING (spec_id) JOIN said f ON f.spec_id = c.first_spec
LEFT JOIN judged j ON j.spec_id = c.spec_id LEFT JOIN rewarded r ON r.judge = j.judge
ORDER BY c.first_spec, c.round, j.judge_prompt;
