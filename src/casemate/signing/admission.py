"""Which public keys are too weak to be trusted, and what each kind of key signs with.

If this fails: whoever got a weak key registered can have forged signatures
accepted for that key's tenant and role; other tenants, and the log's record of
what was accepted, still hold.
"""

from __future__ import annotations

import math
from typing import Final, Literal, NoReturn, TypeAlias, get_args

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from casemate.errors import FieldViolation, InvalidRequest, Reason

Algorithm: TypeAlias = Literal["ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-sha256"]
"""What a key signs with. RSA-PSS is with MGF1-SHA-256 and a salt of 32 bytes."""

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

MINIMUM_RSA_BITS: Final = 3072
MAXIMUM_RSA_BITS: Final = 8192  # above it, one verification is a way to keep a core busy
RSA_EXPONENT: Final = 65537

KnownKey: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""The kinds of keys that can be sound."""

CURVES: Final[dict[str, tuple[Algorithm, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ecdsa-p256", hashes.SHA256()),
    "secp384r1": ("ecdsa-p384", hashes.SHA384()),
}
"""The curves, by their names in `cryptography`; each fixes its hash."""

# SP 800-89 §5.3.3: a modulus has no factor below 752. The even modulus is among those refused.
_SMALL_PRIMES: Final = math.prod(n for n in range(2, 752) if all(n % d for d in range(2, math.isqrt(n) + 1)))

_ROCA_PRIMES: Final = tuple(n for n in range(3, 702, 2) if all(n % d for d in range(3, math.isqrt(n) + 1, 2)))
"""CVE-2017-15361: a chip's library took primes that are powers of 65537 modulo each of these, where keys have 3072 bits
or more, and so are their products; they are factored in practice. Of sound keys one in 2^167 looks like them."""

_ED25519_PRIME: Final = 2**255 - 19
_TORSION_8: Final = (
    # The two y of the four points of order 8, little-endian.
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)


def _low_order_encodings() -> frozenset[bytes]:
    """The 14 encodings of the 8 points whose order divides 8, sign bit clear and set."""
    ys = [0, 1, _ED25519_PRIME - 1]  # orders 4, 1 and 2
    ys += [_ED25519_PRIME, _ED25519_PRIME + 1]  # 0 and 1 again, not reduced
    ys += [int.from_bytes(bytes.fromhex(y), "little") for y in _TORSION_8]
    return frozenset((y | sign << 255).to_bytes(32, "little") for y in ys for sign in (0, 1))


LOW_ORDER_ED25519: Final = _low_order_encodings()
"""Keys under which a constant is a valid signature of most messages."""


def refuse(detail: str, description: str, reason: Reason) -> NoReturn:
    """Raise for a public key; `detail` is for the log, `description` for the caller."""
    raise InvalidRequest(detail, reason=reason, violations=(FieldViolation("public_key", description),))


def weak(description: str) -> NoReturn:
    """Raise `WEAK_KEY`."""
    refuse(f"weak key: {description}", description, Reason.WEAK_KEY)


def judge(key: object) -> tuple[Algorithm, KnownKey]:
    """The algorithm of a key that is not weak, and the key as a type that verifies.

    Raises:
        InvalidRequest: `WEAK_KEY`.
    """
    if isinstance(key, Ed25519PublicKey):
        _judge_ed25519(key.public_bytes_raw())
        return "ed25519", key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in CURVES:
            weak("is on a curve that is not supported")
        return CURVES[key.curve.name][0], key
    if isinstance(key, rsa.RSAPublicKey):
        _judge_rsa(key)
        return "rsa-pss-sha256", key
    weak("is of an algorithm that is not supported")


def _judge_ed25519(raw: bytes) -> None:
    if raw in LOW_ORDER_ED25519:
        weak("is a point of low order")
    if int.from_bytes(raw, "little") & (2**255 - 1) >= _ED25519_PRIME:
        weak("is not a reduced point")  # RFC 8032 §5.1.3 step 1; OpenSSL does not look


def _judge_rsa(key: rsa.RSAPublicKey) -> None:
    numbers = key.public_numbers()
    if not MINIMUM_RSA_BITS <= numbers.n.bit_length() <= MAXIMUM_RSA_BITS:
        weak("has an RSA modulus below 3072 or above 8192 bits")
    if numbers.e != RSA_EXPONENT:
        weak("has an RSA exponent other than 65537")
    if math.gcd(numbers.n, _SMALL_PRIMES) != 1:
        weak("has an RSA modulus with a small factor")
    if all(_is_power(numbers.n % prime, prime) for prime in _ROCA_PRIMES):
        weak("has an RSA modulus of a generator that is broken (ROCA)")


def _is_power(residue: int, prime: int) -> bool:
    """Whether it is a power of 65537 modulo the prime."""
    power = 1
    while power != residue:
        power = power * RSA_EXPONENT % prime
        if power == 1:
            return False
    return True


def parse_algorithm(text: str) -> Algorithm:
    """The algorithm of this name.

    Raises:
        InvalidRequest: there is none.
    """
    if text not in ALGORITHMS:
        raise InvalidRequest("unknown algorithm", violations=(FieldViolation("algorithm", "is not supported"),))
    return text
