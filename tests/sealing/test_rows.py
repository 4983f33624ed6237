"""Sealed rows: what is put in comes out, in its place or not at all."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import mmap
import pickle
import secrets
from collections import Counter

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import InvalidRequest, StoredDataUnreadable
from casemate.sealing.keys import DataKey
from casemate.sealing.rows import (
    BatchContext,
    SealedBatch,
    open_batch,
    open_rows,
    open_rows_in_turns,
    seal_batch,
    seal_rows,
)

KEY = DataKey(bytes(range(32)))
CONTEXT = BatchContext(tenant="acme", dataset="digits", version=7, batch=3, schema_sha256=b"\x5c" * 32)
ROWS = [b"first", b"second", b"", b"fourth"]

some_rows = st.lists(st.binary(max_size=80), max_size=12)
ordinals = st.integers(min_value=0, max_value=2**63 - 100)


@settings(deadline=None)
@given(rows=some_rows, first_ordinal=ordinals)
def test_opened_rows_are_the_sealed_ones(rows: list[bytes], first_ordinal: int) -> None:
    """open(seal(x)) == x, and a row grows by 16 bytes."""
    batch = seal_batch(KEY, CONTEXT, rows, first_ordinal=first_ordinal)
    assert open_batch(KEY, CONTEXT, batch) == rows
    assert [len(sealed) - 16 for sealed in batch.rows] == [len(row) for row in rows]
    assert (len(batch.salt), len(batch.commitment)) == (24, 32)


@settings(deadline=None)
@given(rows=some_rows, first_ordinal=ordinals)
def test_rows_sealed_as_they_are_taken_open_as_a_batch(rows: list[bytes], first_ordinal: int) -> None:
    """One form on the disk, whichever way it was sealed."""
    sealing = seal_rows(KEY, CONTEXT, rows, first_ordinal=first_ordinal)
    batch = SealedBatch(
        salt=sealing.salt, commitment=sealing.commitment, first_ordinal=first_ordinal, rows=tuple(sealing.rows)
    )
    assert open_batch(KEY, CONTEXT, batch) == rows


@settings(deadline=None)
@given(rows=some_rows, first_ordinal=ordinals, taken=st.integers(min_value=0, max_value=12))
def test_rows_sealed_where_they_are_to_lie_open_as_a_batch(rows: list[bytes], first_ordinal: int, taken: int) -> None:
    """And those that were taken before are not sealed again."""
    sealing = seal_rows(KEY, CONTEXT, rows, first_ordinal=first_ordinal)
    first = [next(sealing.rows) for _ in rows[:taken]]
    buffers = [bytearray(len(row) + 16) for row in rows[taken:]]
    sealing.write(list(map(memoryview, buffers)))
    batch = SealedBatch(
        salt=sealing.salt,
        commitment=sealing.commitment,
        first_ordinal=first_ordinal,
        rows=(*first, *map(bytes, buffers)),
    )
    assert open_batch(KEY, CONTEXT, batch) == rows
    assert list(sealing.rows) == []


@pytest.mark.parametrize("lengths", [[21, 21, 16], [22, 22, 15], [21, 22], [21, 22, 16, 22, 16]])
def test_buffers_that_are_not_those_of_the_rows_are_refused(lengths: list[int]) -> None:
    """Twin: with the right ones, the test above."""
    sealing = seal_rows(KEY, CONTEXT, [b"first", b"second", b""], first_ordinal=0)
    with pytest.raises(ValueError):  # noqa: PT011  # the cipher's own, and zip's
        sealing.write([memoryview(bytearray(length)) for length in lengths])


def test_rows_are_taken_once_even_when_they_change_meanwhile() -> None:
    """A second pass over changed rows would repeat every nonce: there is none."""
    rows = list(ROWS)
    sealing = seal_rows(KEY, CONTEXT, rows, first_ordinal=0)
    first = next(sealing.rows)
    rows[0] = b"changed"
    assert len([first, *sealing.rows]) == len(rows)
    assert list(sealing.rows) == []


def flip(data: bytes, draw: st.DataObject) -> bytes:
    bit = draw.draw(st.integers(min_value=0, max_value=len(data) * 8 - 1))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused(batch: SealedBatch, *, context: BatchContext = CONTEXT, key: DataKey = KEY) -> str:
    with pytest.raises(StoredDataUnreadable) as error:
        open_batch(key, context, batch)
    return str(error.value)


@settings(deadline=None)
@given(rows=st.lists(st.binary(max_size=80), min_size=1, max_size=6), draw=st.data())
def test_any_flipped_bit_in_any_field_is_refused(rows: list[bytes], draw: st.DataObject) -> None:
    """Salt, commitment, number of the first row, every row, and the key itself."""
    batch = seal_batch(KEY, CONTEXT, rows, first_ordinal=40)
    refused(dataclasses.replace(batch, salt=flip(batch.salt, draw)))
    refused(dataclasses.replace(batch, commitment=flip(batch.commitment, draw)))
    refused(dataclasses.replace(batch, first_ordinal=batch.first_ordinal ^ 1 << draw.draw(st.integers(0, 62))))
    index = draw.draw(st.integers(min_value=0, max_value=len(rows) - 1))
    changed = list(batch.rows)
    changed[index] = flip(changed[index], draw)
    message = refused(dataclasses.replace(batch, rows=tuple(changed)))
    assert message.startswith(f"row {40 + index} in batch 3 of acme/digits version 7")
    refused(batch, key=DataKey(flip(KEY.reveal(), draw)))
    assert open_batch(KEY, CONTEXT, batch) == rows


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "globex"},
        {"dataset": "digit"},
        {"version": 8},
        {"batch": 4},
        {"schema_sha256": b"\x5d" * 32},
        {"tenant": "acm", "dataset": "edigits"},
    ],
    ids=str,
)
def test_another_context_is_refused(change: dict[str, object]) -> None:
    """Another tenant, dataset, version, batch or schema; the last one moves a boundary."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=0)
    assert "commitment" in refused(batch, context=dataclasses.replace(CONTEXT, **change))
    assert open_batch(KEY, CONTEXT, batch) == ROWS


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("swapped", [1, 0, 2, 3]),
        ("reversed", [3, 2, 1, 0]),
        ("duplicated in place", [0, 0, 2, 3]),
        ("duplicated at the end", [0, 1, 2, 3, 3]),
        ("last one missing", [0, 1, 2]),
        ("first one missing", [1, 2, 3]),
        ("all missing", []),
    ],
)
def test_rows_out_of_place_are_refused(name: str, order: list[int]) -> None:
    """As SQL could leave them; the twin is the order they were sealed in."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=10)
    refused(dataclasses.replace(batch, rows=tuple(batch.rows[index] for index in order)))
    assert open_batch(KEY, CONTEXT, dataclasses.replace(batch, rows=tuple(batch.rows[i] for i in range(4)))) == ROWS


def test_first_row_missing_is_refused_even_with_the_ordinal_moved_on() -> None:
    """The number of the first row is part of the derivation."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=10)
    refused(dataclasses.replace(batch, rows=batch.rows[1:], first_ordinal=11))


def test_row_of_another_sealing_of_the_same_batch_is_refused() -> None:
    """A retry's rows do not mix with the first attempt's."""
    one, other = (seal_batch(KEY, CONTEXT, ROWS, first_ordinal=0) for _ in range(2))
    refused(dataclasses.replace(one, rows=(other.rows[0], *one.rows[1:])))


@pytest.mark.parametrize("row", [b"", b"\0" * 15, b"\0" * 16])
def test_row_shorter_than_a_tag_is_refused(row: bytes) -> None:
    """Or as long as one."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=0)
    assert "row 2" in refused(dataclasses.replace(batch, rows=(*batch.rows[:2], row, batch.rows[3])))


@pytest.mark.parametrize("field", ["salt", "commitment"])
def test_header_of_the_wrong_length_is_refused(field: str) -> None:
    """Cut short, extended, or gone."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=0)
    whole = getattr(batch, field)
    for changed in (b"", whole[:-1], whole + b"\0"):
        refused(dataclasses.replace(batch, **{field: changed}))


def test_rows_open_in_their_own_list_and_leave_nothing_in_it_when_they_do_not() -> None:
    """The third row is damaged: the two before it were plain already. The twin is the row as it was."""
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=10)
    header = {"salt": batch.salt, "commitment": batch.commitment, "first_ordinal": 10}
    damaged = list(batch.rows)
    damaged[2] = bytes(len(damaged[2]))
    with pytest.raises(StoredDataUnreadable, match="row 12 "):
        open_rows(KEY, CONTEXT, damaged, **header)
    assert damaged == []
    for name, wrong in (("salt", bytes(24)), ("salt", b""), ("commitment", bytes(32)), ("first_ordinal", 11)):
        rows = list(batch.rows)
        with pytest.raises(StoredDataUnreadable):
            open_rows(KEY, CONTEXT, rows, **(header | {name: wrong}))
        assert rows == []
    rows = list(batch.rows)
    open_rows(KEY, CONTEXT, rows, **header)
    assert rows == ROWS


async def test_rows_opened_in_turns_let_others_run_meanwhile() -> None:
    """A megabyte gives the loop many turns, four short rows one; both are the rows that were sealed."""
    for rows, turns in (([secrets.token_bytes(16 * 1024) for _ in range(64)], 16), (ROWS, 1), ([], 0)):
        batch = seal_batch(KEY, CONTEXT, rows, first_ordinal=10)
        opened, seen = list(batch.rows), 0
        opening = asyncio.ensure_future(
            open_rows_in_turns(KEY, CONTEXT, opened, salt=batch.salt, commitment=batch.commitment, first_ordinal=10)
        )
        while not opening.done():
            await asyncio.sleep(0)
            seen += 1
        assert opened == rows
        assert seen > turns


async def test_rows_opened_in_turns_leave_nothing_when_damaged_or_cancelled() -> None:
    """The last row is damaged, or the reader is gone after the first turn. The twin is the test above."""
    rows = [secrets.token_bytes(16 * 1024) for _ in range(64)]
    batch = seal_batch(KEY, CONTEXT, rows, first_ordinal=10)
    header = {"salt": batch.salt, "commitment": batch.commitment, "first_ordinal": 10}
    damaged = [*batch.rows[:-1], bytes(len(batch.rows[-1]))]
    with pytest.raises(StoredDataUnreadable, match="row 73 "):
        await open_rows_in_turns(KEY, CONTEXT, damaged, **header)
    assert damaged == []

    opened = list(batch.rows)
    opening = asyncio.ensure_future(open_rows_in_turns(KEY, CONTEXT, opened, **header))
    await asyncio.sleep(0)
    assert opened[0] == rows[0]  # under way
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert opened == []


@pytest.mark.parametrize(
    "change", [list.clear, lambda rows: rows.pop(), lambda rows: rows.append(b"forged")], ids=["clear", "pop", "append"]
)
async def test_rows_that_somebody_takes_out_or_puts_in_while_they_open_are_refused(change) -> None:
    """Never a batch of another length; the twin is the list that nobody touched."""
    plain = [secrets.token_bytes(4096) for _ in range(64)]
    batch = seal_batch(KEY, CONTEXT, plain, first_ordinal=0)
    header = {"salt": batch.salt, "commitment": batch.commitment, "first_ordinal": 0}
    rows = list(batch.rows)
    opening = asyncio.create_task(open_rows_in_turns(KEY, CONTEXT, rows, **header))
    await asyncio.sleep(0)
    change(rows)
    with pytest.raises(StoredDataUnreadable, match="changed by somebody else"):
        await opening
    assert rows == []
    rows = list(batch.rows)
    await open_rows_in_turns(KEY, CONTEXT, rows, **header)
    assert rows == plain


def test_row_of_two_gibibytes_is_refused_by_name_both_ways() -> None:
    """A mapping of nothing, so that nobody needs the memory; the cipher itself would say OverflowError."""
    batch = seal_batch(KEY, CONTEXT, [b"a", b"b"], first_ordinal=5)
    header = {"salt": batch.salt, "commitment": batch.commitment, "first_ordinal": 5}
    with mmap.mmap(-1, 2**31) as huge:
        with pytest.raises(InvalidRequest, match="row 6 in batch 3"):
            seal_batch(KEY, CONTEXT, [b"a", huge], first_ordinal=5)
        rows = [batch.rows[0], huge]
        with pytest.raises(StoredDataUnreadable, match="row 6 in batch 3"):
            open_rows(KEY, CONTEXT, rows, **header)
    assert rows == []
    assert open_batch(KEY, CONTEXT, batch) == [b"a", b"b"]


def test_batch_that_is_being_sealed_is_not_copied() -> None:
    """The copy would seal what the rows are by then, under nonces that are used already."""
    sealing = seal_rows(KEY, CONTEXT, [b"a", b"b"], first_ordinal=0)
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="not copied"):
            take(sealing)
    assert len(list(sealing.rows)) == 2


