-- How far feedback can be trusted: probes of judges, anchors that are judged again, audits by people; labels that stand
-- for both orders at once. A CHECK cannot be altered: the table is rebuilt.
CREATE TABLE anchors (
    anchor_id VARCHAR NOT NULL, name VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (anchor_id)
);
CREATE TABLE probes (
    probe_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, kind VARCHAR NOT NULL, anchor VARCHAR, engine VARCHAR NOT NULL,
    question_id VARCHAR NOT NULL, response_a VARCHAR NOT NULL, response_b VARCHAR NOT NULL, context_id VARCHAR,
    shown_order VARCHAR NOT NULL, choice VARCHAR NOT NULL, p_a DOUBLE NOT NULL, p_tie DOUBLE NOT NULL,
    reply VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (probe_id)
);
CREATE TABLE audit_plans (
    plan_id VARCHAR NOT NULL, name VARCHAR NOT NULL, judge VARCHAR NOT NULL, config VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (plan_id)
);
CREATE TABLE audit_tasks (
    audit_task_id VARCHAR NOT NULL, plan_id VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, stratum VARCHAR NOT NULL,
    weight DOUBLE NOT NULL, shown_order VARCHAR NOT NULL, annotators BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (audit_task_id)
);
CREATE TABLE audit_projects (
    audit_project_id VARCHAR NOT NULL, plan_id VARCHAR NOT NULL, url VARCHAR NOT NULL, project BIGINT NOT NULL,
    config_hash VARCHAR NOT NULL, closed_at TIMESTAMP, run_id VARCHAR NOT NULL,
    PRIMARY KEY (audit_project_id)
);
CREATE TABLE audits (
    audit_id VARCHAR NOT NULL, plan_id VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, annotator VARCHAR NOT NULL,
    annotation VARCHAR NOT NULL, choice VARCHAR NOT NULL, reasons VARCHAR[] NOT NULL, confidence BIGINT,
    comment VARCHAR, seconds DOUBLE, shown_order VARCHAR NOT NULL, updated_at TIMESTAMP NOT NULL,
    reply VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (audit_id)
);
CREATE TABLE labels_rebuilt (
    label_id VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, context_id VARCHAR,
    shown_order VARCHAR NOT NULL, vote BIGINT NOT NULL, choice VARCHAR NOT NULL, p_a DOUBLE NOT NULL,
    p_tie DOUBLE NOT NULL, reply VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (label_id),
    CHECK (shown_order IN ('ab', 'ba', 'unknown', 'both')),
    CHECK (choice IN ('a', 'b', 'tie')),
    CHECK (p_a >= 0 AND p_tie >= 0 AND p_a + p_tie <= 1.000001)
);
INSERT INTO labels_rebuilt SELECT * FROM labels;
DROP TABLE labels;
ALTER TABLE labels_rebuilt RENAME TO labels;
