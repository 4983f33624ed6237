"""Rows of a dataset, sealed one by one under a key of their batch.

HKDF-Expand-SHA512 turns the version's data key and a fresh 24-byte salt into the
batch's key, base nonce and commitment, as C2SP chunked encryption does for files.
Row `i` of the batch has the nonce base XOR i, and associated data that names
tenant, dataset, version, batch, schema and ordinal. A row grows by 16 bytes, a
batch by 56. The numbers of the batch's first row and of its rows go into the
derivation, so a batch with a row more or less has another commitment.

If this fails: a row of another place or time is read as this one. The reader
still recomputes the signed root from the rows; whole batches that are missing or
rolled back show there, and only there.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from casemate.errors import InvalidRequest, StoredDataUnreadable
from casemate.sealing.encoding import length_prefixed
from casemate.sealing.keys import DataKey

SALT_BYTES: Final = 24  # 2^80 batches under one data key before a salt repeats with chance 2^-32
COMMITMENT_BYTES: Final = 32
TAG_BYTES: Final = 16

_TURN_BYTES: Final = 64 * 1024  # under a third of what a socket holds, and a tenth of a millisecond

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_SCHEMA_BYTES: Final = 32
_INFO_LABEL: Final = b"casemate/row-batch@v1\x00AEAD_AES_256_GCM\x00"
_ROW_LABEL: Final = b"casemate/row@v1\x00"
_NUMBERS: Final = struct.Struct(">QI")
_BOUNDS: Final = struct.Struct(">QQ")
_ORDINAL: Final = struct.Struct(">Q")
_MAX_ROW_BYTES: Final = 2**31 - 1 - TAG_BYTES  # what one call of the cipher takes
_MAX_ORDINAL: Final = 2**63 - 1  # what a bigint of the database holds


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchContext:
    """Where a batch belongs. Its rows open under the very same context alone.

    Attributes:
        tenant: the dataset's tenant.
        dataset: its name.
        version: its version, below 2^64.
        batch: the number of the batch within the version, below 2^32.
        schema_sha256: digest of the schema that the rows follow.

    Raises:
        ValueError: a number is out of range, or the digest is not 32 bytes.
    """

    tenant: str
    dataset: str
    version: int
    batch: int
    schema_sha256: bytes

    def __post_init__(self) -> None:
        if not (0 <= self.version < 2**64 and 0 <= self.batch < 2**32):
            raise ValueError("version or batch is out of range")
        if len(self.schema_sha256) != _SCHEMA_BYTES:
            raise ValueError("schema_sha256 has 32 bytes")

    def to_bytes(self) -> bytes:
        """The canonical bytes, in the derivation and in every row's associated data."""
        numbers = _NUMBERS.pack(self.version, self.batch)
        return length_prefixed(self.tenant.encode(), self.dataset.encode(), numbers, self.schema_sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedBatch:
    """What is stored of a batch; all of it may be seen by anyone.

    Attributes:
        salt: 24 random bytes, new for every sealing, a repeated one included.
        commitment: 32 bytes that only one key, salt and context derive.
        first_ordinal: the number of the first row within the version.
        rows: each row's ciphertext and tag, in order.
    """

    salt: bytes
    commitment: bytes
    first_ordinal: int
    rows: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SealingBatch:
    """A batch that is being sealed; its header is final.

    Attributes:
        salt: as of `SealedBatch`.
        commitment: as of `SealedBatch`.
        first_ordinal: as of `SealedBatch`.
        rows: each row is sealed when it is taken, and can be taken once.
        write: seals the rows that were not taken, each into the buffer given for it: 16 bytes longer than the row.
    """

    salt: bytes
    commitment: bytes
    first_ordinal: int
    rows: Iterator[bytes]
    write: Callable[[Sequence[memoryview]], None]

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        # A copy would seal other rows with the same nonces, if the rows changed in between.
        raise TypeError("a SealingBatch is not copied")


def seal_rows(
    key: DataKey, context: BatchContext, rows: Sequence[bytes] | Sequence[memoryview], *, first_ordinal: int
) -> SealingBatch:
    """As `seal_batch`, for rows that are written as they are sealed: into a COPY, say.

    A sealed row is still in the processor's cache when it is written, and the batch is
    in memory once, not twice. A second pass over the rows gives none, so no nonce is used again.

    Raises:
        ValueError: the ordinals are out of range.
        InvalidRequest: a row is of 2 GiB or more; the log's text names batch and ordinal.
    """
    if not 0 <= first_ordinal <= _MAX_ORDINAL - len(rows):
        raise ValueError("first_ordinal is out of range")
    oversized = _oversized(rows, _MAX_ROW_BYTES)
    if oversized is not None:
        raise InvalidRequest(f"row {first_ordinal + oversized} in {_place(context)} is longer than a row may be")
    salt = secrets.token_bytes(SALT_BYTES)
    cipher, base, commitment = _derive(key, context, salt, first_ordinal, len(rows))
    nonces, associated = _places(context, base, first_ordinal, len(rows))
    plain: Iterable[bytes | memoryview] = rows
    left = zip(nonces, plain, associated, strict=True)
    return SealingBatch(
        salt=salt,
        commitment=commitment,
        first_ordinal=first_ordinal,
        rows=starmap(cipher.encrypt, left),
        write=partial(_write_rows, cipher, left),
    )


def _write_rows(
    cipher: AESGCM, left: Iterator[tuple[bytes, bytes | memoryview, bytes]], buffers: Sequence[memoryview]
) -> None:
    for buffer, (nonce, row, associated) in zip(buffers, left, strict=True):
        cipher.encrypt_into(nonce, row, associated, buffer)


def seal_batch(key: DataKey, context: BatchContext, rows: Sequence[bytes], *, first_ordinal: int) -> SealedBatch:
    """The rows, sealed under a salt that has never been used.

    Sealing the same rows again gives other bytes, so a retried batch never
    meets its own (key, nonce) pairs. Costs under 1 µs a row of 256 B to 1 KiB.

    Raises:
        ValueError, InvalidRequest: as `seal_rows`.
    """
    batch = seal_rows(key, context, rows, first_ordinal=first_ordinal)
    return SealedBatch(
        salt=batch.salt, commitment=batch.commitment, first_ordinal=first_ordinal, rows=tuple(batch.rows)
    )


def open_batch(key: DataKey, context: BatchContext, batch: SealedBatch) -> list[bytes]:
    """The rows of a batch: all of them, or none.

    Raises:
        StoredDataUnreadable: the key, the context, the salt, the count or any
            byte is not what was sealed. The log's text names batch and ordinal.
    """
    rows = list(batch.rows)
    open_rows(key, context, rows, salt=batch.salt, commitment=batch.commitment, first_ordinal=batch.first_ordinal)
    return rows


def open_rows(
    key: DataKey, context: BatchContext, rows: list[bytes], *, salt: bytes, commitment: bytes, first_ordinal: int
) -> None:
    """As `open_batch`, in the list itself: each row takes the place, and the memory, of its sealed form.

    A caller that holds the sealed rows nowhere else has the batch in memory once, and long
    rows open in two thirds of the time. After an error the list is empty.

    Raises:
        StoredDataUnreadable: as `open_batch`.
    """
    with _all_or_none(rows):
        for _ in _opening(key, context, rows, salt=salt, commitment=commitment, first_ordinal=first_ordinal):
            pass


async def open_rows_in_turns(
    key: DataKey, context: BatchContext, rows: list[bytes], *, salt: bytes, commitment: bytes, first_ordinal: int
) -> None:
    """As `open_rows`, with a turn of the event loop after every 64 KiB.

    The next batch keeps arriving while this one opens: a socket holds less than one batch,
    so a loop that opens a whole one in a breath stops the database that sends the next.
    Nobody else may look at the list before this returns; after an error or a cancellation it is empty.

    Raises:
        StoredDataUnreadable: as `open_batch`; or somebody else put rows in or took some out meanwhile.
    """
    with _all_or_none(rows):
        for _ in _opening(key, context, rows, salt=salt, commitment=commitment, first_ordinal=first_ordinal):
            await asyncio.sleep(0)


@contextmanager
def _all_or_none(rows: list[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        rows.clear()  # never a part of the plaintext
        raise


def _opening(
    key: DataKey, context: BatchContext, rows: list[bytes], *, salt: bytes, commitment: bytes, first_ordinal: int
) -> Iterator[None]:
    """Opens one row after another in its place, and stops after each 64 KiB or so."""
    place, count = _place(context), len(rows)
    if len(salt) != SALT_BYTES or not 0 <= first_ordinal <= _MAX_ORDINAL - count:
        raise StoredDataUnreadable(f"{place} has a header that none is sealed with")
    oversized = _oversized(rows, _MAX_ROW_BYTES + TAG_BYTES)
    if oversized is not None:
        raise StoredDataUnreadable(f"row {first_ordinal + oversized} in {place} is longer than a row may be")
    cipher, base, expected = _derive(key, context, salt, first_ordinal, count)
    # Before any row: AES-GCM alone would let one ciphertext open under two keys.
    if not hmac.compare_digest(expected, commitment):
        raise StoredDataUnreadable(f"{place} does not match its commitment")
    decrypt = cipher.decrypt
    nonces, associated = _places(context, base, first_ordinal, count)
    together = max(1, _TURN_BYTES * count // max(1, sum(map(len, rows))))
    try:
        for start in range(0, count, together):
            for index in range(start, min(start + together, count)):
                rows[index] = decrypt(nonces[index], rows[index], associated[index])
            yield
            if len(rows) != count:
                raise StoredDataUnreadable(f"{place} was changed by somebody else while it was opened")
    except InvalidTag as error:
        raise StoredDataUnreadable(f"row {first_ordinal + index} in {place} does not authenticate") from error


def _place(context: BatchContext) -> str:
    return f"batch {context.batch} of {context.tenant}/{context.dataset} version {context.version}"


def _oversized(rows: Sequence[bytes] | Sequence[memoryview], most: int) -> int | None:
    """The place of the first row that is longer than `most` bytes."""
    if max(map(len, rows), default=0) <= most:
        return None
    return next(place for place, row in enumerate(rows) if len(row) > most)


def _derive(
    key: DataKey, context: BatchContext, salt: bytes, first_ordinal: int, count: int
) -> tuple[AESGCM, int, bytes]:
    """The batch's cipher, base nonce as a number, and commitment."""
    info = _INFO_LABEL + salt + length_prefixed(context.to_bytes(), _BOUNDS.pack(first_ordinal, count))
    length = _KEY_BYTES + _NONCE_BYTES + COMMITMENT_BYTES
    # Without the extract step, as the data key is uniformly random already (SP 800-108).
    derived = HKDFExpand(algorithm=hashes.SHA512(), length=length, info=info).derive(key.reveal())
    base = int.from_bytes(derived[_KEY_BYTES : _KEY_BYTES + _NONCE_BYTES])
    return AESGCM(derived[:_KEY_BYTES]), base, derived[_KEY_BYTES + _NONCE_BYTES :]


def _places(context: BatchContext, base: int, first_ordinal: int, count: int) -> tuple[list[bytes], list[bytes]]:
    """Nonce and associated data of every row; what all rows share is encoded once.

    As lists, made before the first row: anything else between two rows is a tenth slower on short ones.
    """
    prefix = _ROW_LABEL + length_prefixed(context.to_bytes())
    pack = _ORDINAL.pack
    nonces = [(base ^ index).to_bytes(_NONCE_BYTES) for index in range(count)]
    associated = [prefix + pack(ordinal) for ordinal in range(first_ordinal, first_ordinal + count)]
    return nonces, associated
