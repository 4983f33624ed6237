"""Proofs from stored nodes against proofs from all leaves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import OutOfRange, StoredDataUnreadable
from casemate.signing import merkle
from casemate.signing.tiles import (
    completed_nodes,
    consistency_ranges,
    inclusion_ranges,
    nodes_of,
    range_hash,
    tile_range,
)
from services.datasets.log import LogHead

LEAVES = [merkle.leaf_hash(number.to_bytes(2, "big")) for number in range(600)]


def grown(leaves):
    """All nodes that a log stores while it grows."""
    nodes, head = {}, LogHead()
    for leaf in leaves:
        for level, index, digest in completed_nodes(head.size, head.frontier, leaf):
            assert (level, index) not in nodes, "a node is stored once"
            nodes[level, index] = digest
        head = head.appended(leaf)
    return nodes


NODES = grown(LEAVES)


@given(size=st.integers(1, len(LEAVES)), data=st.data())
def test_an_inclusion_proof_from_nodes_is_the_one_from_leaves(size, data):
    index = data.draw(st.integers(0, size - 1))
    ranges = inclusion_ranges(index, size)
    assert [range_hash(NODES, span) for span in ranges] == merkle.inclusion_proof(LEAVES[:size], index)


@given(second=st.integers(1, len(LEAVES)), data=st.data())
def test_a_consistency_proof_from_nodes_is_the_one_from_leaves(second, data):
    first = data.draw(st.integers(1, second))
    ranges = consistency_ranges(first, second)
    assert [range_hash(NODES, span) for span in ranges] == merkle.consistency_proof(LEAVES[:second], first)


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 600])
def test_the_root_of_any_size_is_the_hash_of_its_range(size):
    assert range_hash(NODES, (0, size)) == merkle.root(LEAVES[:size])


def test_a_proof_of_a_million_leaves_reads_no_more_than_forty_nodes_and_hashes_none_anew():
    size = 1_000_003
    for index in (0, 524_287, 524_288, size - 1):
        assert len(nodes_of([*inclusion_ranges(index, size), (0, size)])) <= 40
    assert len(nodes_of(consistency_ranges(524_287, size))) <= 40


def test_a_node_that_is_not_there_is_unreadable():
    spans = [(0, 600)]
    assert range_hash({node: NODES[node] for node in nodes_of(spans)}, spans[0])
    with pytest.raises(StoredDataUnreadable):
        range_hash({}, spans[0])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_there_is_no_inclusion_proof_outside_of_the_tree(index, size):
    assert inclusion_ranges(4, 5)
    with pytest.raises(OutOfRange):
        inclusion_ranges(index, size)


@pytest.mark.parametrize(("first", "second"), [(0, 5), (6, 5), (0, 0)])
def test_there_is_no_consistency_proof_outside_of_the_tree(first, second):
    assert consistency_ranges(5, 5) == []
    with pytest.raises(OutOfRange):
        consistency_ranges(first, second)


@pytest.mark.parametrize(
    ("level", "index", "expected"), [(0, 0, (0, 256)), (0, 2, (512, 600)), (1, 0, (0, 2))], ids=str
)
def test_a_tile_is_256_nodes_or_those_that_there_are(level, index, expected):
    assert tile_range(level, index, 600) == expected


@pytest.mark.parametrize(("level", "index"), [(0, 3), (1, 1), (2, 0), (8, 0), (-1, 0), (0, -1)])
def test_a_tile_beyond_the_tree_is_out_of_range(level, index):
    with pytest.raises(OutOfRange):
        tile_range(level, index, 600)
