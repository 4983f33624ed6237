"""The log's frontier against the tree over all leaves, and what an entry may be."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casemate.errors import InvalidRequest, StoredDataUnreadable
from casemate.signing import merkle
from services.datasets.log import MAXIMUM_BODY_BYTES, LogHead, entry_bytes, parse_body

LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(70)]


def test_the_frontier_gives_the_root_of_all_leaves_at_every_size():
    head = LogHead()
    assert head.root == merkle.root([])
    for size, leaf in enumerate(LEAVES, 1):
        head = head.appended(leaf)
        assert head.size == size
        assert head.root == merkle.root(LEAVES[:size])
        assert LogHead.parse(size, head.to_bytes()) == head


def test_a_frontier_that_does_not_fit_its_size_is_refused():
    head = LogHead().appended(LEAVES[0]).appended(LEAVES[1]).appended(LEAVES[2])

    assert LogHead.parse(3, head.to_bytes()) == head
    with pytest.raises(StoredDataUnreadable):
        LogHead.parse(4, head.to_bytes())


def test_a_canonical_body_is_taken():
    assert parse_body("release", '{"a":1,"b":"ü"}'.encode()) == {"a": 1, "b": "ü"}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", b"{}"),
        ("Release", b"{}"),
        ("release\n", b"{}"),
        ("release", b""),
        ("release", b"[]"),
        ("release", b'{"b":1,"a":1}'),
        ("release", b'{"a": 1}'),
        ("release", b'{"a":1,"a":1}'),
        ("release", b'{"a":NaN}'),
        ("release", b'{"a":"\xff"}'),
        ("release", b'{"a":"\\ud800"}'),
        ("release", b"{" * 10_000),
        ("release", b'{"a":"' + b"x" * MAXIMUM_BODY_BYTES + b'"}'),
    ],
)
def test_a_body_with_a_second_spelling_or_too_much_is_refused(kind, body):
    with pytest.raises(InvalidRequest):
        parse_body(kind, body)


def test_an_entry_says_who_said_what_when():
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    entry = entry_bytes("release", {"model": "digits"}, by="inference", at=at, salt=bytes(2))

    said = (
        b'{"at":"2026-01-02T03:04:05+00:00","body":{"model":"digits"},"by":"inference","kind":"release","salt":"0000"}'
    )
    assert entry == said
