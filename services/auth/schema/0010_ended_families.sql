-- additive: programs from before it run on
-- That a refresh family ended, for as long as its row could be put back and used. The row says it
-- too, but an older row of the same family is genuine, and does not.
CREATE TABLE ended_family (
    id text PRIMARY KEY,
    expires_at timestamptz NOT NULL,
    mac bytea NOT NULL
);
CREATE INDEX ended_family_by_expiry ON ended_family (expires_at);
