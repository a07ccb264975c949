-- What generation at scale wants to know: prompt tokens that were found in a cache, a run's share of the seconds and
-- what held it back; contexts made of other contexts and of speech; ratings of single responses and questions. A column
-- that may not be NULL cannot be added: the table is rebuilt.
CREATE TABLE runs_rebuilt (
    run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, config VARCHAR NOT NULL, code_version VARCHAR NOT NULL,
    engine VARCHAR NOT NULL, host VARCHAR NOT NULL, started_at TIMESTAMP NOT NULL, ended_at TIMESTAMP,
    status VARCHAR NOT NULL, rows_written BIGINT NOT NULL, rows_failed BIGINT NOT NULL, tokens_in BIGINT NOT NULL,
    tokens_out BIGINT NOT NULL, cached_tokens BIGINT NOT NULL, seconds DOUBLE NOT NULL, gpu_seconds DOUBLE NOT NULL,
    bound_by VARCHAR NOT NULL,
    PRIMARY KEY (run_id)
);
INSERT INTO runs_rebuilt
SELECT * EXCLUDE (gpu_seconds), 0, coalesce(epoch(ended_at - started_at), 0), gpu_seconds, '' FROM runs;
DROP TABLE runs;
ALTER TABLE runs_rebuilt RENAME TO runs;
CREATE TABLE captions_rebuilt (
    caption_id VARCHAR NOT NULL, clip_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, text VARCHAR NOT NULL,
    cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (caption_id)
);
INSERT INTO captions_rebuilt SELECT * EXCLUDE (run_id), 0, run_id FROM captions;
DROP TABLE captions;
ALTER TABLE captions_rebuilt RENAME TO captions;
CREATE TABLE responses_rebuilt (
    response_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, sample_index BIGINT NOT NULL,
    seed BIGINT NOT NULL, text VARCHAR NOT NULL, tokens BIGINT NOT NULL, finish VARCHAR NOT NULL, logprob DOUBLE,
    shown_video_id VARCHAR, cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (response_id)
);
INSERT INTO responses_rebuilt SELECT * EXCLUDE (run_id), NULL, 0, run_id FROM responses;
DROP TABLE responses;
ALTER TABLE responses_rebuilt RENAME TO responses;
CREATE TABLE answers_rebuilt (
    answer_id VARCHAR NOT NULL, benchmark VARCHAR NOT NULL, question_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL,
    sample_index BIGINT NOT NULL, text VARCHAR NOT NULL, tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (answer_id)
);
INSERT INTO answers_rebuilt SELECT * EXCLUDE (run_id), 0, run_id FROM answers;
DROP TABLE answers;
ALTER TABLE answers_rebuilt RENAME TO answers;
CREATE TABLE contexts_rebuilt (
    context_id VARCHAR NOT NULL, video_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, caption_ids VARCHAR[] NOT NULL,
    transcript_ids VARCHAR[] NOT NULL, base_context_id VARCHAR, text VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (context_id)
);
INSERT INTO contexts_rebuilt SELECT * EXCLUDE (text, run_id), [], NULL, text, 0, run_id FROM contexts;
DROP TABLE contexts;
ALTER TABLE contexts_rebuilt RENAME TO contexts;
CREATE TABLE transcripts (
    transcript_id VARCHAR NOT NULL, video_id VARCHAR NOT NULL, start_s DOUBLE NOT NULL, end_s DOUBLE NOT NULL,
    text VARCHAR NOT NULL, source VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (transcript_id)
);
CREATE TABLE ratings (
    rating_id VARCHAR NOT NULL, question_id VARCHAR NOT NULL, response_id VARCHAR, spec_id VARCHAR NOT NULL,
    item VARCHAR NOT NULL, value DOUBLE NOT NULL, reply VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (rating_id)
);
