"""Keys that sign access tokens: made here, sealed before they leave memory.

The private half of an Ed25519 key is 32 bytes, so the KEK wraps it as it wraps
data keys, bound to the `kid`. The database refuses a second active key.

If this fails: whoever holds a signing key mints tokens for every audience. They
are still bound to a certificate that the thief must hold, and revoking the key
ends them everywhere within a second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from casemate.errors import StoredDataUnreadable
from casemate.gate.core.records import EDDSA
from casemate.gate.core.thumbprint import key_thumbprint
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from services.auth.records import TokenKey

_PURPOSE: Final = "token-key"


class TokenSignature(Protocol):
    """What signs: the 64 bytes that a JWS of the key's algorithm carries."""

    async def __call__(self, message: bytes) -> bytes:
        """The signature over a message.

        Raises:
            Unavailable: the key cannot be reached, or refuses to sign.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningTokenKey:
    """The active key, ready to sign: open in memory, or by asking whoever keeps it."""

    kid: str
    algorithm: str
    sign: TokenSignature = field(repr=False)


async def generate(kek: KeyEncryptionKey, *, now: datetime) -> TokenKey:
    """A new active key, its private half sealed under the KEK. Costs one wrap."""
    private_key = Ed25519PrivateKey.generate()
    kid = key_thumbprint(private_key.public_key())
    seed = DataKey(private_key.private_bytes_raw())
    wrapped = await kek.wrap(seed, wrap_context(kid))
    public_key = private_key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return TokenKey(
        kid=kid,
        algorithm=EDDSA,
        public_key=public_key,
        sealed_private_key=wrapped.to_bytes(),
        state="active",
        created_at=now,
    )


def wrap_context(kid: str) -> KeyContext:
    """What the private half of a token key is bound to."""
    return KeyContext(purpose=_PURPOSE, tenant="", name=kid, version=1)


async def open_key(kek: KeyEncryptionKey, record: TokenKey) -> SigningTokenKey:
    """The private half of a stored key. Costs one unwrap.

    Raises:
        StoredDataUnreadable: it does not unwrap under its own `kid`, or belongs to another public key.
    """
    seed = await kek.unwrap(WrappedKey.parse(record.sealed_private_key), wrap_context(record.kid))
    private_key = Ed25519PrivateKey.from_private_bytes(seed.reveal())
    if record.algorithm != EDDSA or key_thumbprint(private_key.public_key()) != record.kid:
        raise StoredDataUnreadable(f"token key {record.kid} is not the key that its row names")
    return SigningTokenKey(kid=record.kid, algorithm=record.algorithm, sign=_signing_with(private_key))


def _signing_with(private_key: Ed25519PrivateKey) -> TokenSignature:
    async def sign(message: bytes) -> bytes:
        return private_key.sign(message)

    return sign
