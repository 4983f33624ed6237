"""The transparency log as a file: its entries in order, each behind its length.

Only what the log's own tree proves is read from one: the root over all entries has
to be the one that the manifest names, and whoever replays them checks that they
extend the log that is there.

If this fails: entries are replayed that were never logged. They can only take
rights away, and shred.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.errors import StoredDataUnreadable
from casemate.signing import merkle, tiles

LOG_PART: Final = "log.entries"
_LENGTH: Final = struct.Struct(">I")
_MAX_ENTRY_BYTES: Final = 1024 * 1024
_PIECE_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class Tree:
    """Size and root of a log as its entries pass; memory of log2(size) hashes."""

    size: int = 0
    frontier: tuple[bytes, ...] = ()

    def add(self, entry: bytes) -> None:
        """Takes the next entry."""
        completed = tiles.completed_nodes(self.size, self.frontier, merkle.leaf_hash(entry))
        kept = len(self.frontier) - (len(completed) - 1)
        self.frontier = (*self.frontier[:kept], completed[-1][2])
        self.size += 1

    @property
    def root(self) -> bytes:
        """The RFC 9162 root."""
        if not self.frontier:
            return merkle.EMPTY_ROOT
        root = self.frontier[-1]
        for subtree in reversed(self.frontier[:-1]):
            root = merkle.node_hash(subtree, root)
        return root


def encode(entry: bytes) -> bytes:
    """One entry as it stands in the file."""
    return _LENGTH.pack(len(entry)) + entry


def decode(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The entries of a file that comes in pieces.

    Raises:
        StoredDataUnreadable: it is cut short, or an entry is longer than any.
    """
    buffer = bytearray()
    for piece in pieces:
        buffer += piece
        while len(buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer)
            if length > _MAX_ENTRY_BYTES:
                raise StoredDataUnreadable("the log's file holds an entry longer than any")
            if len(buffer) < _LENGTH.size + length:
                break
            yield bytes(buffer[_LENGTH.size : _LENGTH.size + length])
            del buffer[: _LENGTH.size + length]
    if buffer:
        raise StoredDataUnreadable("the log's file is cut short")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFile:
    """The newest log that there is, with the size and root that somebody vouches for."""

    file: Path
    size: int
    root: bytes

    def entries(self) -> Iterator[bytes]:
        """The entries. Nothing may be made of them before the last one came.

        Raises:
            StoredDataUnreadable: they are not those of the root.
        """
        tree = Tree()
        for entry in decode(_pieces(self.file)):
            tree.add(entry)
            yield entry
        if (tree.size, tree.root) != (self.size, self.root):
            raise StoredDataUnreadable(f"the entries in {self.file} do not give the root that was named")

    def arguments(self) -> list[str]:
        """How a service's `after-restore` is told of it."""
        return ["--log", str(self.file), "--log-size", str(self.size), "--log-root", self.root.hex()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `LogFile.arguments`."""
    parser.add_argument("--log", type=Path, help="the newest log, as a backup has it")
    parser.add_argument("--log-size", type=int, help="how many entries it has")
    parser.add_argument("--log-root", type=bytes.fromhex, help="their RFC 9162 root")


def from_arguments(found: argparse.Namespace) -> LogFile | None:
    """The log that was named, if one was."""
    return None if found.log is None else LogFile(file=found.log, size=found.log_size, root=found.log_root)


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece
