-- Dataset versions, their sealed rows, and the transparency log.
--
-- Nothing here is plaintext and nothing here is authority: rows are sealed by a
-- data key that lives in another database, and whatever decides what is readable
-- carries a MAC whose key this database has never seen.

CREATE TABLE uploads (
    id              uuid        PRIMARY KEY,
    tenant          text        NOT NULL,
    dataset         text        NOT NULL,
    version         bigint      NOT NULL CHECK (version >= 1),
    upload_id       text        NOT NULL,
    state           text        NOT NULL CHECK (state IN ('receiving', 'promoted', 'quarantined')),
    manifest_sha256 bytea       NOT NULL,
    schema_sha256   bytea       NOT NULL,
    root            bytea       NOT NULL,
    signer_key_id   text        NOT NULL,
    row_count       bigint      NOT NULL CHECK (row_count >= 0),
    byte_count      bigint      NOT NULL CHECK (byte_count >= 0),
    chunk_count     integer     NOT NULL CHECK (chunk_count >= 0),
    data_key        uuid        NOT NULL,
    next_offset     bigint      NOT NULL,
    next_batch      integer     NOT NULL,
    next_ordinal    bigint      NOT NULL,
    started_at      timestamptz NOT NULL,
    promoted_at     timestamptz,
    log_index       bigint,
    mac             bytea       NOT NULL,
    UNIQUE (tenant, dataset, version, upload_id)
);
COMMENT ON TABLE uploads IS 'One attempt to push one version. The promoted one is the version.';
COMMENT ON COLUMN uploads.mac IS 'Over table, key and all columns; a row whose MAC fails refuses and alarms.';

-- The second of two promotions of one version fails here, whatever the code believed.
CREATE UNIQUE INDEX uploads_promoted ON uploads (tenant, dataset, version) WHERE state = 'promoted';
CREATE INDEX uploads_root ON uploads (tenant, root) WHERE state = 'promoted';

CREATE TABLE manifests (
    upload   uuid  PRIMARY KEY REFERENCES uploads (id),
    envelope bytea NOT NULL
);
COMMENT ON TABLE manifests IS 'The signed envelope as it came. Apart, because uploads is rewritten with every chunk.';

CREATE TABLE batches (
    upload        uuid    NOT NULL REFERENCES uploads (id),
    number        integer NOT NULL,
    first_ordinal bigint  NOT NULL,
    row_count     integer NOT NULL,
    leaf_hash     bytea   NOT NULL,
    salt          bytea   NOT NULL,
    commitment    bytea   NOT NULL,
    PRIMARY KEY (upload, number)
);
COMMENT ON TABLE batches IS 'One chunk of the manifest, sealed under its own subkey.';

CREATE TABLE sealed_rows (
    upload  uuid    NOT NULL,
    batch   integer NOT NULL,
    ordinal bigint  NOT NULL,
    sealed  bytea   NOT NULL,
    PRIMARY KEY (upload, batch, ordinal)
) WITH (fillfactor = 100);
-- Ciphertext does not compress: do not try.
ALTER TABLE sealed_rows ALTER COLUMN sealed SET STORAGE EXTERNAL;
COMMENT ON TABLE sealed_rows IS 'One record each: AES-256-GCM, its place bound in.';

CREATE TABLE log_entries (
    index     bigint PRIMARY KEY CHECK (index >= 0),
    entry     bytea  NOT NULL,
    leaf_hash bytea  NOT NULL
);
COMMENT ON TABLE log_entries IS 'The transparency log, append-only (RFC 9162 tree over the entries).';

CREATE TABLE log_head (
    name      text    PRIMARY KEY CHECK (name = 'log'),
    size      bigint  NOT NULL,
    frontier  bytea   NOT NULL,
    mac       bytea   NOT NULL
);
COMMENT ON TABLE log_head IS 'Size and frontier of the tree; one row. The frontier is the roots of its full subtrees.';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME;
END
$$;

-- A guard against mistakes, not against the owner of the database: what finds that one out is the tree.
CREATE TRIGGER log_entries_append_only BEFORE UPDATE OR DELETE ON log_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER log_entries_keep BEFORE TRUNCATE ON log_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
