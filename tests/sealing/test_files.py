"""Sealed files: C2SP chunked encryption through our API."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import StoredDataUnreadable
from casemate.sealing.files import CHUNK_BYTES, open_bytes, open_stream, seal_bytes, seal_stream, sealed_size
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
    assert open_bytes(KEY, sealed, context=b"acme/digits/1") == b"model"


def test_same_file_sealed_twice_shares_no_salt_and_no_bytes() -> None:
    """A retry never reuses (key, nonce)."""
    one, other = (seal_bytes(KEY, content(100), context=b"file") for _ in range(2))
    assert one[:24] != other[:24]
    assert one[56:] != other[56:]
