"""Tokens as auth makes them, for benches that do not start it."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid
from collections.abc import Iterable

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.gate.core.records import Grant, VerificationKey
from casemate.gate.core.trust import TrustSnapshot


class Mint:
    """A token key, and the trust that goes with it."""

    def __init__(self) -> None:
        self._private = Ed25519PrivateKey.generate()
        spki = self._private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key = VerificationKey.load(spki)
        self.issuer = "https://auth.casemate.internal"

    def snapshot(self, grants: Iterable[Grant] = ()) -> TrustSnapshot:
        """Trust in this mint and these grants, and nothing else."""
        return TrustSnapshot.build(epoch="bench", sequence=1, issuer=self.issuer, keys=[self.key], grants=grants)

    def issue(
        self, thumbprint: str, *, lifetime_seconds: int = 300, tenant: str = "acme", client: str = "bench"
    ) -> str:
        """A token for the holder of the certificate with this thumbprint."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": "inference",
            "sub": "bench",
            "client_id": client,
            "tenant": tenant,
            "scope": "models.infer",
            "iat": now,
            "exp": now + lifetime_seconds,
            "jti": uuid.uuid4().hex,
            "cnf": {"x5t#S256": thumbprint},
        }
        return jwt.encode(claims, self._private, algorithm="EdDSA", headers={"kid": self.key.kid, "typ": "at+jwt"})


def forged_parts(kid: str) -> tuple[str, str]:
    """What stands before and after the 21 digits of a number, in tokens of the right form whose signature is noise."""
    header = _segment({"alg": "EdDSA", "kid": kid, "typ": "at+jwt"})
    claims = _segment({"iss": "https://auth.casemate.internal", "aud": "inference", "jti": uuid.uuid4().hex})
    return f"{header}.{claims}.", f"{base64.urlsafe_b64encode(os.urandom(48)).decode()}A"


def _segment(members: dict[str, str]) -> str:
    return base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=").decode()
