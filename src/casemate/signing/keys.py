"""Signing keys and the public keys that are admitted.

The key says which algorithm is used, never the message. One key has one
encoding and one id, so that a registry cannot hold it twice.

If this fails: whoever got a weak key registered can have forged signatures
accepted for that key's tenant and role; other tenants, and the log's record of
what was accepted, still hold.
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass, field
from typing import Final, NoReturn, TypeAlias

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
    load_pem_public_key,
)

from casemate.errors import FieldViolation, InvalidRequest, Reason, SignatureInvalid
from casemate.secret import Secret
from casemate.signing.admission import (
    ALGORITHMS,
    CURVES,
    MINIMUM_RSA_BITS,
    RSA_EXPONENT,
    Algorithm,
    KnownKey,
    judge,
    parse_algorithm,
    refuse,
    weak,
)

__all__ = ["ALGORITHMS", "Algorithm", "PublicKey", "SigningKey", "parse_algorithm"]

MAXIMUM_DER_BYTES: Final = 2048
MAXIMUM_PEM_BYTES: Final = 16384

_Private: TypeAlias = Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_SEAL: Final = object()


def _pss() -> padding.PSS:
    # Never AUTO: it would accept a salt of no bytes.
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=hashes.SHA256.digest_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public key that passed `admit`; there is no other way to make one.

    Two are equal when their encodings are.
    """

    der: bytes
    algorithm: Algorithm
    key_id: str
    _key: KnownKey = field(repr=False, compare=False)
    _also_pkcs1: bool = field(default=False, compare=False)
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a PublicKey is made by PublicKey.admit")

    @classmethod
    def admit(cls, der: bytes) -> PublicKey:
        """The key in a DER SubjectPublicKeyInfo, if it is sound enough to trust.

        Not checked: whether an Ed25519 point has a small component beside a large
        one, which helps nobody to forge.

        Raises:
            InvalidRequest: `WEAK_KEY` for RSA below 3072 bits, with e ≠ 65537, a
                small factor or ROCA's fingerprint, for the low-order and unreduced Ed25519 points, for
                other curves and algorithms; `INVALID_FIELD` for bytes that are not
                the one DER encoding of a key.
        """
        if len(der) > MAXIMUM_DER_BYTES:
            refuse("public key too long", "is too long", Reason.INVALID_FIELD)
        try:
            key = load_der_public_key(der)
        except UnsupportedAlgorithm:
            weak("is of an algorithm that is not supported")
        except (ValueError, TypeError):
            refuse("not a SubjectPublicKeyInfo", "is not a DER SubjectPublicKeyInfo", Reason.INVALID_FIELD)
        algorithm, sound = judge(key)
        if sound.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != der:
            # A second spelling (a compressed point, another OID) would be a second key id.
            refuse("not the canonical encoding", "is not in its canonical encoding", Reason.INVALID_FIELD)
        return cls(der=der, algorithm=algorithm, key_id=hashlib.sha256(der).hexdigest(), _key=sound, _seal=_SEAL)

    @classmethod
    def load_pem(cls, pem: bytes) -> PublicKey:
        """The key in a PEM file, as `openssl pkey -pubout` writes it; see `admit`.

        Raises:
            InvalidRequest: it is not one, or not sound enough to trust.
        """
        if len(pem) > MAXIMUM_PEM_BYTES:
            refuse("public key too long", "is too long", Reason.INVALID_FIELD)
        try:
            key = load_pem_public_key(pem)
        except UnsupportedAlgorithm:
            weak("is of an algorithm that is not supported")
        except (ValueError, TypeError):
            refuse("no public key in PEM", "is not a public key in PEM", Reason.INVALID_FIELD)
        return cls.admit(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

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
                self._verify_rsa(self._key, signature, message)
            else:
                self._key.verify(signature, message, ec.ECDSA(CURVES[self._key.curve.name][1]))
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(f"signature of key {self.key_id} does not verify") from error

    def unsafe_also_pkcs1(self) -> PublicKey:
        """The same key, which also verifies PKCS#1 v1.5 signatures with SHA-256 if it is an RSA key.

        For suppliers whose hardware can do nothing else, and only where an operator
        said so: one more padding is one more way to be wrong. Nothing of ours signs so.
        """
        return PublicKey(
            der=self.der, algorithm=self.algorithm, key_id=self.key_id, _key=self._key, _also_pkcs1=True, _seal=_SEAL
        )

    def _verify_rsa(self, key: rsa.RSAPublicKey, signature: bytes, message: bytes) -> None:
        try:
            key.verify(signature, message, _pss(), hashes.SHA256())
        except InvalidSignature:
            if not self._also_pkcs1:
                raise
            key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())

    def ed25519_bytes(self) -> bytes:
        """The 32 bytes of an Ed25519 key, as log notes want them.

        Raises:
            InvalidRequest: the key is of another algorithm.
        """
        if not isinstance(self._key, Ed25519PublicKey):
            refuse("not an Ed25519 key", "is not an Ed25519 key", Reason.INVALID_FIELD)
        return self._key.public_bytes_raw()


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
        return self._key.sign(message, ec.ECDSA(CURVES[self._key.curve.name][1]))

    def __repr__(self) -> str:
        return f"SigningKey({self.public.algorithm}, {self.public.key_id})"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a SigningKey is not serialized")
