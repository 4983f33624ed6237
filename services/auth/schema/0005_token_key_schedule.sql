-- Token keys run themselves: prepared, published, active, retiring, and then gone.
-- `changed_at` is when the state last changed; rows from before it count from their making.
ALTER TABLE token_key ADD COLUMN changed_at timestamptz;
ALTER TABLE token_key DROP CONSTRAINT token_key_state_check;
ALTER TABLE token_key ADD CONSTRAINT token_key_state_check
    CHECK (state IN ('prepared', 'published', 'active', 'retiring', 'revoked'));
-- Replicas that prepare at the same time prepare one key.
CREATE UNIQUE INDEX token_key_one_waiting ON token_key ((true)) WHERE state IN ('prepared', 'published');
