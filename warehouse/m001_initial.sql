-- All tables of version 0.1, as they were then. A migration that has been released is never edited.

CREATE TABLE runs (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, config VARCHAR NOT NULL, code_version VARCHAR NOT NULL,
    engine VARCHAR NOT NULL, host VARCHAR NOT NULL, started_at TIMESTAMP NOT NULL, ended_at TIMESTAMP,
    status VARCHAR NOT NULL, rows_written BIGINT NOT NULL, rows_failed BIGINT NOT NULL,
    tokens_in BIGINT NOT NULL, tokens_out BIGINT NOT NULL, gpu_seconds DOUBLE NOT NULL,
    PRIMARY KEY (run_id),
    CHECK (status IN ('running', 'done', 'interrupted', 'failed'))
);
CREATE TABLE specs (
    spec_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, model VARCHAR NOT NULL, revision VARCHAR NOT NULL,
    adapter VARCHAR NOT NULL, prompt VARCHAR NOT NULL, prompt_hash VARCHAR NOT NULL, frames VARCHAR NOT NULL,
    sampling VARCHAR NOT NULL, upstream VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (spec_id)
);
CREATE TABLE videos (
    video_id VARCHAR NOT NULL, uri VARCHAR NOT NULL, source VARCHAR NOT NULL, video_group VARCHAR NOT NULL,
    split VARCHAR NOT NULL, status VARCHAR NOT NULL, duration_s DOUBLE, fps DOUBLE, frames BIGINT,
    width BIGINT, height BIGINT, codec VARCHAR, rotation BIGINT, licence VARCHAR, run_id VARCHAR NOT NULL,
    PRIMARY KEY (video_id),
    CHECK (split IN ('train', 'val', 'test'))
);
CREATE TABLE clips (
    clip_id VARCHAR NOT NULL, video_id VARCHAR NOT NULL, start_s DOUBLE NOT NULL, end_s DOUBLE NOT NULL,
    method VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (clip_id),
    CHECK (start_s >= 0),
    CHECK (end_s > start_s)
);
CREATE TABLE captions (
    caption_id VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, text VARCHAR NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (caption_id)
);
CREATE TABLE contexts (
    context_id VARCHAR NOT NULL, video_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL,
    caption_ids VARCHAR[] NOT NULL, text VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (context_id)
);
CREATE TABLE questions (
    question_id VARCHAR NOT NULL, video_id VARCHAR NOT NULL, text VARCHAR NOT NULL, reference VARCHAR,
    kind VARCHAR, source VARCHAR NOT NULL, spec_id VARCHAR, run_id VARCHAR NOT NULL,
    PRIMARY KEY (question_id)
);
CREATE TABLE responses (
    response_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL,
    sample_index BIGINT NOT NULL, seed BIGINT NOT NULL, text VARCHAR NOT NULL, tokens BIGINT NOT NULL,
    finish VARCHAR NOT NULL, logprob DOUBLE, run_id VARCHAR NOT NULL,
    PRIMARY KEY (response_id)
);
CREATE TABLE pairs (
    pair_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, response_a VARCHAR NOT NULL,
    response_b VARCHAR NOT NULL, strategy VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (pair_id),
    CHECK (response_a < response_b)
);
CREATE TABLE labels (
    label_id VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, context_id VARCHAR,
    shown_order VARCHAR NOT NULL, vote BIGINT NOT NULL, choice VARCHAR NOT NULL, p_a DOUBLE NOT NULL,
    p_tie DOUBLE NOT NULL, reply VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (label_id),
    CHECK (shown_order IN ('ab', 'ba')),
    CHECK (choice IN ('a', 'b', 'tie')),
    CHECK (p_a >= 0 AND p_tie >= 0 AND p_a + p_tie <= 1.000001)
);
CREATE TABLE failures (
    row_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, attempt BIGINT NOT NULL, kind VARCHAR NOT NULL,
    message VARCHAR NOT NULL, reply VARCHAR, run_id VARCHAR NOT NULL,
    PRIMARY KEY (row_id, attempt)
);
CREATE TABLE checkpoints (
    checkpoint_id VARCHAR NOT NULL, kind VARCHAR NOT NULL, path VARCHAR NOT NULL, step BIGINT NOT NULL,
    parent VARCHAR NOT NULL, data_hash VARCHAR NOT NULL, config VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (checkpoint_id)
);
CREATE TABLE answers (
    answer_id VARCHAR NOT NULL, benchmark VARCHAR NOT NULL, question_id VARCHAR NOT NULL,
    spec_id VARCHAR NOT NULL, sample_index BIGINT NOT NULL, text VARCHAR NOT NULL, tokens BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (answer_id)
);
CREATE TABLE scores (
    score_id VARCHAR NOT NULL, answer_id VARCHAR NOT NULL, metric VARCHAR NOT NULL, judge VARCHAR NOT NULL,
    value DOUBLE, reply VARCHAR, run_id VARCHAR NOT NULL,
    PRIMARY KEY (score_id)
);
CREATE TABLE steps (
    run_id VARCHAR NOT NULL, step BIGINT NOT NULL, metrics VARCHAR NOT NULL,
    PRIMARY KEY (run_id, step)
);
