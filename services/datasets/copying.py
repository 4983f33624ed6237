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
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
    from uuid import UUID

    from casemate.sealing.rows import SealingBatch
    from casemate.storage.pool import Connection
    from services.datasets.upload import PlannedChunk

_COLUMNS: Final = ("upload", "batch", "ordinal", "sealed")
# "Binary Format" in PostgreSQL's documentation of COPY: signature, no flags, no extension; -1 ends it.
_BEGIN: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_END: Final = b"\xff\xff"
_PLACE: Final = struct.Struct(">hi16sii")
_ROW: Final = struct.Struct(">iqi")
_PIECE_ROWS: Final = 1024
_LARGE_ROW: Final = 1 << 20
"""From here on a row is a piece of its own. Smaller ones are joined: a copy costs less than a turn of the driver."""


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """One chunk, sealed and ready to be stored."""

    chunk: PlannedChunk
    salt: bytes = field(repr=False)
    commitment: bytes = field(repr=False)
    rows: tuple[bytes, ...] = field(repr=False)


def encode_chunk(upload_id: UUID, chunk: PlannedChunk, batch: SealingBatch) -> SealedChunk:
    """Seals the rows of a batch, each as it is written; the batch cannot be taken again."""
    place = _PLACE.pack(len(_COLUMNS), 16, upload_id.bytes, 4, chunk.number)
    pack = _ROW.pack
    pieces: list[bytes] = []
    numbered = enumerate(batch.rows, chunk.first_ordinal)
    # A few rows at a time: those of a whole chunk, each an object, would be several times its size.
    while parts := [
        part for ordinal, row in islice(numbered, _PIECE_ROWS) for part in (place, pack(8, ordinal, len(row)), row)
    ]:
        pieces += _joined(parts)
    return SealedChunk(chunk, batch.salt, batch.commitment, tuple(pieces))


def _joined(parts: list[bytes]) -> Iterator[bytes]:
    """The parts in order, the small ones joined."""
    begun = 0
    for index, part in enumerate(parts):
        if len(part) >= _LARGE_ROW:
            yield b"".join(parts[begun:index])
            yield part
            begun = index + 1
    if begun < len(parts):
        yield b"".join(parts[begun:])


async def copy_chunks(connection: Connection, upload_id: UUID, chunks: Sequence[SealedChunk]) -> None:
    """Writes headers and rows, inside the caller's transaction."""
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
            yield piece
    yield _END
