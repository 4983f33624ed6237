"""Signing keys in files: a private key that only its owner reads, a public one in PEM."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from casemate.errors import ConfigurationError, InvalidRequest, Reason
from casemate.signing.keys import PublicKey, SigningKey


def write_signing_key(path: Path, key: SigningKey) -> None:
    """Writes the private key, and beside it `<name>.pub`. Never over another key.

    Raises:
        ConfigurationError: the file exists.
    """
    if path.exists():
        raise ConfigurationError(f"{path} exists: a key is not overwritten")
    path.touch(mode=0o600)
    path.write_bytes(key.to_pem().reveal())
    spki = load_der_public_key(key.public.der)
    path.with_name(path.name + ".pub").write_bytes(spki.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def load_public_key(path: Path) -> PublicKey:
    """A public key from PEM.

    Raises:
        ConfigurationError: the file holds no public key.
        InvalidRequest: the key is too weak to trust.
    """
    try:
        return PublicKey.load_pem(path.read_bytes())
    except InvalidRequest as error:
        if error.reason is not Reason.INVALID_FIELD:
            raise
        raise ConfigurationError(f"{path} holds no public key in PEM") from None


def load_signing_key(path: Path) -> SigningKey:
    """A private key from PEM; see `SigningKey.load_pem`."""
    return SigningKey.load_pem(path.read_bytes())
