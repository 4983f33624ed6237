-- Versions whose data key was destroyed. The row is the intent, written with the
-- state and the log entry; `key_deleted_at` says that it was carried out.

ALTER TABLE uploads DROP CONSTRAINT uploads_state_check;
ALTER TABLE uploads ADD CONSTRAINT uploads_state_check
    CHECK (state IN ('receiving', 'promoted', 'quarantined', 'shredded'));

-- A shredded version keeps its number: nothing else is ever promoted under it.
CREATE UNIQUE INDEX uploads_numbered ON uploads (tenant, dataset, version) WHERE state IN ('promoted', 'shredded');
CREATE INDEX uploads_attempts ON uploads (tenant, dataset, version);

CREATE TABLE shreddings (
    upload          uuid        PRIMARY KEY REFERENCES uploads (id),
    log_index       bigint      NOT NULL UNIQUE,
    shredded_at     timestamptz NOT NULL,
    key_deleted_at  timestamptz,
    no_backup_after timestamptz,
    mac             bytea       NOT NULL
);
COMMENT ON TABLE shreddings IS 'What was shredded when. Appends to the log wait for one another, so log_index is the order of commits.';
COMMENT ON COLUMN shreddings.mac IS 'Over table, key and all columns: an INSERT alone deletes no key.';
