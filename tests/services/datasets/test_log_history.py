"""A log that was rewritten, forked or put back, against what somebody kept of it."""

from __future__ import annotations

import pytest

from casemate.client.saved_log import HistoryDiffers, LogKeys, SavedLog, verify_file
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import OutOfRange, PermissionDenied, StoredDataUnreadable
from casemate.signing import merkle, tiles
from casemate.signing.checkpoint import sign_checkpoint, verify_checkpoint
from casemate.signing.keys import SigningKey
from tests.services.datasets.logs import (
    ALARMS,
    ORIGIN,
    append,
    copied,
    look,
    receipt,
    rewritten,
    superuser,
    unseen,
)
from tests.services.datasets.world import our_errors


async def test_watching_takes_in_what_was_appended(world):
    auditor, auth = world.actor(), world.service("auth")
    kept = await look(auditor, unseen(world))
    assert kept.size == 0
    for number in range(5):
        await append(auth, number)
        kept = await look(auditor, kept)
    assert kept.size == 5
    assert (await look(auditor, kept)).size == 5


async def test_a_rewrite_of_every_row_by_a_superuser_is_refused_and_alarms(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    await rewritten(world, sign=False)

    with pytest.raises(StoredDataUnreadable):
        await look(auditor, kept)
    with pytest.raises(StoredDataUnreadable):
        await append(auth, 5)
    assert world.running.metrics.value(ALARMS) >= 2


@pytest.mark.parametrize("more", [0, 3])
async def test_history_rewritten_and_signed_again_with_all_keys_is_caught_by_whoever_kept_a_checkpoint(world, more):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))
    old_receipt = await receipt(auditor, 4)

    await rewritten(world, sign=True)
    for number in range(more):
        await append(auth, 10 + number)

    assert (await look(auditor, unseen(world))).size == 5 + more, "nobody sees it who kept nothing"
    with pytest.raises(HistoryDiffers) as caught:
        await look(auditor, kept)
    for note in caught.value.evidence:
        verify_checkpoint(note, ORIGIN, world.running.log_key)
    fresh = await look(auditor, unseen(world))
    with pytest.raises(HistoryDiffers):
        fresh.require_same_history(verify_file(old_receipt, fresh.keys).checkpoint)
    kept.require_same_history(verify_file(old_receipt, kept.keys).checkpoint)


async def test_a_fork_by_an_old_copy_is_caught_at_the_same_size_and_offline(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(3):
        await append(auth, number)
    await copied(world, back=False)
    await append(auth, 3)
    kept = await look(auditor, unseen(world))
    true_receipt = await receipt(auditor, 3)

    await copied(world, back=True)
    with pytest.raises(HistoryDiffers, match="went back"):
        await look(auditor, kept)
    await append(auth, 4)
    forked_receipt = await receipt(auditor, 3)
    other = await look(auditor, unseen(world))

    assert other.size == kept.size == 4
    with pytest.raises(HistoryDiffers) as caught:
        await look(auditor, kept)
    first, second = (verify_checkpoint(note, ORIGIN, world.running.log_key) for note in caught.value.evidence)
    assert (first.size, first.root != second.root) == (second.size, True)
    kept.require_same_history(verify_file(true_receipt, kept.keys).checkpoint)
    with pytest.raises(HistoryDiffers):
        kept.require_same_history(verify_file(forked_receipt, kept.keys).checkpoint)


async def test_what_is_kept_is_read_back_and_refused_when_it_was_changed(world, tmp_path):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(3):
        await append(auth, number)
    kept = await look(auditor, unseen(world))
    kept.save(tmp_path)
    assert SavedLog.load(tmp_path) == kept
    assert SavedLog.load(tmp_path / "nothing") is None

    leaves = (tmp_path / "leaves").read_bytes()
    (tmp_path / "leaves").write_bytes(leaves[:-1] + bytes([leaves[-1] ^ 1]))
    with pytest.raises(StoredDataUnreadable):
        SavedLog.load(tmp_path)


@pytest.mark.parametrize("size", [1, 2, 7, 8])
async def test_any_two_sizes_have_a_consistency_proof(world, size):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(8):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    with our_errors():
        request = messages.GetConsistencyProofRequest(first_size=size)
        answer = await auditor.log.GetConsistencyProof(request, metadata=auditor.metadata)

    assert answer.second_size == 8
    assert list(answer.consistency_proof) == merkle.consistency_proof(kept.leaves, size)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 0), (1, 3), (2, 1), (2**63, 0), (1, 2**64 - 1)])