def derive(
    batch: SealedBatch, *, number: int = 3, rows: list[bytes] = ROWS, checked: slice = slice(None)
) -> tuple[bytes, int]:
    """Key and base nonce, written out a second time: the format is fixed here."""

    def prefixed(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    context = prefixed(b"acme", b"digits", (7).to_bytes(8, "big") + number.to_bytes(4, "big"), b"\x5c" * 32)
    bounds = batch.first_ordinal.to_bytes(8, "big") + len(batch.rows).to_bytes(8, "big")
    info = b"casemate/row-batch@v1\0AEAD_AES_256_GCM\0" + batch.salt + prefixed(context, bounds)
    derived = HKDFExpand(algorithm=hashes.SHA512(), length=76, info=info).derive(KEY.reveal())
    assert derived[44:] == batch.commitment
    associated = b"casemate/row@v1\0" + prefixed(context)
    base = int.from_bytes(derived[32:44], "big")
    cipher = AESGCM(derived[:32])
    for index in range(len(batch.rows))[checked]:
        nonce = (base ^ index).to_bytes(12, "big")
        ordinal = (batch.first_ordinal + index).to_bytes(8, "big")
        assert cipher.decrypt(nonce, batch.rows[index], associated + ordinal) == rows[index]
    return derived[:32], base


def repeated_pairs(*, batches: int, rows_each: int, attempts: int) -> tuple[int, int]:
    """How many rows were sealed, and how many of them with a (key, nonce) pair that was used before.

    Every batch is sealed again with other content, as a retry after a fault would. The pairs come from the
    second derivation above, which opens the first, a middle and the last row of every batch with them.
    """
    used: dict[bytes, set[int]] = {}
    sealed = repeated = 0
    for number in range(batches):
        for attempt in range(attempts):
            rows = [b"%d" % attempt] * rows_each
            context = dataclasses.replace(CONTEXT, batch=number)
            batch = seal_batch(KEY, context, rows, first_ordinal=number * rows_each)
            key, base = derive(batch, number=number, rows=rows, checked=slice(None, None, rows_each // 2))
            nonces = {base ^ index for index in range(rows_each)}
            before = used.setdefault(key, set())
            sealed += rows_each
            repeated += rows_each - len(nonces - before)
            before |= nonces
    return sealed, repeated


def test_million_seals_with_retries_of_other_content_share_no_key_and_nonce() -> None:
    """Wall 8. 500 batches of 501 rows, each sealed four times."""
    assert repeated_pairs(batches=500, rows_each=501, attempts=4) == (1_002_000, 0)


def test_count_of_repeated_pairs_sees_a_salt_that_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin: with a broken generator of the system, every retry repeats every pair."""
    monkeypatch.setattr(secrets, "token_bytes", bytes)
    assert repeated_pairs(batches=3, rows_each=11, attempts=4) == (132, 99)


def test_retried_batch_never_reuses_a_key_and_nonce() -> None:
    """Wall 8: a hundred attempts at one batch, and not one pair twice."""
    pairs: Counter[tuple[bytes, int]] = Counter()
    for _ in range(100):
        key, base = derive(seal_batch(KEY, CONTEXT, ROWS, first_ordinal=10))
        pairs.update((key, base ^ index) for index in range(len(ROWS)))
    assert set(pairs.values()) == {1}
    assert len({key for key, _ in pairs}) == 100


@pytest.mark.parametrize("first_ordinal", [-1, 2**63 - 4])
def test_ordinals_outside_the_database_are_refused(first_ordinal: int) -> None:
    """The twin is the last that fits."""
    for seal in (seal_batch, seal_rows):
        with pytest.raises(ValueError, match="out of range"):
            seal(KEY, CONTEXT, ROWS, first_ordinal=first_ordinal)
    batch = seal_batch(KEY, CONTEXT, ROWS, first_ordinal=2**63 - 5)
    refused(dataclasses.replace(batch, first_ordinal=first_ordinal))
    assert open_batch(KEY, CONTEXT, batch) == ROWS


@pytest.mark.parametrize("change", [{"version": -1}, {"batch": 2**32}, {"schema_sha256": b""}], ids=str)
def test_context_out_of_range_is_refused(change: dict[str, object]) -> None:
    """The twin is `CONTEXT`."""
    with pytest.raises(ValueError, match=r"schema_sha256|out of range"):
        dataclasses.replace(CONTEXT, **change)
