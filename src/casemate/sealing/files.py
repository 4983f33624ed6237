"""Whole files sealed as streams: C2SP chunked encryption with AES-256-GCM.

The format is c2sp.org/chunked-encryption in its instance Cobblestone-256, byte for
byte, by the implementation in `cryptography`: 24 bytes of salt, 32 of commitment,
then chunks of 16 KiB, each with a 16-byte tag, the last one always shorter.

If this fails: a changed model or file opens. Digests in the signed manifest are
compared with the opened bytes before any of them is used.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from casemate.errors import StoredDataUnreadable
from casemate.sealing.keys import DataKey

CHUNK_BYTES = 16 * 1024
HEADER_BYTES = 24 + 32
TAG_BYTES = 16

_SALT_BYTES: Final = 24
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_MAX_CHUNKS: Final = 2**38  # 4 PiB
_SEALED_CHUNK_BYTES: Final = CHUNK_BYTES + TAG_BYTES
_INFO_LABEL: Final = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"


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


class SealedFile:
    """A sealed file that is read at any place, without what lies before it.

    Salt, commitment and the last chunk, which proves the length, are read and
    authenticated on construction; every other chunk when it is needed, and never kept.

    Args:
        key: the data key that sealed it.
        read: gives so many bytes of the sealed file from an offset; the same bytes every time.
        sealed_bytes: how long the sealed file is.
        context: what it was sealed for.

    Raises:
        StoredDataUnreadable: no file of ours has this length, or key, context, header or end
            are not what was sealed.
    """

    __slots__ = ("_base", "_cipher", "_read", "_size_bytes")

    def __init__(self, key: DataKey, read: Callable[[int, int], bytes], *, sealed_bytes: int, context: bytes) -> None:
        last, rest = divmod(sealed_bytes - HEADER_BYTES, _SEALED_CHUNK_BYTES)
        # Counted as C2SP does: the last chunk is never full and may be empty.
        if not 0 <= last < _MAX_CHUNKS or rest < TAG_BYTES:
            raise StoredDataUnreadable("a sealed file is cut short, or longer than any")
        self._read = read
        self._size_bytes = last * CHUNK_BYTES + rest - TAG_BYTES
        header = self._exactly(0, HEADER_BYTES)
        salt, commitment = header[:_SALT_BYTES], header[_SALT_BYTES:]
        length = _KEY_BYTES + _NONCE_BYTES + len(commitment)
        expand = HKDFExpand(algorithm=hashes.SHA512(), length=length, info=_INFO_LABEL + salt + context)
        derived = expand.derive(key.reveal())
        if not hmac.compare_digest(derived[_KEY_BYTES + _NONCE_BYTES :], commitment):
            raise StoredDataUnreadable("a sealed file does not match its commitment")
        self._cipher = AESGCM(derived[:_KEY_BYTES])
        self._base = int.from_bytes(derived[_KEY_BYTES : _KEY_BYTES + _NONCE_BYTES])
        self._open_chunks(last, last)

    @property
    def size_bytes(self) -> int:
        """How long the file is, proven."""
        return self._size_bytes

    def open_range(self, start: int, length: int) -> bytes:
        """`length` bytes from `start` on: all of them, or none. Costs one chunk more than it gives, at most two.

        Raises:
            ValueError: the range is not within the file.
            StoredDataUnreadable: a chunk of the range is not what was sealed.
        """
        if start < 0 or length < 0 or start + length > self._size_bytes:
            raise ValueError("the range is not within the file")
        if length == 0:
            return b""
        first = start // CHUNK_BYTES
        opened = self._open_chunks(first, (start + length - 1) // CHUNK_BYTES)
        begin = start - first * CHUNK_BYTES
        return opened[begin : begin + length]

    def _open_chunks(self, first: int, last: int) -> bytes:
        end = min(last * CHUNK_BYTES + CHUNK_BYTES, self._size_bytes) + (last + 1) * TAG_BYTES
        begin = first * _SEALED_CHUNK_BYTES
        sealed = memoryview(self._exactly(HEADER_BYTES + begin, end - begin))
        opened = []
        for index in range(first, last + 1):
            offset = (index - first) * _SEALED_CHUNK_BYTES
            nonce = (self._base ^ index).to_bytes(_NONCE_BYTES)
            try:
                opened.append(self._cipher.decrypt(nonce, sealed[offset : offset + _SEALED_CHUNK_BYTES], None))
            except InvalidTag as error:
                raise StoredDataUnreadable(f"chunk {index} of a sealed file does not authenticate") from error
        return b"".join(opened)

    def _exactly(self, offset: int, length: int) -> bytes:
        data = self._read(offset, length)
        if len(data) != length:
            raise StoredDataUnreadable("a sealed file is shorter than it was said to be")
        return data


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
