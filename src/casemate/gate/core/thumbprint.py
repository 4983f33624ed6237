"""Thumbprints: names that follow from what they name."""

from __future__ import annotations

import hashlib
from base64 import urlsafe_b64encode
from typing import TypeAlias

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TokenPublicKey: TypeAlias = Ed25519PublicKey | EllipticCurvePublicKey


def key_thumbprint(key: TokenPublicKey) -> str:
    """The RFC 7638 thumbprint (SHA-256, base64url) of an Ed25519 or P-256 key: our `kid`.

    Source: RFC 7638 section 3.2 for P-256, RFC 8037 appendix A.3 for Ed25519.
    """
    if isinstance(key, Ed25519PublicKey):
        members = f'{{"crv":"Ed25519","kty":"OKP","x":"{_base64url(key.public_bytes_raw())}"}}'
    else:
        point = key.public_numbers()
        x, y = (_base64url(number.to_bytes(32)) for number in (point.x, point.y))
        members = f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'
    return _base64url(hashlib.sha256(members.encode()).digest())


def certificate_thumbprint(certificate_der: bytes) -> str:
    """The thumbprint of a certificate as `cnf.x5t#S256` carries it (RFC 8705 section 3.1)."""
    return _base64url(hashlib.sha256(certificate_der).digest())


def _base64url(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()
