"""JSON Web Tokens that others sign: client assertions and subject tokens of external issuers.

The key says the algorithm; a header only has to agree. What could make a verifier
fetch, decompress or skip something is refused before any key is looked for.

If this fails: a forged assertion passes for a client's, or a forged subject for a
real one; the caller's own certificate and its exchange grants still limit it.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate.errors import InvalidRequest, Reason, Unauthenticated
from casemate.signing.keys import PublicKey
from casemate.signing.strict_json import parse_object

MAX_LENGTH: Final = 8192
_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86,1024})")
_FORBIDDEN: Final = frozenset({"jku", "x5u", "jwk", "x5c", "crit", "zip", "b64", "enc"})
_ALGORITHMS: Final[Mapping[str, tuple[str, ...]]] = {
    "ed25519": ("EdDSA",),
    "ecdsa-p256": ("ES256",),
    "ecdsa-p384": ("ES384",),
    "rsa-pss-sha256": ("PS256", "RS256"),
}
_RSA: Final = frozenset(_ALGORITHMS["rsa-pss-sha256"])
_RSA_SIZES: Final = (384, 512, 768)
"""Bytes of the moduli that clients have."""
_EVERY: Final = frozenset(name for names in _ALGORITHMS.values() for name in names)
_MAX_VALUES: Final = 1024
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
        key
        for kid, key in ((kid, _loaded(der)) for kid, der in keys.items())
        if token.key_id in (None, kid) and token.algorithm in _ALGORITHMS[key.algorithm]
    ]
    size = _signature_size(token)
    known = len(fitting) == 1 and fitting[0].modulus_bytes in (None, size)
    key = fitting[0].key if known else _nobody(token.algorithm, size)
    algorithms = [token.algorithm] if token.algorithm in _EVERY else ["EdDSA"]
    options: Any = {f"verify_{name}": False for name in _UNCHECKED}
    try:
        jwt.decode(token.text, key=key, algorithms=algorithms, options=options)
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
        return parse_object(raw, field="token", maximum_items=_MAX_VALUES)
    except (ValueError, InvalidRequest):
        raise Unauthenticated("not one JSON object in base64url", reason=reason) from None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A key that was admitted; `modulus_bytes` for RSA alone."""

    algorithm: str
    key: Any
    modulus_bytes: int | None


@lru_cache(maxsize=1024)
def _loaded(der: bytes) -> _Loaded:
    """Admitting costs more than verifying: done once, or a client that is known would show by it."""
    key = load_der_public_key(der)
    size = (key.key_size + 7) // 8 if isinstance(key, RSAPublicKey) else None
    return _Loaded(PublicKey.admit(der).algorithm, key, size)


def _signature_size(token: ForeignToken) -> int:
    return len(token.text.rpartition(".")[2]) * 3 // 4


def _nobody(algorithm: str, size: int) -> Any:  # noqa: ANN401  # as PyJWT takes keys of any kind
    """A key that nobody signs with, of the token's algorithm and size: an unknown key costs what a known one does."""
    if algorithm in _RSA:
        return _nobodys("RSA", size if size in _RSA_SIZES else _RSA_SIZES[0])
    return _nobodys(algorithm if algorithm in ("ES256", "ES384") else "EdDSA", 0)


@cache
def _nobodys(kind: str, size: int) -> Any:  # noqa: ANN401  # as above
    if kind == "RSA":
        # Nobody knows the factors of a number that was drawn, so no key has to be searched for.
        drawn = secrets.randbits(8 * size) | 1 << (8 * size - 1) | 1
        return RSAPublicNumbers(65537, drawn).public_key()
    if kind == "EdDSA":
        return Ed25519PrivateKey.generate().public_key()
    return generate_private_key(SECP256R1() if kind == "ES256" else SECP384R1()).public_key()
