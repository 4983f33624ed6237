"""Which batches a trainer reads, in which order: shards, seeded shuffle, and where to go on.

Both ends compute it from the signed manifest, so a reader knows every number and
every ordinal that has to come, and a service cannot leave one out unseen.

The order: without a seed, by number. With one, by the SHA-256 digests of
`casemate/batch-order/v1`, a NUL, the seed (8 bytes, big-endian), the root (32
bytes) and the number (8 bytes, big-endian). Shard k of n takes places k, k + n, …
of that order, so n shards part a version with nothing twice and nothing left out.

If this fails: a trainer trains on other batches than it believes; each is still
proven to be of the signed version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from casemate.errors import FieldViolation, InvalidRequest
from casemate.signing.fields import MAXIMUM_INTEGER

MAXIMUM_SHARDS: Final = 65_536

_DOMAIN: Final = b"casemate/batch-order/v1\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOrder:
    """What part of a version is read, and in which order.

    Attributes:
        shard: which, counted from 0.
        shards: of how many.
        shuffle_seed: none: by number. Below 2^53, which every JSON reader holds.
        position: how many batches of this shard were received before.

    Raises:
        InvalidRequest: one of them is out of range.
    """

    shard: int = 0
    shards: int = 1
    shuffle_seed: int | None = None
    position: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAXIMUM_SHARDS:
            raise _invalid("shards", "is not from 1 to 65536")
        if not 0 <= self.shard < self.shards:
            raise _invalid("shard", "is not below the number of shards")
        if self.shuffle_seed is not None and not 0 <= self.shuffle_seed <= MAXIMUM_INTEGER:
            raise _invalid("shuffle_seed", "is not below 2^53")
        if not 0 <= self.position <= MAXIMUM_INTEGER:
            raise _invalid("position", "is out of range")

    def numbers(self, root: bytes, batches: int) -> list[int]:
        """The numbers of the batches that are still to come, in order. One hash a batch when shuffled.

        Args:
            root: of the version, which makes one seed shuffle each version anew.
            batches: how many the version has.

        Raises:
            InvalidRequest: the position is beyond the shard's end.
        """
        order = list(range(batches))
        if self.shuffle_seed is not None:
            prefix = hashlib.sha256(_DOMAIN + self.shuffle_seed.to_bytes(8, "big") + root)
            order.sort(key=lambda number: _digest(prefix, number))
        self.require_within(batches)
        return order[self.shard :: self.shards][self.position :]

    def require_within(self, batches: int) -> None:
        """Returns if the position is not beyond the shard's end in a version of so many batches.

        Raises:
            InvalidRequest: it is.
        """
        if self.position > len(range(self.shard, batches, self.shards)):
            raise _invalid("position", "is beyond the end of the shard")


def _digest(prefix: hashlib._Hash, number: int) -> bytes:
    digest = prefix.copy()
    digest.update(number.to_bytes(8, "big"))
    return digest.digest()


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {description}", violations=(FieldViolation(field, description),))
