"""Sealed chunks as PostgreSQL's binary COPY takes them.

Written here and not by the driver, which would look at each of four values a row:
a chunk becomes one run of bytes in a thread, and the event loop only passes it on.
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Final

from asyncpg.exceptions import ConnectionDoesNotExistError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from uuid import UUID

    from casemate.sealing.rows import SealingBatch
    from casemate.storage.pool import Connection
    from services.datasets.upload import PlannedChunk

    _Encode = Callable[[bytes, int, SealingBatch, Sequence[int]], Iterator[bytes] | Iterator[memoryview]]

_COLUMNS: Final = ("upload", "batch", "ordinal", "sealed")
# "Binary Format" in PostgreSQL's documentation of COPY: signature, no flags, no extension; -1 ends it.
_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_PLACE: Final = struct.Struct(">hi16sii")
_ROW: Final = struct.Struct(">iqi")
_PIECE_ROWS: Final = 1024
_PIECE_BYTES: Final = 1 << 20
"""What the driver is given at once: it copies it, and takes a turn for each."""

_LARGE_ROW: Final = 8 << 10
"""From here on, on an average, rows are sealed where they lie in the COPY: a place for each costs less than a copy."""


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """One chunk, sealed and ready to be stored."""

    chunk: PlannedChunk
    salt: bytes = field(repr=False)
    commitment: bytes = field(repr=False)
    rows: tuple[bytes | memoryview, ...] = field(repr=False)


def encode_chunk(upload_id: UUID, chunk: PlannedChunk, batch: SealingBatch, lengths: Sequence[int]) -> SealedChunk:
    """Seals the rows of a batch, each as it is written; the batch cannot be taken again.

    Args:
        upload_id: whose rows they are.
        chunk: their place.
        batch: the rows.
        lengths: of the sealed rows, in order.
    """
    head = _PLACE.pack(len(_COLUMNS), 16, upload_id.bytes, 4, chunk.number)
    encode: _Encode = _in_place if sum(lengths) >= len(lengths) * _LARGE_ROW else _joined
    return SealedChunk(chunk, batch.salt, batch.commitment, (*encode(head, chunk.first_ordinal, batch, lengths),))


def _joined(head: bytes, first_ordinal: int, batch: SealingBatch, _lengths: Sequence[int]) -> Iterator[bytes]:
    pack = _ROW.pack
    numbered = enumerate(batch.rows, first_ordinal)
    # A few rows at a time: those of a whole chunk, each an object, would be several times its size.
    while parts := [
        part for ordinal, row in islice(numbered, _PIECE_ROWS) for part in (head, pack(8, ordinal, len(row)), row)
    ]:
        yield b"".join(parts)


def _in_place(head: bytes, first_ordinal: int, batch: SealingBatch, lengths: Sequence[int]) -> Iterator[memoryview]:
    whole = memoryview(bytearray(sum(lengths) + len(lengths) * (len(head) + _ROW.size)))
    rows: list[memoryview] = []
    at = 0
    for ordinal, length in enumerate(lengths, first_ordinal):
        whole[at : at + len(head)] = head
        _ROW.pack_into(whole, at + len(head), 8, ordinal, length)
        begun = at + len(head) + _ROW.size
        at = begun + length
        rows.append(whole[begun:at])
    batch.write(rows)
    for begun in range(0, len(whole), _PIECE_BYTES):
        yield whole[begun : begun + _PIECE_BYTES]


async def insert_headers(connection: Connection, upload_id: UUID, chunks: Sequence[SealedChunk]) -> None:
    """Writes the headers of chunks, inside the caller's transaction."""
    await connection.executemany(
        "INSERT INTO batches (upload, number, first_ordinal, row_count, leaf_hash, salt, commitment) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [
            (
                *(upload_id, sealed.chunk.number, sealed.chunk.first_ordinal, sealed.chunk.digest.rows),
                *(sealed.chunk.digest.leaf_hash, sealed.salt, sealed.commitment),
            )
            for sealed in chunks
        ],
    )


async def copy_rows(connection: Connection, chunks: Sequence[SealedChunk]) -> None:
    """Writes the rows of chunks, inside the caller's transaction."""
    copying = connection.copy_to_table("sealed_rows", source=_pieces(chunks), columns=_COLUMNS, format="binary")
    await _unless_lost(connection, copying)


async def _unless_lost(connection: Connection, copying: Coroutine[object, object, str]) -> None:
    """Waits for a COPY, and no longer than its connection lives.

    The driver waits until it may write again, and a connection that is lost meanwhile does not wake it:
    it would wait for its whole time limit.
    """
    task = asyncio.ensure_future(copying)

    def lost(_connection: object) -> None:
        task.cancel()

    connection.add_termination_listener(lost)
    try:
        await task
    except asyncio.CancelledError:
        if connection.is_closed():
            raise ConnectionDoesNotExistError("the connection was lost under a COPY") from None
        raise
    finally:
        if not connection.is_closed():
            connection.remove_termination_listener(lost)


async def _pieces(chunks: Sequence[SealedChunk]) -> AsyncIterator[bytes]:
    yield _BEGIN
    for sealed in chunks:
        for piece in sealed.rows:
            yield piece  # type: ignore[misc]  # any buffer, which the driver's stubs do not say
    yield _END
