"""What a key-encryption key does, whoever keeps it.

Implemented by `local.LocalKeyRing`, `aws_kms.AwsKmsKey` and `pkcs11.Pkcs11Key`,
none of them before the others: one suite of tests runs over all. The calls are
coroutines because most providers are reached over a network; one that blocks
leaves the event loop itself.
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
    DESTROYED = "DESTROYED"


@dataclass(frozen=True, slots=True, kw_only=True)
class KekState:
    """What the provider says of a key-encryption key.

    Attributes:
        kek_id: its lasting name.
        current_version: the version that wraps now; older ones only unwrap. 0 if none is left, or
            if the provider does not tell the number of a key that is not ENABLED.
        status: whether it may be used.
        possible: every status that this provider has. Where, say, DISABLED is
            missing, the provider cannot disable a key, and nobody need look for it.
        is_for_development: whether the key lies in a file that whoever copies has: for
            development, and for one machine.
    """

    kek_id: str
    current_version: int
    status: KekStatus
    possible: frozenset[KekStatus] = frozenset({KekStatus.ENABLED})
    is_for_development: bool = False


class KeyEncryptionKey(Protocol):
    """A key that wraps other keys and never leaves its provider.

    Every call raises `Unavailable` when the provider cannot be reached, is too
    slow or throttles, and `FailedPrecondition` (`KEY_NOT_ACTIVE`) when it refuses
    the key: disabled, about to be deleted, gone, or denied to us. No call ends
    later than its provider's time limit, and none falls back to anything.
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
