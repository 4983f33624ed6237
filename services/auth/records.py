"""What the auth service keeps besides the records that the trust feed pushes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

HOUSE_TENANT = "casemate"
"""The operators' own tenant; its administrators act on every tenant."""

TokenKeyState: TypeAlias = Literal["active", "retiring", "revoked"]
"""Signs and verifies; verifies only; neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organisation."""

    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who may ask for tokens, and for which."""

    client_id: str
    tenant: str
    spiffe_id: str
    audiences: tuple[str, ...]
    scopes: tuple[str, ...]
    enabled: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key that signs access tokens; its private half as the database holds it, sealed.

    `kid` is the RFC 7638 thumbprint of the public key, so nobody chooses it.
    """

    kid: str
    algorithm: str
    public_key: bytes
    sealed_private_key: bytes
    state: TokenKeyState
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHead:
    """The number of a model's newest released version."""

    tenant: str
    model: str
    latest: int
