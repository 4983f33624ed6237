"""Signing keys and the public keys that are admitted.

The key says which algorithm is used, never the message. One key has one
encoding and one id, so that a registry cannot hold it twice.

If this fails: whoever got a weak key registered can have forged signatures
accepted for that key's tenant and role; other tenants, and the log's record of
what was accepted, still hold.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import InitVar, dataclass, field
from typing import Final, Literal, NoReturn, TypeAlias, get_args

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from casemate.errors import FieldViolation, InvalidRequest, Reason, SignatureInvalid
from casemate.secret import Secret

Algorithm: TypeAlias = Literal["ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-sha256"]
"""What a key signs with. RSA-PSS is with MGF1-SHA-256 and a salt of 32 bytes."""

ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

MINIMUM_RSA_BITS: Final = 3072
MAXIMUM_RSA_BITS: Final = 8192  # above it, one verification is a way to keep a core busy
RSA_EXPONENT: Final = 65537
MAXIMUM_DER_BYTES: Final = 2048
MAXIMUM_PEM_BYTES: Final = 16384

# SP 800-89 §5.3.3: a modulus has no factor below 752. The even modulus is among those refused.
_SMALL_PRIMES: Final = math.prod(n for n in range(2, 752) if all(n % d for d in range(2, math.isqrt(n) + 1)))

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

_Public: TypeAlias = Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
_Private: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_CURVE_HASHES: Final[dict[str, tuple[Algorithm, hashes.HashAlgorithm]]] = {
    "secp256r1": ("ecdsa-p256", hashes.SHA256()),
    "secp384r1": ("ecdsa-p384", hashes.SHA384()),
}
_SEAL: Final = object()


def _pss() -> padding.PSS:
    # Never AUTO: it would accept a salt of no bytes.
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)


def _refuse(detail: str, description: str, reason: Reason) -> NoReturn:
    raise InvalidRequest(detail, reason=reason, violations=(FieldViolation("public_key", description),))


def _weak(description: str) -> NoReturn:
    _refuse(f"weak key: {description}", description, Reason.WEAK_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public key that passed `admit`; there is no other way to make one.

    Two are equal when their encodings are.
    """

    der: bytes
    algorithm: Algorithm
    key_id: str
    _key: _Public = field(repr=False, compare=False)
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a PublicKey is made by PublicKey.admit")

    @classmethod
    def admit(cls, der: bytes) -> PublicKey:
        """The key in a DER SubjectPublicKeyInfo, if it is sound enough to trust.

        Not checked: whether an Ed25519 point has a small component beside a large
        one (that helps nobody to forge), and RSA moduli of known bad generators.

        Raises:
            InvalidRequest: `WEAK_KEY` for RSA below 3072 bits, with e ≠ 65537 or a
                small factor, for the low-order and unreduced Ed25519 points, for
                other curves and algorithms; `INVALID_FIELD` for bytes that are not
                the one DER encoding of a key.
        """
        if len(der) > MAXIMUM_DER_BYTES:
            _refuse("public key too long", "is too long", Reason.INVALID_FIELD)
        try:
            key = load_der_public_key(der)
        except UnsupportedAlgorithm:
            _weak("is of an algorithm that is not supported")
        except (ValueError, TypeError):
            _refuse("not a SubjectPublicKeyInfo", "is not a DER SubjectPublicKeyInfo", Reason.INVALID_FIELD)
        algorithm, sound = _judge(key)
        if sound.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
            # A second spelling (a compressed point, another OID) would be a second key id.
            _refuse("not the canonical encoding", "is not in its canonical encoding", Reason.INVALID_FIELD)
        return cls(der=der, algorithm=algorithm, key_id=hashlib.sha256(der).hexdigest(), _key=sound, _seal=_SEAL)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return if `signature` is this key's over `message`.

        ECDSA signatures are DER and have a valid twin (r, -s): never use signature
        bytes as an identity.

        Raises:
            SignatureInvalid: it is not.
        """
        try:
            if isinstance(self._key, Ed25519PublicKey):
                self._key.verify(signature, message)
            elif isinstance(self._key, rsa.RSAPublicKey):
                self._key.verify(signature, message, _pss(), hashes.SHA256())
            else:
                self._key.verify(signature, message, ec.ECDSA(_CURVE_HASHES[self._key.curve.name][1]))
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(f"signature of key {self.key_id} does not verify") from error

    def ed25519_bytes(self) -> bytes:
        """The 32 bytes of an Ed25519 key, as log notes want them.

        Raises:
            InvalidRequest: the key is of another algorithm.
        """
        if not isinstance(self._key, Ed25519PublicKey):
            _refuse("not an Ed25519 key", "is not an Ed25519 key", Reason.INVALID_FIELD)
        return self._key.public_bytes_raw()


def _judge(key: object) -> tuple[Algorithm, _Public]:
    """The algorithm of a key that is not weak."""
    if isinstance(key, Ed25519PublicKey):
        _judge_ed25519(key.public_bytes_raw())
        return "ed25519", key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVE_HASHES:
            _weak("is on a curve that is not supported")
        return _CURVE_HASHES[key.curve.name][0], key
    if isinstance(key, rsa.RSAPublicKey):
        _judge_rsa(key)
        return "rsa-pss-sha256", key
    _weak("is of an algorithm that is not supported")


def _judge_ed25519(raw: bytes) -> None:
    if raw in LOW_ORDER_ED25519:
        _weak("is a point of low order")
    if int.from_bytes(raw, "little") & (2**255 - 1) >= _ED25519_PRIME:
        _weak("is not a reduced point")  # RFC 8032 §5.1.3 step 1; OpenSSL does not look


def _judge_rsa(key: rsa.RSAPublicKey) -> None:
    numbers = key.public_numbers()
    if not MINIMUM_RSA_BITS <= numbers.n.bit_length() <= MAXIMUM_RSA_BITS:
        _weak("has an RSA modulus below 3072 or above 8192 bits")
    if numbers.e != RSA_EXPONENT:
        _weak("has an RSA exponent other than 65537")
    if math.gcd(numbers.n, _SMALL_PRIMES) != 1:
        _weak("has an RSA modulus with a small factor")


class SigningKey:
    """A private key; it shows itself only in `to_pem`.

    Its public half has passed `PublicKey.admit`.
    """

    __slots__ = ("_key", "public")

    public: PublicKey

    def __init__(self, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        """Wraps a key of the `cryptography` package.

        Raises:
            InvalidRequest: its public half is refused.
        """
        self._key: _Private = key
        self.public = PublicKey.admit(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @classmethod
    def generate(cls, algorithm: Algorithm = "ed25519") -> SigningKey:
        """A new key. RSA keys have 3072 bits, which takes a noticeable part of a second."""
        if algorithm == "ed25519":
            return cls(Ed25519PrivateKey.generate())
        if algorithm == "ecdsa-p256":
            return cls(ec.generate_private_key(ec.SECP256R1()))
        if algorithm == "ecdsa-p384":
            return cls(ec.generate_private_key(ec.SECP384R1()))
        if algorithm == "rsa-pss-sha256":
            return cls(rsa.generate_private_key(public_exponent=RSA_EXPONENT, key_size=MINIMUM_RSA_BITS))
        raise InvalidRequest("unknown algorithm", violations=(FieldViolation("algorithm", "is not supported"),))

    @classmethod
    def load_pem(cls, pem: bytes) -> SigningKey:
        """The key in an unencrypted PEM file (PKCS#8, SEC 1 or PKCS#1).

        Raises:
            InvalidRequest: it is not one, is encrypted, or its public half is refused.
        """
        wrong = (FieldViolation("private_key", "is not an unencrypted private key in PEM"),)
        if len(pem) > MAXIMUM_PEM_BYTES:
            raise InvalidRequest("private key too long", violations=wrong)
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # Without `from`: a parser's message could repeat what it read.
            raise InvalidRequest("not an unencrypted private key in PEM", violations=wrong) from None
        if not isinstance(key, Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise InvalidRequest("a private key of an unsupported algorithm", reason=Reason.WEAK_KEY, violations=wrong)
        return cls(key)

    def to_pem(self) -> Secret[bytes]:
        """The key as unencrypted PKCS#8 PEM, for a file that only its owner can read."""
        return Secret(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    def sign(self, message: bytes) -> bytes:
        """The signature over `message`; DER for ECDSA."""
        if isinstance(self._key, Ed25519PrivateKey):
            return self._key.sign(message)
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(message, _pss(), hashes.SHA256())
        return self._key.sign(message, ec.ECDSA(_CURVE_HASHES[self._key.curve.name][1]))

    def __repr__(self) -> str:
        return f"SigningKey({self.public.algorithm}, {self.public.key_id})"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a SigningKey is not serialized")


def parse_algorithm(text: str) -> Algorithm:
    """The algorithm of this name.

    Raises:
        InvalidRequest: there is none.
    """
    if text not in ALGORITHMS:
        raise InvalidRequest("unknown algorithm", violations=(FieldViolation("algorithm", "is not supported"),))
    return text
