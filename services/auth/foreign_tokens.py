"""JSON Web Tokens that others sign: client assertions and subject tokens of external issuers.

The key says the algorithm; a header only has to agree. What could make a verifier
fetch, decompress or skip something is refused before any key is looked for.

If this fails: a forged assertion passes for a client's, or a forged subject for a
real one; the caller's own certificate and its exchange grants still limit it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from casemate.errors import Reason, Unauthenticated
from casemate.signing.keys import PublicKey

MAX_LENGTH: Final = 8192
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86,1024})")
_FORBIDDEN: Final = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "zip", "b64", "enc"})
_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "ed25519": ("EdDSA",),
    "ecdsa-p256": ("ES256",),
    "ecdsa-p384": ("ES384",),
    "rsa-pss-sha256": ("PS256", "RS256"),
}
_MAX_INSTANT: Final = 253_402_300_799
_UNCHECKED: Final = ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignToken:
    """A token of the right form, of which nothing is proven before `verify_foreign` returned."""

    text: str
    algorithm: str
    key_id: str | None
    claims: Mapping[str, Any]


def parse_foreign(text: str, *, reason: Reason) -> ForeignToken:
    """Reads a compact JWS.

    Raises:
        Unauthenticated: with this reason, whatever is wrong with it.
    """
    form = _COMPACT.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if form is None:
        raise Unauthenticated("not a compact JWS", reason=reason)
    header, claims = _segment(form[1], reason), _segment(form[2], reason)
    algorithm, key_id = header.get("alg"), header.get("kid")
    if _FORBIDDEN & header.keys() or not isinstance(algorithm, str):
        raise Unauthenticated("a header that is never accepted", reason=reason)
    if key_id is not None and not isinstance(key_id, str):
        raise Unauthenticated("a key id that is no text", reason=reason)
    return ForeignToken(text=text, algorithm=algorithm, key_id=key_id, claims=claims)


def verify_foreign(token: ForeignToken, keys: Mapping[str, bytes], *, reason: Reason) -> None:
    """Requires a signature by one of these keys (`kid` → DER). One verification, whether or not a key fits.

    Without a `kid` in the header, the one key of the token's algorithm is meant.

    Raises:
        Unauthenticated: with this reason.
    """
    fitting = [
        der
        for kid, der in keys.items()
        if token.key_id in (None, kid) and token.algorithm in _ALGORITHMS[PublicKey.admit(der).algorithm]
    ]
    known = len(fitting) == 1
    der = fitting[0] if known else _nobody("ES256" if token.algorithm == "ES256" else "EdDSA")
    algorithms = [token.algorithm] if known else ["EdDSA", "ES256"]
    options: Any = {f"verify_{name}": False for name in _UNCHECKED}
    try:
        jwt.decode(token.text, key=load_der_public_key(der), algorithms=algorithms, options=options)  # type: ignore[arg-type]  # admitted kinds only
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Unauthenticated(f"signature refused: {type(error).__name__}", reason=reason) from None
    if not known:
        raise Unauthenticated("no such key", reason=reason)


def instant(claims: Mapping[str, Any], name: str, *, reason: Reason) -> datetime:
    """A claim that is a moment.

    Raises:
        Unauthenticated: with this reason: it is missing or not a whole number of seconds.
    """
    value = claims.get(name)
    # bool is an int in Python, and not a time.
    if type(value) is not int or not 0 <= value <= _MAX_INSTANT:
        raise Unauthenticated(f"claim {name} is not a time", reason=reason)
    return datetime.fromtimestamp(value, UTC)


def _segment(segment: str, reason: Reason) -> dict[str, Any]:
    try:
        raw = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        parsed = json.loads(raw, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Unauthenticated("not JSON in base64url", reason=reason) from None
    if not isinstance(parsed, dict):
        raise Unauthenticated("not an object", reason=reason)
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


@cache
def _nobody(algorithm: str) -> bytes:
    """A key that nobody signs with, so that an unknown key costs what a known one does."""
    key = generate_private_key(SECP256R1()) if algorithm == "ES256" else Ed25519PrivateKey.generate()
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
