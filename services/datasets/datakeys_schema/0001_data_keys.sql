-- Wrapped data keys, in a database of their own with its own backups: restoring
-- the rows then does not restore a key that was deleted.

CREATE TABLE data_keys (
    id         uuid        PRIMARY KEY,
    purpose    text        NOT NULL,
    tenant     text        NOT NULL,
    name       text        NOT NULL,
    version    bigint      NOT NULL,
    wrapped    bytea       NOT NULL,
    created_at timestamptz NOT NULL
);
COMMENT ON TABLE data_keys IS 'One data key per dataset version, and the seed of the log''s signing key; wrapped by the KEK.';

-- Two replicas that start together must agree on one log key.
CREATE UNIQUE INDEX data_keys_log ON data_keys (purpose) WHERE purpose = 'log-signing';
