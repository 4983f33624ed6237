"""Sealed files: C2SP chunked encryption through our API."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import StoredDataUnreadable
from casemate.sealing.files import (
    CHUNK_BYTES,
    SealedFile,
    open_bytes,
    open_stream,
    seal_bytes,
    seal_stream,
    sealed_size,
)
from casemate.sealing.keys import DataKey

KEY = DataKey(bytes(range(32)))
FILE = "wycheproof/c2sp_chunked_encryption_aes_256_gcm_test.json"
sizes = st.one_of(st.integers(0, 200), st.sampled_from([n * CHUNK_BYTES + d for n in (1, 2, 3) for d in (-1, 0, 1)]))


def content(size: int) -> bytes:
    return hashlib.shake_128(b"content").digest(size)


def vectors() -> list[dict[str, object]]:
    folder = os.environ.get("CASEMATE_VECTORS")  # where test vectors come from
    if not folder:
        pytest.skip("CASEMATE_VECTORS is not set: the folder of test vectors")
    document = json.loads((Path(folder) / FILE).read_text())
    cases = [case for group in document["testGroups"] for case in group["tests"]]
    assert len(cases) == document["numberOfTests"] == 35
    return cases


def read_prefix(stream: object) -> tuple[bytes, bool]:
    """What a stream gave, and whether it failed in the end."""
    prefix = b""
    try:
        for piece in stream:
            prefix += piece
    except StoredDataUnreadable:
        return prefix, True
    return prefix, False


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("piece", [None, 1000, CHUNK_BYTES + 16])
def test_wycheproof_vectors_are_judged_as_they_say(piece: int | None) -> None:
    """C2SP/wycheproof, 35 vectors: whole, in small pieces, and in whole chunks."""
    for case in vectors():
        label = f"vector {case['tcId']}: {case['comment']}"
        sealed = zlib.decompress(bytes.fromhex(case["ct"]))
        context = bytes.fromhex(case["ctx"])
        if "InvalidKeySize" in case["flags"]:
            with pytest.raises(StoredDataUnreadable):
                DataKey(bytes.fromhex(case["key"]))
            continue
        key = DataKey(bytes.fromhex(case["key"]))
        stream = open_stream(key, pieces(sealed, piece or len(sealed) or 1), context=context)
        prefix, failed = read_prefix(stream)
        assert failed == (case["result"] == "invalid"), label
        if case["result"] == "valid":
            assert hashlib.sha512(prefix).hexdigest() == case["msgSha512"], label
            assert open_bytes(key, seal_bytes(key, prefix, context=context), context=context) == prefix
        else:
            # No byte past the longest valid prefix, and failed for good.
            assert len(prefix) <= case.get("msgLength", 0), label
            with pytest.raises(StoredDataUnreadable):
                next(stream)
            with pytest.raises(StoredDataUnreadable):
                open_bytes(key, sealed, context=context)


def opened_anywhere(key: DataKey, sealed: bytes, context: bytes) -> SealedFile:
    return SealedFile(key, lambda at, count: sealed[at : at + count], sealed_bytes=len(sealed), context=context)


def test_wycheproof_vectors_are_judged_as_they_say_by_random_access() -> None:
    """C2SP/wycheproof, 35 vectors: the last byte first, then the whole."""
    for case in vectors():
        if "InvalidKeySize" in case["flags"]:
            continue  # no DataKey can hold it, as the test above shows
        sealed = zlib.decompress(bytes.fromhex(case["ct"]))
        key, context = DataKey(bytes.fromhex(case["key"])), bytes.fromhex(case["ctx"])
        if case["result"] == "valid":
            file = opened_anywhere(key, sealed, context)
            last = file.open_range(max(file.size_bytes - 1, 0), min(file.size_bytes, 1))
            whole = file.open_range(0, file.size_bytes)
            assert whole.endswith(last)
            assert hashlib.sha512(whole).hexdigest() == case["msgSha512"], case["tcId"]
        else:
            with pytest.raises(StoredDataUnreadable):
                read_all(opened_anywhere(key, sealed, context))


def read_all(file: SealedFile) -> bytes:
    return file.open_range(0, file.size_bytes)


@settings(deadline=None)
@given(size=sizes, draw=st.data())
def test_any_range_is_that_part_of_the_file(size: int, draw: st.DataObject) -> None:
    """Over the borders of chunks; and what is not within the file is refused."""
    data = content(size)
    file = opened_anywhere(KEY, seal_bytes(KEY, data, context=b"file"), b"file")
    start = draw.draw(st.integers(0, size))
    length = draw.draw(st.integers(0, size - start))
    assert file.size_bytes == size
    assert file.open_range(start, length) == data[start : start + length]
    for wrong in ((start, size - start + 1), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="within"):
            file.open_range(*wrong)


def test_range_reads_its_own_chunks_and_no_others() -> None:
    """A damaged chunk spoils the ranges that touch it; its neighbours open."""
    data = content(5 * CHUNK_BYTES)
    sealed = bytearray(seal_bytes(KEY, data, context=b"file"))
    sealed[56 + 2 * (CHUNK_BYTES + 16)] ^= 1
    asked: list[tuple[int, int]] = []

    def read(at: int, count: int) -> bytes:
        asked.append((at, count))
        return bytes(sealed[at : at + count])

    file = SealedFile(KEY, read, sealed_bytes=len(sealed), context=b"file")
    asked.clear()
    assert file.open_range(CHUNK_BYTES, CHUNK_BYTES) == data[CHUNK_BYTES : 2 * CHUNK_BYTES]
    assert asked == [(56 + CHUNK_BYTES + 16, CHUNK_BYTES + 16)]
    assert file.open_range(3 * CHUNK_BYTES, 10) == data[3 * CHUNK_BYTES : 3 * CHUNK_BYTES + 10]
    with pytest.raises(StoredDataUnreadable, match="chunk 2"):
        file.open_range(2 * CHUNK_BYTES - 1, 2)


@settings(deadline=None)
@given(size=sizes, draw=st.data())
def test_no_range_opens_of_a_file_that_is_cut_or_changed(size: int, draw: st.DataObject) -> None:
    """The length is proven before the first range: a file cut at a chunk's border does not open at all."""
    sealed = seal_bytes(KEY, content(size), context=b"file")
    cut = draw.draw(st.one_of(st.integers(0, len(sealed) - 1), st.sampled_from([0, 24, 56])))
    for changed in (sealed[:cut], sealed + b"\0", sealed + sealed[56:]):
        with pytest.raises(StoredDataUnreadable):
            opened_anywhere(KEY, changed, b"file")
    with pytest.raises(StoredDataUnreadable, match="shorter"):
        SealedFile(KEY, lambda at, count: sealed[at : at + count - 1], sealed_bytes=len(sealed), context=b"file")
    with pytest.raises(StoredDataUnreadable, match="longer than any"):
        SealedFile(KEY, lambda _at, _count: sealed, sealed_bytes=2**52 + 2**42 + 72, context=b"file")
    flipped = bytearray(sealed)
    bit = draw.draw(st.integers(0, len(sealed) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoredDataUnreadable):
        read_all(opened_anywhere(KEY, bytes(flipped), b"file"))


@settings(deadline=None)
@given(size=sizes, in_piece=st.integers(1, 40_000), out_piece=st.integers(100, 40_000))
def test_opened_file_is_the_sealed_one_whatever_the_pieces(size: int, in_piece: int, out_piece: int) -> None:
    """open(seal(x)) == x, and the sealed size is known beforehand."""
    data = content(size)
    sealed = b"".join(seal_stream(KEY, pieces(data, max(in_piece, size // 50)), context=b"file"))
    assert len(sealed) == sealed_size(size)
    opened = b"".join(open_stream(KEY, pieces(sealed, out_piece), context=b"file"))
    assert opened == data == open_bytes(KEY, sealed, context=b"file")


@settings(deadline=None)
@given(size=sizes, draw=st.data())
def test_any_flipped_bit_is_refused(size: int, draw: st.DataObject) -> None:
    """Salt, commitment, chunks and tags."""
    sealed = bytearray(seal_bytes(KEY, content(size), context=b"file"))
    bit = draw.draw(st.integers(0, len(sealed) * 8 - 1))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StoredDataUnreadable):
        open_bytes(KEY, bytes(sealed), context=b"file")


@settings(deadline=None)
@given(size=sizes, draw=st.data())
def test_any_truncation_or_extension_is_refused(size: int, draw: st.DataObject) -> None:
    """At a chunk's border too."""
    sealed = seal_bytes(KEY, content(size), context=b"file")
    cut = draw.draw(st.one_of(st.integers(0, len(sealed) - 1), st.sampled_from([0, 24, 56])))
    for changed in (sealed[:cut], sealed + b"\0", sealed + sealed[56:]):
        with pytest.raises(StoredDataUnreadable):
            open_bytes(KEY, changed, context=b"file")


def test_another_key_or_context_is_refused() -> None:
    """By the commitment, before any chunk."""
    sealed = seal_bytes(KEY, b"model", context=b"acme/digits/1")
    with pytest.raises(StoredDataUnreadable):
        open_bytes(KEY, sealed, context=b"acme/digits/2")
    with pytest.raises(StoredDataUnreadable):
        open_bytes(DataKey(bytes(32)), sealed, context=b"acme/digits/1")
    for key, context in ((KEY, b"acme/digits/2"), (DataKey(bytes(32)), b"acme/digits/1")):
        with pytest.raises(StoredDataUnreadable, match="commitment"):
            opened_anywhere(key, sealed, context)
    assert open_bytes(KEY, sealed, context=b"acme/digits/1") == b"model"
    assert read_all(opened_anywhere(KEY, sealed, b"acme/digits/1")) == b"model"


def test_same_file_sealed_twice_shares_no_salt_and_no_bytes() -> None:
    """A retry never reuses (key, nonce)."""
    one, other = (seal_bytes(KEY, content(100), context=b"file") for _ in range(2))
    assert one[:24] != other[:24]
    assert one[56:] != other[56:]


def test_streams_take_the_same_memory_whatever_they_carry() -> None:
    """Both ways at once: sixteen times the bytes, and not a chunk more at the peak."""

    def source(pieces: int) -> Iterator[bytes]:
        for _ in range(pieces):
            yield bytes(65536)

    def peak(pieces: int) -> int:
        tracemalloc.start()
        try:
            opened = open_stream(KEY, seal_stream(KEY, source(pieces), context=b"c"), context=b"c")
            assert sum(map(len, opened)) == pieces * 65536
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # What is made once is made here.
    assert peak(128) < peak(8) + 65536 < 1024 * 1024
