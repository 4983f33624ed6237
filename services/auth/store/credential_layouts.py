"""How credentials, external issuers and exchange grants lie in their tables."""

from __future__ import annotations

from typing import Final

from services.auth.credential_records import ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
from services.auth.store.table import Layout

CLIENT_SECRETS: Final[Layout[ClientSecret]] = Layout(
    table="client_secret",
    key=("id",),
    columns=("id", "client_id", "digest", "created_at"),
    to_columns=lambda secret: (secret.id, secret.client_id, secret.digest, secret.created_at),
    from_columns=lambda row: ClientSecret(**row),
)

CLIENT_KEYS: Final[Layout[ClientKey]] = Layout(
    table="client_key",
    key=("client_id", "key_id"),
    columns=("client_id", "key_id", "public_key", "created_at"),
    to_columns=lambda key: (key.client_id, key.key_id, key.public_key, key.created_at),
    from_columns=lambda row: ClientKey(**row),
)

EXTERNAL_ISSUERS: Final[Layout[ExternalIssuer]] = Layout(
    table="external_issuer",
    key=("name",),
    columns=("name", "tenant", "url", "audience", "keys", "created_at"),
    to_columns=lambda issuer: (
        issuer.name,
        issuer.tenant,
        issuer.url,
        issuer.audience,
        issuer.keys,
        issuer.created_at,
    ),
    from_columns=lambda row: ExternalIssuer(**row),
)

EXCHANGE_GRANTS: Final[Layout[ExchangeGrant]] = Layout(
    table="exchange_grant",
    key=("id",),
    columns=("id", "tenant", "client_id", "source", "audience", "scopes", "refresh", "expires_at"),
    to_columns=lambda grant: (
        grant.id,
        grant.tenant,
        grant.client_id,
        grant.source,
        grant.audience,
        grant.scopes,
        grant.refresh,
        grant.expires_at,
    ),
    from_columns=lambda row: ExchangeGrant(**row),
)
