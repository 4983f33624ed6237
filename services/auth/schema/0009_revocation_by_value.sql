-- additive: programs from before it run on
-- Whether something was revoked before is asked by what it is, and must not read every row.
CREATE INDEX revocation_by_value ON revocation (kind, value);
