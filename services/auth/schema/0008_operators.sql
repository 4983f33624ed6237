-- additive: programs from before it run on
-- Operators that were made with the database's role and the KEK, by no rpc: the first one, and
-- those that took its place. A row is never changed or removed by the application.
CREATE TABLE operator_change (
    client_id text        PRIMARY KEY REFERENCES client (client_id),
    replaces  text        NOT NULL,
    reason    text        NOT NULL,
    at        timestamptz NOT NULL,
    mac       bytea       NOT NULL
);
