-- Operators sign labels: the one way back to an older version of a model.
ALTER TABLE signer DROP CONSTRAINT signer_role_check;
ALTER TABLE signer ADD CONSTRAINT signer_role_check CHECK (role IN ('supplier', 'publisher', 'operator'));

-- Where each label points, as it was signed; number 0 is a label that was taken away, whose
-- revisions go on being counted.
CREATE TABLE release_label (
    tenant text NOT NULL,
    model text NOT NULL,
    label text NOT NULL,
    number bigint NOT NULL CHECK (number >= 0),
    revision bigint NOT NULL CHECK (revision > 0),
    signer_key_id text NOT NULL REFERENCES signer (key_id),
    envelope bytea NOT NULL,
    recorded_at timestamptz NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (tenant, model, label),
    FOREIGN KEY (tenant, model) REFERENCES release (tenant, model)
);
CREATE INDEX release_label_by_signer ON release_label (signer_key_id);
