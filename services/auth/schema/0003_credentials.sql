-- How clients prove themselves besides their certificate, and for whom they may speak.

-- A column that came later: rows written before it keep the MAC that they have, because a
-- column at its default is left out of the MAC.
ALTER TABLE client ADD COLUMN authentication text NOT NULL DEFAULT 'certificate'
    CHECK (authentication IN ('certificate', 'private_key_jwt', 'client_secret'));
-- Several clients may share one certificate if each proves itself by something of its own.
ALTER TABLE client DROP CONSTRAINT client_spiffe_id_key;
CREATE UNIQUE INDEX client_one_by_certificate ON client (spiffe_id) WHERE authentication = 'certificate';
CREATE INDEX client_by_spiffe_id ON client (spiffe_id);

-- HMACs of secrets that the service made; the key lies under the KEK.
CREATE TABLE client_secret (
    id text PRIMARY KEY,
    client_id text NOT NULL REFERENCES client (client_id),
    digest bytea NOT NULL CHECK (length(digest) = 32),
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL
);
CREATE INDEX client_secret_by_client ON client_secret (client_id);

-- Public keys of clients that sign assertions.
CREATE TABLE client_key (
    client_id text NOT NULL REFERENCES client (client_id),
    key_id text NOT NULL,
    public_key bytea NOT NULL,
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (client_id, key_id)
);

-- Assertions that were accepted, until they expire: each is accepted once. No MAC: to delete
-- one by SQL lets the client's own assertion be used again, with the client's own certificate.
CREATE TABLE used_assertion (
    client_id text NOT NULL,
    jti_sha256 bytea NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (client_id, jti_sha256)
);
CREATE INDEX used_assertion_by_expiry ON used_assertion (expires_at);

-- Issuers of other houses, each with its pinned keys (`kid`, a space, base64url of the DER).
CREATE TABLE external_issuer (
    name text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    url text NOT NULL,
    audience text NOT NULL,
    keys text[] NOT NULL,
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL,
    UNIQUE (tenant, url)
);

-- Which client may speak for whose subjects, where, with what.
CREATE TABLE exchange_grant (
    id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    client_id text NOT NULL REFERENCES client (client_id),
    source text NOT NULL,
    audience text NOT NULL,
    scopes text[] NOT NULL,
    refresh boolean NOT NULL,
    expires_at timestamptz,
    mac bytea NOT NULL
);
CREATE INDEX exchange_grant_by_client ON exchange_grant (client_id);
