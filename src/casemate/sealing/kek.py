"""What a key-encryption key does, whoever keeps it.

Implemented by `local.LocalKeyRing`; a cloud's key service or a PKCS#11 token
answers to the same five calls. They are coroutines because most providers are
reached over a network; one that blocks must leave the event loop itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from casemate.sealing.keys import DataKey, KeyContext, WrappedKey


class KekStatus(StrEnum):
    """Whether a key-encryption key may be used now."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    PENDING_DELETION = "PENDING_DELETION"


@dataclass(frozen=True, slots=True, kw_only=True)
class KekState:
    """What the provider says of a key-encryption key.

    Attributes:
        kek_id: its lasting name.
        current_version: the version that wraps now; older ones only unwrap.
        status: whether it may be used.
    """

    kek_id: str
    current_version: int
    status: KekStatus


class KeyEncryptionKey(Protocol):
    """A key that wraps other keys and never leaves its provider.

    Every call raises `Unavailable` when the provider cannot be reached and
    `FailedPrecondition` (`KEY_NOT_ACTIVE`) when it refuses the key.
    """

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        """A new random key, plain for use now and wrapped for storage."""
        ...

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        """`key` wrapped under the current version and bound to `context`."""
        ...

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        """The key inside.

        Raises:
            StoredDataUnreadable: another context, another key-encryption key, or changed bytes.
        """
        ...

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        """The same key under the current version; what it seals is not touched.

        Raises:
            StoredDataUnreadable: as `unwrap`.
        """
        ...

    async def state(self) -> KekState:
        """What the provider says of the key now."""
        ...
