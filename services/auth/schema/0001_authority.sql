-- The authority: who may ask for tokens, who may do what, whose signatures count.
-- Every table with a `mac` column holds authority rows: the application writes a MAC over
-- the table's name, the primary key and all other columns, and refuses a row whose MAC does
-- not verify. Constraints here are a second line; they do not replace the application's checks.

-- The epoch of this database's life and the number of the last change in it.
CREATE TABLE trust_head (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    sequence bigint NOT NULL DEFAULT 0 CHECK (sequence >= 0)
);
INSERT INTO trust_head DEFAULT VALUES;

-- What changed, by number. An event only names a record: whoever reads it reads the record
-- itself, and verifies that, so an event inserted by SQL can make nobody trust anything.
CREATE TABLE trust_event (
    sequence bigint PRIMARY KEY CHECK (sequence > 0),
    kind text NOT NULL,
    record_key text[] NOT NULL
);

CREATE TABLE tenant (
    name text PRIMARY KEY,
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL
);

CREATE TABLE client (
    client_id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    spiffe_id text NOT NULL UNIQUE,
    audiences text[] NOT NULL,
    scopes text[] NOT NULL,
    enabled boolean NOT NULL,
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL
);

CREATE TABLE access_grant (
    id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    caller text NOT NULL,
    verb text NOT NULL,
    resource text NOT NULL,
    effect text NOT NULL CHECK (effect IN ('allow', 'deny')),
    expires_at timestamptz,
    mac bytea NOT NULL
);
CREATE INDEX access_grant_by_tenant ON access_grant (tenant);

CREATE TABLE signer (
    key_id text PRIMARY KEY,
    tenant text NOT NULL REFERENCES tenant (name),
    role text NOT NULL CHECK (role IN ('supplier', 'publisher')),
    algorithm text NOT NULL,
    public_key bytea NOT NULL,
    valid_from timestamptz NOT NULL,
    valid_until timestamptz NOT NULL,
    compromised_since timestamptz,
    mac bytea NOT NULL
);

-- The head of each model's release; `latest` is what a publisher compares and swaps.
CREATE TABLE release (
    tenant text NOT NULL REFERENCES tenant (name),
    model text NOT NULL,
    latest bigint NOT NULL CHECK (latest > 0),
    mac bytea NOT NULL,
    PRIMARY KEY (tenant, model)
);

CREATE TABLE release_version (
    tenant text NOT NULL,
    model text NOT NULL,
    number bigint NOT NULL CHECK (number > 0),
    manifest_sha256 bytea NOT NULL CHECK (length(manifest_sha256) = 32),
    signer_key_id text NOT NULL REFERENCES signer (key_id),
    recorded_at timestamptz NOT NULL,
    mac bytea NOT NULL,
    PRIMARY KEY (tenant, model, number),
    FOREIGN KEY (tenant, model) REFERENCES release (tenant, model)
);

-- Keys that sign access tokens. The private half is sealed under the KEK of this service.
CREATE TABLE token_key (
    kid text PRIMARY KEY,
    algorithm text NOT NULL,
    public_key bytea NOT NULL,
    sealed_private_key bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('active', 'retiring', 'revoked')),
    created_at timestamptz NOT NULL,
    mac bytea NOT NULL
);
-- Exactly one key signs; the database itself refuses a second.
CREATE UNIQUE INDEX token_key_one_active ON token_key (state) WHERE state = 'active';

CREATE TABLE revocation (
    id text PRIMARY KEY,
    kind text NOT NULL,
    value text NOT NULL,
    not_before timestamptz,
    expires_at timestamptz,
    mac bytea NOT NULL
);
CREATE INDEX revocation_by_expiry ON revocation (expires_at);

-- The first operator of this database; there is at most one row.
CREATE TABLE operator_bootstrap (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    client_id text NOT NULL REFERENCES client (client_id),
    created_at timestamptz NOT NULL
);
