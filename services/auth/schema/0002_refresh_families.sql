-- Refresh tokens, one row per family. A token is derived from its row by a key that the
-- database does not have, so neither a token nor a hash of one is stored anywhere.
CREATE TABLE refresh_family (
    id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    client_id text NOT NULL REFERENCES client (client_id),
    -- Only certificates of this name may use it.
    spiffe_id text NOT NULL,
    subject text NOT NULL,
    -- Who speaks for the subject, the last one first.
    actors text[] NOT NULL,
    audience text NOT NULL,
    scopes text[] NOT NULL,
    salt bytea NOT NULL CHECK (length(salt) = 16),
    -- The generation of the one token that is current; what a refresh compares and swaps.
    generation bigint NOT NULL CHECK (generation > 0),
    created_at timestamptz NOT NULL,
    rotated_at timestamptz NOT NULL,
    idle_expires_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at timestamptz,
    mac bytea NOT NULL
);
CREATE INDEX refresh_family_by_client ON refresh_family (client_id);
CREATE INDEX refresh_family_by_subject ON refresh_family (subject);
CREATE INDEX refresh_family_by_expiry ON refresh_family (idle_expires_at);
