"""Cuts records into chunks, and counts what a manifest must say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from casemate.errors import FieldViolation, InvalidRequest, Reason
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_ROWS
from casemate.signing.framing import MAXIMUM_RECORD_BYTES
from casemate.signing.merkle import leaf_hash
from casemate.signing.statements import ChunkDigest

DEFAULT_CHUNK_BYTES = 256 * 1024
"""Large enough that a proof per chunk costs nothing, small enough to repeat after a crash."""

MAXIMUM_CHUNK_BYTES = MAXIMUM_RECORD_BYTES
"""What these functions make at most; the service takes more in one message."""

RecordSource = Callable[[], Iterable[bytes]]
"""Gives the same records, in the same order, each time it is called: once to be
digested, once to be sent. Records carry no line feed."""


def records_of(path: Path, *, skip_header: bool) -> RecordSource:
    """The lines of a file, read again at each call in constant memory."""

    def read() -> Iterator[bytes]:
        with path.open("rb") as lines:
            if skip_header:
                next(lines, None)
            for line in lines:
                record = line.rstrip(b"\r\n")
                if record:
                    yield record

    return read


def cut(records: Iterable[bytes], *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> Iterator[bytes]:
    """Joins records, each ended by a line feed, into chunks of at most `chunk_bytes`.

    Raises:
        InvalidRequest: a record is empty, holds a line feed, or is larger than a chunk may be.
    """
    pending: list[bytes] = []
    size = 0
    for ordinal, record in enumerate(records):
        line = record + b"\n"
        if len(line) == 1 or b"\n" in record or len(line) > MAXIMUM_CHUNK_BYTES:
            description = "must be one non-empty line of at most 1 MiB"
            raise InvalidRequest(
                reason=Reason.RECORD_INVALID, violations=(FieldViolation(f"records[{ordinal}]", description),)
            )
        if pending and (size + len(line) > chunk_bytes or len(pending) == MAXIMUM_CHUNK_ROWS):
            yield b"".join(pending)
            pending, size = [], 0
        pending.append(line)
        size += len(line)
    if pending:
        yield b"".join(pending)


def read_pieces(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in constant memory."""
    with path.open("rb") as file:
        while piece := file.read(DEFAULT_CHUNK_BYTES):
            yield piece


def cut_as_signed(pieces: Iterable[bytes], sizes: Iterable[int]) -> Iterator[bytes]:
    """Cuts bytes into the chunks that a manifest names, in constant memory.

    Raises:
        InvalidRequest: there are more or fewer bytes than were signed.
    """
    rest = iter(pieces)
    held = bytearray()
    for size in sizes:
        while len(held) < size and (piece := next(rest, b"")):
            held += piece
        if len(held) < size:
            raise _not_as_signed("ends before the manifest does")
        yield bytes(held[:size])
        del held[:size]
    if held or any(rest):
        raise _not_as_signed("goes on behind the manifest's last chunk")


def _not_as_signed(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"the file {description}", reason=Reason.DIGEST_MISMATCH, violations=(FieldViolation("file", description),)
    )


def digest(chunks: Iterable[bytes]) -> tuple[ChunkDigest, ...]:
    """What the manifest says of each chunk."""
    return tuple(ChunkDigest(leaf_hash=leaf_hash(chunk), bytes=len(chunk), rows=chunk.count(b"\n")) for chunk in chunks)
