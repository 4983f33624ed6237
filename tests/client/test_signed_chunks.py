"""Bytes cut as a manifest says, whatever pieces they come in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.client.chunks import cut_as_signed, read_pieces
from casemate.errors import InvalidRequest, Reason


@given(pieces=st.lists(st.binary(max_size=20), max_size=10), data=st.data())
def test_the_chunks_have_the_sizes_that_were_signed_and_lose_nothing(pieces, data):
    whole = b"".join(pieces)
    sizes, left = [], len(whole)
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    # An empty piece is no end: pieces of a file are never empty.
    found = list(cut_as_signed([piece for piece in pieces if piece], sizes))
    assert [len(chunk) for chunk in found] == sizes
    assert b"".join(found) == whole


@pytest.mark.parametrize("pieces", [[b"12345"], [b"1234567"], [], [b"123456", b"7"]])
def test_more_or_fewer_bytes_than_were_signed_are_refused(pieces):
    assert list(cut_as_signed([b"123456"], [2, 4])) == [b"12", b"3456"]
    with pytest.raises(InvalidRequest) as refused:
        list(cut_as_signed(pieces, [2, 4]))
    assert refused.value.reason is Reason.DIGEST_MISMATCH


def test_a_file_is_read_whole_in_pieces(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(bytes(range(256)) * 2000)
    pieces = list(read_pieces(path))
    assert len(pieces) > 1
    assert b"".join(pieces) == path.read_bytes()
