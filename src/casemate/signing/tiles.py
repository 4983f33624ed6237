"""Which stored nodes a proof is made of, so that it costs reads of O(log n).

A node (level, index) is the root of the complete subtree over the leaves from
index × 2^level on; level 0 are the leaf hashes. A log stores each node once, when
it is complete, and never changes it. A tile (c2sp.org/tlog-tiles) of level L is
up to 256 nodes of level 8 × L.

If this fails: proofs do not verify. Nothing here can make a wrong one verify.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from casemate.errors import OutOfRange, StoredDataUnreadable
from casemate.signing.merkle import EMPTY_ROOT, node_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TILE_WIDTH: Final = 256
TILE_HEIGHT: Final = 8

Node: TypeAlias = tuple[int, int]
"""Level and index."""

Range: TypeAlias = tuple[int, int]
"""Leaves from the first to before the second."""


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The ranges whose hashes are the inclusion proof of a leaf, from the leaf up: RFC 9162 §2.1.3.1.

    Raises:
        OutOfRange: there is no such leaf.
    """
    if not 0 <= index < size:
        raise OutOfRange(f"no leaf {index} in a tree of {size}")
    found: list[Range] = []
    start, end = 0, size
    while end - start > 1:
        split = _split(start, end)
        if index < split:
            found.append((split, end))
            end = split
        else:
            found.append((start, split))
            start = split
    return found[::-1]


def consistency_ranges(first_size: int, second_size: int) -> list[Range]:
    """The ranges whose hashes are the consistency proof of two sizes: RFC 9162 §2.1.4.1.

    Raises:
        OutOfRange: the first is not between 1 and the second.
    """
    if not 1 <= first_size <= second_size:
        raise OutOfRange(f"no tree of {first_size} within one of {second_size}")
    found: list[Range] = []
    start, end = 0, second_size
    while first_size != end:
        split = _split(start, end)
        if first_size <= split:
            found.append((split, end))
            end = split
        else:
            found.append((start, split))
            start = split
    if start:
        found.append((start, end))  # what the first tree ends with; it is the first tree itself where start is 0
    return found[::-1]


def nodes_of(ranges: Iterable[Range]) -> list[Node]:
    """The complete subtrees that the hashes of ranges are made of, each once."""
    return list(dict.fromkeys(node for start, end in ranges for node in _nodes(start, end)))


def range_hash(nodes: Mapping[Node, bytes], span: Range) -> bytes:
    """The hash over a range, from the nodes that `nodes_of` names.

    Raises:
        StoredDataUnreadable: one of them is not there.
    """
    try:
        hashes = [nodes[node] for node in _nodes(*span)]
    except KeyError as error:
        raise StoredDataUnreadable(f"the log has no node {error.args[0]}") from None
    if not hashes:
        return EMPTY_ROOT
    combined = hashes.pop()
    while hashes:
        combined = node_hash(hashes.pop(), combined)
    return combined


def completed_nodes(size: int, frontier: Sequence[bytes], leaf_hash: bytes) -> list[tuple[int, int, bytes]]:
    """Level, index and hash of each node that is complete once the leaf stands behind `size` others.

    Args:
        size: leaves before it.
        frontier: roots of the complete subtrees over them, largest first.
        leaf_hash: of the new leaf.
    """
    subtrees, carried, level = list(frontier), leaf_hash, 0
    found = [(0, size, leaf_hash)]
    while size >> level & 1:
        carried = node_hash(subtrees.pop(), carried)
        level += 1
        found.append((level, size >> level, carried))
    return found


def tile_range(level: int, index: int, size: int) -> Range:
    """First and last-but-one index of the nodes, of level 8 × `level`, that a tile holds in a tree of `size`.

    Raises:
        OutOfRange: the tree does not reach that far.
    """
    first = index * TILE_WIDTH
    last = min(first + TILE_WIDTH, size >> TILE_HEIGHT * level) if 0 <= level < 8 else 0
    if index < 0 or first >= last:
        raise OutOfRange(f"no tile {index} of level {level} in a tree of {size}")
    return first, last


def _split(start: int, end: int) -> int:
    return start + (1 << (end - start - 1).bit_length() - 1)


def _nodes(start: int, end: int) -> list[Node]:
    """`start` is a multiple of a power of two that is not below the length: all that proofs ask for."""
    found = []
    while start < end:
        level = (end - start).bit_length() - 1
        found.append((level, start >> level))
        start += 1 << level
    return found
