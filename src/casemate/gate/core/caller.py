"""Who calls, once it is proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_SERVICE_PREFIX = "svc/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The proven caller of one call; handlers get it from `current_caller()`.

    Only the gate makes one, after the certificate and, where the method asks for
    it, the token were verified and found to belong together.

    Attributes:
        tenant: the tenant of the token; None on methods that ask for a certificate alone.
        client_id: the token's client; None without a token.
        subject: the token's `sub`; None without a token.
        spiffe_id: the one SPIFFE ID of the certificate.
        scopes: what the token carries.
        token_id: the token's `jti`; None without a token.
        certificate_thumbprint: base64url SHA-256 of the leaf, as in `cnf.x5t#S256`.
        expires_at: the earlier of the token's `exp` and the certificate's `notAfter`.
        request_id: identifier of this call, also sent to the caller.
    """

    tenant: str | None
    client_id: str | None
    subject: str | None
    spiffe_id: str
    scopes: frozenset[str]
    token_id: str | None
    certificate_thumbprint: str
    expires_at: datetime
    request_id: str

    @property
    def path(self) -> str:
        """Path of the SPIFFE ID without its leading slash, as grants name callers: `t/acme/trainer`."""
        return self.spiffe_id.split("/", 3)[3]  # `spiffe_path`, once more: every call asks

    @property
    def service(self) -> str | None:
        """Name of the calling service, for peers whose SPIFFE ID is `/svc/<name>`; None for others."""
        path = self.path
        return path[len(_SERVICE_PREFIX) :] if path.startswith(_SERVICE_PREFIX) else None


def spiffe_path(spiffe_id: str) -> str:
    """Path of a SPIFFE ID that was already verified, without its leading slash."""
    return spiffe_id.split("/", 3)[3]
