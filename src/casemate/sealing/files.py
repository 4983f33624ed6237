"""Whole files sealed as streams: C2SP chunked encryption with AES-256-GCM.

The format is c2sp.org/chunked-encryption in its instance Cobblestone-256, byte for
byte, by the implementation in `cryptography`: 24 bytes of salt, 32 of commitment,
then chunks of 16 KiB, each with a 16-byte tag, the last one always shorter.

If this fails: a changed model or file opens. Digests in the signed manifest are
compared with the opened bytes before any of them is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag

from casemate.errors import StoredDataUnreadable
from casemate.sealing.keys import DataKey

CHUNK_BYTES = 16 * 1024
HEADER_BYTES = 24 + 32
TAG_BYTES = 16


def sealed_size(size_bytes: int) -> int:
    """How many bytes a file of `size_bytes` has once sealed."""
    chunks = size_bytes // CHUNK_BYTES + 1
    return HEADER_BYTES + size_bytes + chunks * TAG_BYTES


def seal_stream(key: DataKey, chunks: Iterable[bytes], *, context: bytes) -> Iterator[bytes]:
    """The sealed file in pieces, holding at most one piece and one chunk in memory.

    Args:
        key: a data key; many files may share one, as each has its own random salt.
        chunks: the file in pieces of any size.
        context: what the file is; the same bytes are needed to open it.
    """
    encryptor = Cobblestone256Encryptor(key.reveal(), context)
    for chunk in chunks:
        if sealed := encryptor.update(chunk):
            yield sealed
    yield encryptor.finalize()


def seal_bytes(key: DataKey, data: bytes, *, context: bytes) -> bytes:
    """A whole file, sealed in memory. As `seal_stream` otherwise."""
    return b"".join(seal_stream(key, (data,), context=context))


def open_stream(key: DataKey, chunks: Iterable[bytes], *, context: bytes) -> Iterator[bytes]:
    """The file in pieces, each authenticated and in its place, before its end is known.

    What was read is the whole file only once the iterator has ended without an
    error; until then it may turn out to be cut short. After an error, every
    further read raises it again.

    Raises:
        StoredDataUnreadable: from the iterator, when the key, the context or
            any byte is not what was sealed, or bytes are missing or added.
    """
    return _OpenedStream(key, chunks, context)


def open_bytes(key: DataKey, sealed: bytes, *, context: bytes) -> bytes:
    """The whole file, or nothing.

    Raises:
        StoredDataUnreadable: as `open_stream`.
    """
    return b"".join(open_stream(key, (sealed,), context=context))


class _OpenedStream:
    """An iterator that stays failed; a generator would end as if the file had."""

    __slots__ = ("_chunks", "_decryptor", "_ended", "_failure")

    def __init__(self, key: DataKey, chunks: Iterable[bytes], context: bytes) -> None:
        self._decryptor = Cobblestone256Decryptor(key.reveal(), context)
        self._chunks = iter(chunks)
        self._ended = False
        self._failure: str | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._failure is not None:
            raise StoredDataUnreadable(self._failure)
        try:
            return self._read()
        except InvalidTag as error:
            self._failure = "a sealed file does not authenticate, or is cut short"
            raise StoredDataUnreadable(self._failure) from error

    def _read(self) -> bytes:
        if self._ended:
            raise StopIteration
        for chunk in self._chunks:
            if opened := self._decryptor.update(chunk):
                return opened
        self._ended = True
        return self._decryptor.finalize()
