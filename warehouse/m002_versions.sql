-- Several places of one video, named versions of a data set, what was exported, what was taken out again; labels
-- whose order of showing nobody knows, because they were imported. A CHECK cannot be altered: the table is rebuilt.
CREATE TABLE video_files (
    video_id VARCHAR NOT NULL, uri VARCHAR NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (video_id, uri)
);
INSERT INTO video_files SELECT video_id, uri, run_id FROM videos;
CREATE TABLE datasets (
    name VARCHAR NOT NULL, rows_hash VARCHAR NOT NULL, query VARCHAR NOT NULL, preferences BIGINT NOT NULL,
    ties BIGINT NOT NULL, videos BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (name)
);
CREATE TABLE dataset_rows (
    rows_hash VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, judge VARCHAR NOT NULL, choice VARCHAR NOT NULL,
    p_a DOUBLE NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (rows_hash, pair_id, judge),
    CHECK (choice IN ('a', 'b', 'tie'))
);
CREATE TABLE exports (
    export_id VARCHAR NOT NULL, rows_hash VARCHAR NOT NULL, format VARCHAR NOT NULL, path VARCHAR NOT NULL,
    rows BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (export_id)
);
CREATE TABLE removals (
    video_id VARCHAR NOT NULL, uri VARCHAR NOT NULL, reason VARCHAR NOT NULL, rows_removed BIGINT NOT NULL,
    run_id VARCHAR NOT NULL,
    PRIMARY KEY (video_id)
);
CREATE TABLE labels_rebuilt (
    label_id VARCHAR NOT NULL, pair_id VARCHAR NOT NULL, spec_id VARCHAR NOT NULL, context_id VARCHAR,
    shown_order VARCHAR NOT NULL, vote BIGINT NOT NULL, choice VARCHAR NOT NULL, p_a DOUBLE NOT NULL,
    p_tie DOUBLE NOT NULL, reply VARCHAR NOT NULL, cached_tokens BIGINT NOT NULL, run_id VARCHAR NOT NULL,
    PRIMARY KEY (label_id),
    CHECK (shown_order IN ('ab', 'ba', 'unknown')),
    CHECK (choice IN ('a', 'b', 'tie')),
    CHECK (p_a >= 0 AND p_tie >= 0 AND p_a + p_tie <= 1.000001)
);
INSERT INTO labels_rebuilt SELECT * FROM labels;
DROP TABLE labels;
ALTER TABLE labels_rebuilt RENAME TO labels;
