"""Merkle trees of RFC 6962, proofs and their verification by RFC 9162.

Functions take leaf hashes, not leaves: `leaf_hash` is applied once, by whoever
has the bytes.

If this fails: rows that were not signed pass as part of a signed dataset, or a
log hides an entry; seals on the rows and copies of checkpoints still hold.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from casemate.errors import DigestMismatch, OutOfRange

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_BYTES: Final = 32
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()


def leaf_hash(*data: bytes | memoryview) -> bytes:
    """SHA-256(0x00 ‖ data): RFC 6962 §2.1; of several pieces, of all as one."""
    # Updated, not joined: the leaf of a chunk is large, and hashing it leaves the interpreter's lock.
    digest = hashlib.sha256(b"\x00")
    for piece in data:
        digest.update(piece)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right): RFC 6962 §2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """All levels over some leaf hashes, so that each proof costs one lookup per level.

    Building is one hash per leaf, about half a microsecond each.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """Hashes all levels. The last node of an odd level moves up as it is."""
        level = list(leaves)
        self._levels = [level]
        while len(level) > 1:
            pairs = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
            level = pairs + level[len(level) & ~1 :]
            self._levels.append(level)

    @property
    def size(self) -> int:
        """How many leaves there are."""
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The root; of no leaves, the hash of nothing."""
        return self._levels[-1][0] if self.size else EMPTY_ROOT

    def inclusion_proof(self, index: int) -> list[bytes]:
        """The siblings from the leaf up: RFC 9162 §2.1.3.1.

        Raises:
            OutOfRange: there is no such leaf.
        """
        if not 0 <= index < self.size:
            raise OutOfRange(f"no leaf {index} in a tree of {self.size}")
        proof = []
        for level in self._levels[:-1]:
            if index ^ 1 < len(level):
                proof.append(level[index ^ 1])
            index >>= 1
        return proof


def root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    return MerkleTree(leaves).root


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The proof for one leaf. For many proofs of one tree, keep a `MerkleTree`.

    Raises:
        OutOfRange: there is no such leaf.
    """
    return MerkleTree(leaves).inclusion_proof(index)


def consistency_proof(leaves: Sequence[bytes], first_size: int) -> list[bytes]:
    """The proof that the tree of the first `first_size` leaves is the start of the tree of all: RFC 9162 §2.1.4.1.

    Raises:
        OutOfRange: `first_size` is not between 1 and the number of leaves.
    """
    if not 1 <= first_size <= len(leaves):
        raise OutOfRange(f"no tree of {first_size} within one of {len(leaves)}")
    return _subproof(first_size, leaves, whole=True)


def _subproof(size: int, leaves: Sequence[bytes], *, whole: bool) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if size <= split:
        return [*_subproof(size, leaves[:split], whole=whole), root(leaves[split:])]
    return [*_subproof(size - split, leaves[split:], whole=False), root(leaves[:split])]


def verify_inclusion(leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Return if the leaf is at `index` of the tree of `size` leaves with this root: RFC 9162 §2.1.3.2.

    Raises:
        DigestMismatch: it is not, or the proof is not one for this place.
    """
    if not 0 <= index < size:
        raise DigestMismatch("inclusion: the index is outside of the tree")
    _check_lengths(leaf_hash, *proof)
    at, last, computed = index, size - 1, leaf_hash
    for sibling in proof:
        if last == 0:
            raise DigestMismatch("inclusion: the proof is too long")
        if at & 1 or at == last:
            computed = node_hash(sibling, computed)
            at, last = _to_right_child(at, last)
        else:
            computed = node_hash(computed, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise DigestMismatch("inclusion: the proof is too short")
    _check_equal(computed, root, "inclusion: the root differs")


def verify_consistency(
    first_size: int, second_size: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]
) -> None:
    """Return if the second tree extends the first: RFC 9162 §2.1.4.2.

    Raises:
        DigestMismatch: it does not; or the first tree is empty, which would prove nothing.
    """
    if not 1 <= first_size <= second_size:
        raise DigestMismatch("consistency: the sizes do not allow a proof")
    if first_size == second_size:
        if proof:
            raise DigestMismatch("consistency: a proof between equal sizes")
        _check_equal(first_root, second_root, "consistency: the roots of equal sizes differ")
        return
    _check_lengths(first_root, second_root, *proof)
    path = list(proof)
    if first_size & (first_size - 1) == 0:
        path.insert(0, first_root)
    if not path:
        raise DigestMismatch("consistency: the proof is too short")
    at, last = first_size - 1, second_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise DigestMismatch("consistency: the proof is too long")
        if at & 1 or at == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            at, last = _to_right_child(at, last)
        else:
            second = node_hash(second, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise DigestMismatch("consistency: the proof is too short")
    _check_equal(first, first_root, "consistency: the first root differs")
    _check_equal(second, second_root, "consistency: the second root differs")


def _to_right_child(at: int, last: int) -> tuple[int, int]:
    """Skip the levels at which a last node moved up without a sibling."""
    while at and not at & 1:
        at, last = at >> 1, last >> 1
    return at, last


def _check_lengths(*digests: bytes) -> None:
    # Otherwise 0x01 ‖ left ‖ right could be split in more than one way.
    if any(len(digest) != HASH_BYTES for digest in digests):
        raise DigestMismatch("a hash does not have 32 bytes")


def _check_equal(computed: bytes, expected: bytes, detail: str) -> None:
    if not hmac.compare_digest(computed, expected):
        raise DigestMismatch(detail)
