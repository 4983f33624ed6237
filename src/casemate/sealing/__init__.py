"""Envelope encryption: what rests on a disk or in a database rests sealed.

A key-encryption key (`kek`, `local`) wraps data keys (`keys`); a data key seals
rows (`rows`) and files (`files`); a key of its own authenticates the rows that
decide who may do what (`authority_rows`). Knows no database, and no network but that
of a provider. Importing this package imports nothing; take what you need from its modules:

    rows            seal_batch, seal_rows, open_batch, open_rows, BatchContext
    files           seal_stream, open_stream, seal_bytes, open_bytes, SealedFile
    keys            DataKey, WrappedKey, KeyContext
    kek             KeyEncryptionKey, the protocol of every provider, and KekState
    local           LocalKeyRing: a key in a file; `watched_ring` reads it again when it changes
    aws_kms         AwsKmsKey: a key of AWS KMS            (extra: casemate[aws])
    pkcs11          Pkcs11Key: a key in a token, with `pkcs11_token` (extra: casemate[pkcs11])
    provider        load_kek: one of these three, by a setting
    breaker         GuardedKek: leaves a provider alone that does not answer
    key_ring        DataKeyRing and KekWatch: data keys in memory, for a while
    rewrapping      rewrap_all and survey: after a rotation
    secret_source   WatchedSecret, kept current; sources in `secret_files` and `aws_secrets`
    authority_rows  AuthorityKey: rows that only the service can write

`docs/how-to/seal-your-own-data.md` shows the common uses.
"""
