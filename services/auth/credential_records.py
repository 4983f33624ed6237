"""How clients prove themselves, and for whom they may speak, as records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

OUR_OWN: Final = "casemate"
"""As the source of an exchange grant: access tokens that we issued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSecret:
    """A generated secret of a client, as an HMAC under the service's own key."""

    id: str
    client_id: str
    digest: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKey:
    """A public key whose assertions prove a client. `key_id` is the hex SHA-256 of its DER."""

    client_id: str
    key_id: str
    public_key: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIssuer:
    """An issuer of another house, trusted by its pinned keys alone; nothing is ever fetched.

    Attributes:
        name: ours for it; its subjects are `<name>:<sub>` here.
        tenant: whose clients may exchange its tokens.
        url: the `iss` of its tokens, exactly.
        audience: the `aud` that its tokens have when they are meant for us.
        keys: `kid`, a space, base64url of the SubjectPublicKeyInfo.
        created_at: when it was registered.
    """

    name: str
    tenant: str
    url: str
    audience: str
    keys: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeGrant:
    """Lets one client speak for the subjects of one source, at one audience.

    Attributes:
        id: unique identifier.
        tenant: of the client.
        client_id: who may exchange.
        source: name of an external issuer, or `casemate` for access tokens of ours.
        audience: the one service, or the next client, that results are for.
        scopes: the most that results carry.
        refresh: whether a refresh token may come with them.
        expires_at: when it ends; None: it does not.
    """

    id: str
    tenant: str
    client_id: str
    source: str
    audience: str
    scopes: tuple[str, ...]
    refresh: bool
    expires_at: datetime | None = None
