-- Labels of versions, the models that were trained on them, and how long they are kept.
-- Every row carries a MAC over table, key and all columns.

-- A discarded attempt was never promoted and never will be; its key is gone.
ALTER TABLE uploads DROP CONSTRAINT uploads_state_check;
ALTER TABLE uploads ADD CONSTRAINT uploads_state_check
    CHECK (state IN ('receiving', 'promoted', 'quarantined', 'shredded', 'discarded'));
CREATE INDEX uploads_unfinished ON uploads (started_at) WHERE state IN ('receiving', 'quarantined');

CREATE TABLE labels (
    tenant    text   NOT NULL,
    dataset   text   NOT NULL,
    label     text   NOT NULL,
    version   bigint NOT NULL CHECK (version >= 1),
    log_index bigint NOT NULL,
    mac       bytea  NOT NULL,
    PRIMARY KEY (tenant, dataset, label)
);
COMMENT ON TABLE labels IS 'Which version a label names. Each move is in the log.';

CREATE TABLE trained_models (
    number          bigint PRIMARY KEY CHECK (number >= 0),
    tenant          text   NOT NULL,
    root            bytea  NOT NULL,
    model           text   NOT NULL,
    model_number    bigint NOT NULL,
    manifest_sha256 bytea  NOT NULL,
    signer_key_id   text   NOT NULL,
    log_index       bigint NOT NULL,
    mac             bytea  NOT NULL
);
CREATE INDEX trained_models_root ON trained_models (tenant, root);
COMMENT ON TABLE trained_models IS 'Which model names which root: an index of the log''s release entries.';

CREATE TABLE trained_models_head (
    name text   PRIMARY KEY CHECK (name = 'trained'),
    size bigint NOT NULL,
    mac  bytea  NOT NULL
);
COMMENT ON TABLE trained_models_head IS 'How many rows trained_models has, so that one that was deleted is missed.';

CREATE TABLE retentions (
    tenant           text   NOT NULL,
    dataset          text   NOT NULL,
    keep_versions    bigint NOT NULL CHECK (keep_versions >= 0),
    keep_for_seconds bigint CHECK (keep_for_seconds > 0),
    log_index        bigint NOT NULL,
    mac              bytea  NOT NULL,
    PRIMARY KEY (tenant, dataset)
);
COMMENT ON TABLE retentions IS 'How long versions of a dataset are kept; what is beyond is shredded.';
