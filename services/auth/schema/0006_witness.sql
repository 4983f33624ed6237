-- The last checkpoint of the transparency log that this service cosigned as a witness.
-- No other checkpoint of the log is cosigned unless it extends this one.

CREATE TABLE log_witness (
    origin      text        PRIMARY KEY,
    log_key     text        NOT NULL,
    size        bigint      NOT NULL CHECK (size > 0),
    root        bytea       NOT NULL,
    cosigned_at timestamptz NOT NULL,
    mac         bytea       NOT NULL
);
COMMENT ON TABLE log_witness IS 'One row a log, replaced with every cosignature. A row whose MAC fails refuses and alarms.';
COMMENT ON COLUMN log_witness.log_key IS 'The first key that this log was seen with; no other is taken.';
