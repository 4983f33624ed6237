"""What clients and external issuers sign, made by hand so that tests can make it wrong."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.auth.v1 import credential_service_pb2 as credentials

ISSUER = "https://auth.casemate.internal"
IDP = "https://idp.acme.example"
GIVEN_TO = "casemate-of-acme"


@dataclass
class Signatory:
    """A private key that signs JWTs."""

    algorithm: str = "EdDSA"
    kid: str | None = None
    private_key: Any = field(init=False)

    def __post_init__(self) -> None:
        es256 = self.algorithm == "ES256"
        self.private_key = generate_private_key(SECP256R1()) if es256 else Ed25519PrivateKey.generate()

    @property
    def der(self) -> bytes:
        return self.private_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        headers = {**({"kid": self.kid} if self.kid else {}), **header}
        return jwt.encode(claims, self.private_key, algorithm=self.algorithm, headers=headers)

    def assertion(self, client_id: str, **change: Any) -> str:
        """A client assertion; a claim changed to None is left out."""
        now = int(datetime.now(UTC).timestamp())
        claims = {
            "iss": client_id,
            "sub": client_id,
            "aud": ISSUER,
            "iat": now,
            "exp": now + 60,
            "jti": secrets.token_hex(16),
            **change,
        }
        return self.sign({name: value for name, value in claims.items() if value is not None})

    def about(self, subject: str = "alice", **change: Any) -> str:
        """A subject token of an external issuer; a claim changed to None is left out."""
        now = int(datetime.now(UTC).timestamp())
        claims = {"iss": IDP, "sub": subject, "aud": GIVEN_TO, "iat": now, "exp": now + 200, **change}
        return self.sign({name: value for name, value in claims.items() if value is not None})


def issuer_message(signatory: Signatory, *, name: str = "idp", tenant: str = "acme") -> credentials.ExternalIssuer:
    return credentials.ExternalIssuer(
        name=name,
        tenant=tenant,
        url=IDP,
        audience=GIVEN_TO,
        keys=[credentials.PinnedKey(kid="k1", public_key=signatory.der)],
    )


def exchange_grant(**change: Any) -> credentials.CreateExchangeGrantRequest:
    grant = {
        "tenant": "acme",
        "client_id": "acme-gateway",
        "source": "idp",
        "audience": "inference",
        "scopes": ["models.infer"],
        "refresh": True,
    }
    return credentials.CreateExchangeGrantRequest(grant=credentials.ExchangeGrant(**{**grant, **change}))