async def test_there_is_no_proof_for_sizes_that_the_log_does_not_have(world, first, second):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(2):
        await append(auth, number)
    request = messages.GetConsistencyProofRequest(first_size=first, second_size=second)
    with pytest.raises(OutOfRange), our_errors():
        await auditor.log.GetConsistencyProof(request, metadata=auditor.metadata)


async def test_a_tile_holds_the_leaves_and_entries_come_in_order(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    kept = await look(auditor, unseen(world))

    tile = await auditor.log.GetTile(messages.GetTileRequest(), metadata=auditor.metadata)
    tail = await auditor.log.ListEntries(messages.ListEntriesRequest(first=3), metadata=auditor.metadata)

    assert tile.hashes == b"".join(kept.leaves)
    assert [merkle.leaf_hash(entry) for entry in tail.entries] == list(kept.leaves[3:])
    for call, request in (
        (auditor.log.GetTile, messages.GetTileRequest(level=1)),
        (auditor.log.GetTile, messages.GetTileRequest(level=99, index=2**63)),
        (auditor.log.ListEntries, messages.ListEntriesRequest(first=5)),
    ):
        with pytest.raises(OutOfRange), our_errors():
            await call(request, metadata=auditor.metadata)


async def test_the_log_is_proven_with_its_scope_alone(world):
    await append(world.service("auth"), 0)
    stranger, auditor = world.actor(scopes="datasets.read"), world.actor(scopes="log.read")
    for name, request in (
        ("GetReceipt", messages.GetReceiptRequest()),
        ("GetConsistencyProof", messages.GetConsistencyProofRequest(first_size=1)),
        ("GetTile", messages.GetTileRequest()),
        ("ListEntries", messages.ListEntriesRequest()),
    ):
        with pytest.raises(PermissionDenied), our_errors():
            await getattr(stranger.log, name)(request, metadata=stranger.metadata)
        await getattr(auditor.log, name)(request, metadata=auditor.metadata)


async def test_a_node_that_was_edited_is_data_loss(world):
    auditor, auth = world.actor(), world.service("auth")
    for number in range(5):
        await append(auth, number)
    await receipt(auditor, 4)
    async with superuser(world) as sql:
        await sql.execute("UPDATE log_nodes SET hash = sha256('x') WHERE level = 2")
    with pytest.raises(StoredDataUnreadable):
        await receipt(auditor, 4)


async def test_a_log_from_before_its_nodes_gets_them_by_the_migration(stopped_world):
    async with stopped_world.serve() as world:
        for number in range(13):
            await append(world.service("auth"), number)
        async with superuser(world) as sql:
            grown = await sql.fetch("SELECT level, index, hash FROM log_nodes ORDER BY level, index")
            await sql.execute(
                "DROP TABLE log_nodes, log_cosigned, labels, trained_models, trained_models_head, retentions"
            )
            await sql.execute("DROP INDEX uploads_unfinished")
            await sql.execute("DELETE FROM schema_migrations WHERE number >= 3")
    async with stopped_world.serve() as world:
        async with world.sql() as sql:
            assert await sql.fetch("SELECT level, index, hash FROM log_nodes ORDER BY level, index") == grown
        assert (await look(world.actor(), unseen(world))).size == 13


def test_two_checkpoints_of_one_size_by_one_key_are_a_fork(tmp_path):
    key = SigningKey.generate()
    leaves = tuple(merkle.leaf_hash(bytes([number])) for number in range(4))
    keys = LogKeys(ORIGIN, key.public)
    genuine = verify_checkpoint(sign_checkpoint(ORIGIN, 4, merkle.root(leaves), key), ORIGIN, key.public)
    forked = verify_checkpoint(sign_checkpoint(ORIGIN, 4, merkle.root(leaves[::-1]), key), ORIGIN, key.public)
    kept = SavedLog(keys=keys, checkpoint=genuine, leaves=leaves)
    kept.require_same_history(genuine)
    with pytest.raises(HistoryDiffers):
        kept.require_same_history(forked)


def test_a_proof_in_a_large_log_takes_two_reads_of_few_rows():
    spans = [*tiles.inclusion_ranges(123_456, 1_000_000), *tiles.consistency_ranges(1_000_000, 1_000_000)]
    assert len(tiles.nodes_of([*spans, (0, 1_000_000)])) < 40
