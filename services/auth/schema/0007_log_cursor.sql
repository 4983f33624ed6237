-- Up to which change the transparency log was told. Set back, changes are told again, under
-- the same number; set forward by SQL, it does not verify.
CREATE TABLE log_cursor (
    name     text   PRIMARY KEY CHECK (name = 'log'),
    sequence bigint NOT NULL CHECK (sequence >= 0),
    mac      bytea  NOT NULL
);
