"""Data keys, plain and wrapped, and the context that a wrap is bound to.

If this fails: a data key wrapped for one dataset opens another's. Each row still
names its tenant, dataset and version in its own associated data.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from dataclasses import dataclass

from casemate.errors import StoredDataUnreadable
from casemate.sealing.encoding import Reader, length_prefixed
from casemate.secret import Secret

DATA_KEY_BYTES = 32  # AES-256
_WRAPPED_FORMAT = b"casemate/wrapped-key@v1"
MAX_KEK_VERSION = 2**32 - 1


class DataKey(Secret[bytes]):
    """Thirty-two random bytes that seal one dataset version, one model file or one table.

    Raises:
        StoredDataUnreadable: the value is not 32 bytes.
    """

    __slots__ = ()

    def __init__(self, value: bytes) -> None:
        if len(value) != DATA_KEY_BYTES:
            raise StoredDataUnreadable(f"a data key has {DATA_KEY_BYTES} bytes")
        super().__init__(bytes(value))

    @classmethod
    def generate(cls) -> DataKey:
        """A new key from the operating system's generator."""
        return cls(secrets.token_bytes(DATA_KEY_BYTES))

    def __repr__(self) -> str:
        return "DataKey(…)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyContext:
    """What a key is for. A wrapped key opens only under the very context that it was wrapped for.

    Attributes:
        purpose: the kind of use, such as `dataset-rows`.
        tenant: whose data it seals; empty for a key of the service itself.
        name: the dataset, model or table.
        version: the version within the name, from 0.
    """

    purpose: str
    tenant: str
    name: str
    version: int

    def to_bytes(self) -> bytes:
        """The canonical bytes: associated data of the wrap."""
        fields = (self.purpose.encode(), self.tenant.encode(), self.name.encode(), struct.pack(">Q", self.version))
        return b"casemate/key-context@v1" + length_prefixed(*fields)

    def sha256(self) -> bytes:
        """The digest stored beside a wrapped key, so that a mix-up can be told from damage."""
        return hashlib.sha256(self.to_bytes()).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A data key that only its key-encryption key opens. Safe to store and to show.

    Attributes:
        kek_id: which key-encryption key.
        kek_version: which version of it, from 1.
        ciphertext: as the provider returned it.
        context_sha256: digest of the context that it is bound to.
    """

    kek_id: str
    kek_version: int
    ciphertext: bytes
    context_sha256: bytes

    def to_bytes(self) -> bytes:
        """One value for one column or file; `parse` is the inverse."""
        if not 0 < self.kek_version <= MAX_KEK_VERSION:
            raise ValueError("kek_version is out of range")
        version = struct.pack(">I", self.kek_version)
        return _WRAPPED_FORMAT + length_prefixed(self.kek_id.encode(), version, self.context_sha256, self.ciphertext)

    def require(self, *, kek_id: str, context: KeyContext) -> None:
        """What the stored fields say already fits; the provider's own check comes after.

        Raises:
            StoredDataUnreadable: wrapped by another key-encryption key, or for another context.
        """
        if self.kek_id != kek_id:
            raise StoredDataUnreadable(f"wrapped under {self.kek_id}, which is not {kek_id}")
        if not hmac.compare_digest(self.context_sha256, context.sha256()):
            raise StoredDataUnreadable(f"wrapped for another context than {context}")

    @classmethod
    def parse(cls, data: bytes) -> WrappedKey:
        """The wrapped key in stored bytes; nothing is proven about it before it is unwrapped.

        Raises:
            StoredDataUnreadable: the bytes are not those of a wrapped key.
        """
        reader = Reader(data, what="a wrapped key")
        if reader.take(len(_WRAPPED_FORMAT)) != _WRAPPED_FORMAT:
            raise StoredDataUnreadable("a wrapped key has an unknown format")
        kek_id, version = reader.prefixed(), reader.prefixed()
        context_sha256, ciphertext = reader.prefixed(), reader.prefixed()
        reader.end()
        if len(version) != 4 or len(context_sha256) != hashlib.sha256().digest_size:
            raise StoredDataUnreadable("a wrapped key has a field of the wrong length")
        try:
            name = kek_id.decode()
        except UnicodeDecodeError as error:
            raise StoredDataUnreadable("a wrapped key names its key-encryption key in no text") from error
        number: int = struct.unpack(">I", version)[0]
        if number == 0:
            raise StoredDataUnreadable("a wrapped key names version 0 of its key-encryption key")
        return cls(kek_id=name, kek_version=number, ciphertext=ciphertext, context_sha256=context_sha256)
