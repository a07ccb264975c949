-- Which judge compares answers of its own weights? One row per judge and policy that it has judged responses of.
-- `judge_is_policy`: the same weights and adapter, as when a model judges itself; of labels that are made of ratings,
-- of other labels or of a panel's: one of the models that were asked.
CREATE OR REPLACE VIEW judge_policies AS
WITH RECURSIVE judged AS (
    SELECT DISTINCT judge, r.spec_id AS policy
    FROM (SELECT DISTINCT l.spec_id AS judge, unnest([p.response_a, p.response_b]) AS response_id
          FROM labels l JOIN pairs p USING (pair_id)) JOIN responses r USING (response_id)
), asked AS (
    SELECT DISTINCT judge, judge AS spec_id FROM judged
    UNION
    SELECT a.judge, unnest(json_extract_string(s.upstream, '$.*'))
    FROM asked a JOIN specs s USING (spec_id) WHERE s.stage IN ('rated', 'panel', 'calibrate')
)
SELECT j.judge, any_value(n.prompt) AS judge_prompt, j.policy,
       string_agg(DISTINCT s.model, ', ' ORDER BY s.model) AS judge_model, any_value(t.model) AS policy_model,
       bool_or(s.revision = t.revision AND s.adapter = t.adapter AND s.revision NOT IN ('', 'none'))
           AS judge_is_policy
FROM judged j JOIN specs n ON n.spec_id = j.judge JOIN specs t ON t.spec_id = j.policy
JOIN asked a ON a.judge = j.judge
JOIN specs s ON s.spec_id = a.spec_id AND s.stage NOT IN ('rated', 'panel', 'calibrate')
GROUP BY j.judge, j.policy;

-- What does every person say now? The newest version of every annotation, whatever the person was called then, unless
-- it was withdrawn; of these the newest per plan, pair and person.
CREATE OR REPLACE VIEW human_verdicts AS
WITH newest AS (
    FROM audits QUALIFY row_number() OVER (PARTITION BY plan_id, annotation ORDER BY updated_at DESC, audit_id) = 1
)
SELECT a.* EXCLUDE (reply), t.stratum, t.weight
FROM newest a LEFT JOIN audit_tasks t ON t.plan_id = a.plan_id AND t.pair_id = a.pair_id
WHERE a.choice <> 'withdrawn'
QUALIFY row_number() OVER (
    PARTITION BY a.plan_id, a.pair_id, a.annotator ORDER BY a.updated_at DESC, a.annotation DESC, a.audit_id) = 1;

-- What do people say of a pair? All of them together, whatever the plan, each with what they said last: most votes
-- win, `both_bad` counts as a tie, and so do as many for one as for the other. `p_a` is the mean, a tie counting half.
CREATE OR REPLACE VIEW human_preferences AS
WITH counted AS (
    SELECT pair_id, count(*) AS verdicts, count(DISTINCT annotator) AS annotators,
           count_if(choice = 'a') AS for_a, count_if(choice = 'b') AS for_b,
           count_if(choice IN ('tie', 'both_bad')) AS ties, count_if(choice = 'both_bad') AS both_bad
    FROM (FROM human_verdicts QUALIFY row_number() OVER (
        PARTITION BY pair_id, annotator ORDER BY updated_at DESC, audit_id) = 1) GROUP BY pair_id
)
SELECT pair_id,
       CASE WHEN for_a > greatest(for_b, ties) THEN 'a' WHEN for_b > greatest(for_a, ties) THEN 'b' ELSE 'tie' END
           AS choice,
       (for_a + ties / 2) / verdicts AS p_a, verdicts, annotators, both_bad,
       greatest(for_a, for_b, ties) = verdicts AS unanimous
FROM counted;

-- Which response is better, as far as is known? The preferences of every judge, but where people have judged the pair,
-- theirs: `source` is `human` or `judge`.
CREATE OR REPLACE VIEW gold AS
SELECT p.* REPLACE (
           coalesce(h.choice, p.choice) AS choice, coalesce(h.p_a, p.p_a) AS p_a,
           abs(2 * coalesce(h.p_a, p.p_a) - 1) AS strength, p.complete OR h.pair_id IS NOT NULL AS complete,
           p.conflict AND h.pair_id IS NULL AS conflict,
           CASE coalesce(h.choice, p.choice) WHEN 'a' THEN p.response_a WHEN 'b' THEN p.response_b END AS chosen,
           CASE coalesce(h.choice, p.choice) WHEN 'a' THEN p.response_b WHEN 'b' THEN p.response_a END AS rejected),
       CASE WHEN h.pair_id IS NULL THEN 'judge' ELSE 'human' END AS source, p.choice AS judge_choice,
       p.p_a AS judge_p_a, h.annotators
FROM preferences p LEFT JOIN human_preferences h USING (pair_id);

-- What came of the probes? `passed`: a response with itself is a tie, the answer to another video loses; of one order.
CREATE OR REPLACE VIEW probe_results AS
SELECT p.kind, p.spec_id AS judge, s.prompt AS judge_prompt, p.engine, p.anchor, p.question_id, q.video_id,
       p.response_a, p.response_b, p.shown_order, p.choice, p.p_a + p.p_tie / 2 AS p,
       CASE p.kind WHEN 'same' THEN p.choice = 'tie' WHEN 'other_answer' THEN p.choice = 'a' END AS passed, p.probe_id
FROM probes p JOIN specs s USING (spec_id) JOIN questions q USING (question_id);
