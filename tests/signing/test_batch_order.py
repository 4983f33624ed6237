"""Shards and shuffles: what is read is the same wherever it is computed, and n shards part a version."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidRequest
from casemate.signing.batch_order import BatchOrder

ROOT = hashlib.sha256(b"root").digest()


@given(batches=st.integers(1, 200), shards=st.integers(1, 12), seed=st.none() | st.integers(0, 2**53 - 1))
def test_shards_part_a_version_with_nothing_twice_and_nothing_left_out(batches, shards, seed):
    read = [BatchOrder(shard=k, shards=shards, shuffle_seed=seed).numbers(ROOT, batches) for k in range(shards)]
    assert sorted(number for shard in read for number in shard) == list(range(batches))


@given(batches=st.integers(1, 100), position=st.integers(0, 100), seed=st.none() | st.integers(0, 9))
def test_a_later_position_leaves_out_exactly_what_came_before(batches, position, seed):
    whole = BatchOrder(shuffle_seed=seed).numbers(ROOT, batches)
    later = BatchOrder(shuffle_seed=seed, position=min(position, batches)).numbers(ROOT, batches)
    assert later == whole[min(position, batches) :]


def test_the_documented_order_can_be_computed_by_anybody():
    def place(number: int) -> bytes:
        text = b"casemate/batch-order/v1\x00" + (7).to_bytes(8, "big") + ROOT + number.to_bytes(8, "big")
        return hashlib.sha256(text).digest()

    assert BatchOrder(shuffle_seed=7).numbers(ROOT, 50) == sorted(range(50), key=place)
    # Fixed for ever: who trained with a seed must be able to read in that order again.
    assert BatchOrder(shuffle_seed=7).numbers(ROOT, 8) == [2, 6, 7, 4, 3, 5, 0, 1]


def test_another_seed_and_another_version_give_another_order():
    orders = {tuple(BatchOrder(shuffle_seed=seed).numbers(root, 50)) for seed in (1, 2) for root in (ROOT, bytes(32))}
    assert len(orders) == 4


@pytest.mark.parametrize(
    "bad",
    [
        {"shards": 0},
        {"shards": 65_537},
        {"shard": 1},
        {"shard": -1},
        {"shuffle_seed": 2**53},
        {"shuffle_seed": -1},
        {"position": -1},
    ],
)
def test_an_order_that_is_none_is_refused(bad):
    BatchOrder(shard=65_535, shards=65_536, shuffle_seed=2**53 - 1, position=0)
    with pytest.raises(InvalidRequest):
        BatchOrder(**bad)


def test_a_position_at_the_end_gives_nothing_and_one_beyond_it_is_refused():
    assert BatchOrder(shard=1, shards=2, position=2).numbers(ROOT, 5) == []
    with pytest.raises(InvalidRequest):
        BatchOrder(shard=1, shards=2, position=3).numbers(ROOT, 5)
