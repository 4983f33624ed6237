-- The log's complete subtrees above its leaves, so that a proof reads a few rows and
-- not every leaf. Level 0 stays in log_entries. Nodes are derived: a wrong one makes
-- a proof fail against the head, whose MAC this database cannot make.

CREATE TABLE log_nodes (
    level smallint NOT NULL CHECK (level BETWEEN 1 AND 62),
    index bigint   NOT NULL CHECK (index >= 0),
    hash  bytea    NOT NULL,
    PRIMARY KEY (level, index)
);
COMMENT ON TABLE log_nodes IS 'Roots of the complete subtrees of 2^level leaves (RFC 9162), each written once.';

INSERT INTO log_nodes (level, index, hash)
SELECT 1, l.index / 2, sha256('\x01'::bytea || l.leaf_hash || r.leaf_hash)
  FROM log_entries l JOIN log_entries r ON r.index = l.index + 1
 WHERE l.index % 2 = 0;

DO $$
DECLARE
    below smallint := 1;
BEGIN
    LOOP
        INSERT INTO log_nodes (level, index, hash)
        SELECT below + 1, l.index / 2, sha256('\x01'::bytea || l.hash || r.hash)
          FROM log_nodes l JOIN log_nodes r ON r.level = below AND r.index = l.index + 1
         WHERE l.level = below AND l.index % 2 = 0;
        EXIT WHEN NOT FOUND;
        below := below + 1;
    END LOOP;
END
$$;

CREATE TRIGGER log_nodes_append_only BEFORE UPDATE OR DELETE ON log_nodes
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER log_nodes_keep BEFORE TRUNCATE ON log_nodes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE log_cosigned (
    name text   PRIMARY KEY CHECK (name = 'log'),
    size bigint NOT NULL,
    note text   NOT NULL
);
COMMENT ON TABLE log_cosigned IS 'The last checkpoint that the witness cosigned. A signed note: whoever reads it verifies it.';
