"""The witness: it cosigns what extends the last checkpoint, and nothing else, whatever its own database says."""

from __future__ import annotations

import pytest

from casemate.auth.v1 import witness_service_pb2 as messages
from casemate.auth.v1.witness_service_pb2_grpc import WitnessServiceStub
from casemate.clock import SystemClock
from casemate.errors import Conflict, InvalidRequest, PermissionDenied, Reason, StoredDataUnreadable
from casemate.signing import merkle
from casemate.signing.checkpoint import (
    ED25519_COSIGNATURE,
    parse_verification_key,
    sign_checkpoint,
    verification_key,
    verify_checkpoint,
)
from casemate.signing.cosignature import verify_cosignature, with_cosignature
from casemate.signing.keys import SigningKey
from services.auth.store.table import Alarms
from services.auth.store.witness import WitnessStore
from services.auth.witness import Witness, witness_key
from tests.services.auth.world import failure, ours

ORIGIN, NAME = "datasets.casemate.internal/log", "auth.casemate.internal/witness"
LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(20)]
FORKED = [*LEAVES[:4], *LEAVES[5:]]
LOG = SigningKey.generate()


def note_of(size: int, leaves=LEAVES, key=LOG, origin=ORIGIN) -> str:
    return sign_checkpoint(origin, size, merkle.root(leaves[:size]), key)


def request_of(size: int, *, old: int = 0, leaves=LEAVES, key=LOG, **changes) -> messages.CosignCheckpointRequest:
    fields = {
        "checkpoint": note_of(size, leaves, key),
        "old_size": old,
        "consistency_proof": merkle.consistency_proof(leaves[:size], old) if 0 < old <= size else [],
        "log_key": verification_key(ORIGIN, key.public),
    }
    return messages.CosignCheckpointRequest(**{**fields, **changes})


def ask(caller, request):
    return ours(WitnessServiceStub(caller.channel).CosignCheckpoint(request))


async def test_checkpoints_that_extend_one_another_are_cosigned_under_one_key(world):
    datasets = world.service("datasets")
    keys = set()
    for old, size in ((0, 3), (3, 8), (8, 8), (8, 20)):
        answer = await ask(datasets, request_of(size, old=old))
        name, key = parse_verification_key(answer.witness_key, ED25519_COSIGNATURE)
        noted = verify_checkpoint(with_cosignature(note_of(size), answer.cosignature), ORIGIN, LOG.public)
        assert verify_cosignature(noted, name=NAME, public_key=key).at <= SystemClock().now()
        assert (name, answer.known_size) == (NAME, size)
        keys.add(answer.witness_key)
    assert len(keys) == 1


async def test_another_old_size_than_the_known_one_is_told_and_not_signed(world):
    datasets = world.service("datasets")
    await ask(datasets, request_of(8))
    for old in (0, 3, 9):
        answer = await ask(datasets, request_of(12, old=old))
        assert (answer.cosignature, answer.known_size) == ("", 8)
    assert (await ask(datasets, request_of(12, old=8))).cosignature


async def test_a_rewritten_or_shorter_history_is_equivocation_and_alarms(world):
    datasets = world.service("datasets")
    await ask(datasets, request_of(8))
    refused = (
        request_of(12, old=8, leaves=FORKED),
        request_of(8, old=8, leaves=FORKED),
        request_of(5, old=8, consistency_proof=[]),
        request_of(12, old=8, consistency_proof=[]),
    )
    for number, request in enumerate(refused, 1):
        error = await failure(ask(datasets, request))
        assert isinstance(error, Conflict)
        assert error.reason is Reason.EQUIVOCATION
        assert world.alarms == number
    assert (await ask(datasets, request_of(12, old=8))).known_size == 12


async def test_only_the_logs_first_key_is_taken(world):
    datasets = world.service("datasets")
    await ask(datasets, request_of(3))
    other = SigningKey.generate()
    for request in (
        request_of(8, old=3, key=other),
        request_of(8, old=3, log_key=verification_key(ORIGIN, other.public)),
        request_of(8, old=3, log_key=verification_key("datasets.other/log", LOG.public)),
        request_of(8, old=3, log_key=""),
        request_of(8, old=3, checkpoint=note_of(8, origin="datasets.other/log")),
        request_of(8, old=3, checkpoint=""),
        request_of(8, old=3, consistency_proof=[b""] * 129),
        request_of(0, old=3, consistency_proof=[]),
    ):
        assert isinstance(await failure(ask(datasets, request)), InvalidRequest)
    assert (await ask(datasets, request_of(8, old=3))).known_size == 8


async def test_datasets_alone_is_answered(world):
    for caller in (world.service("inference"), world.client("acme", "caller")):
        assert isinstance(await failure(ask(caller, request_of(3))), PermissionDenied)
    assert (await ask(world.service("datasets"), request_of(3))).cosignature


@pytest.mark.parametrize(
    "change",
    ["size = 3", "root = '\\x00'", "log_key = 'x'", "origin = origin, mac = '\\x00'"],
)
async def test_a_row_that_was_changed_is_refused_and_not_taken_for_absent(world, change):
    datasets = world.service("datasets")
    await ask(datasets, request_of(8))
    await world.sql(f"UPDATE log_witness SET {change}")  # noqa: S608  # the cases above
    assert isinstance(await failure(ask(datasets, request_of(12, old=8))), StoredDataUnreadable)
    assert world.alarms == 1


@pytest.mark.parametrize("undo", ["DELETE FROM log_witness", "old row"])
async def test_a_row_that_was_put_back_or_taken_away_is_noticed_by_who_cosigned_more(world, undo):
    datasets = world.service("datasets")
    await ask(datasets, request_of(5))
    [old] = await world.sql("SELECT size, root, cosigned_at, mac FROM log_witness")
    await ask(datasets, request_of(8, old=5))
    if undo == "old row":
        await world.sql("UPDATE log_witness SET size = $1, root = $2, cosigned_at = $3, mac = $4", *old)
    else:
        await world.sql(undo)
    known = 5 if undo == "old row" else 0
    assert isinstance(await failure(ask(datasets, request_of(12, old=known, leaves=FORKED))), StoredDataUnreadable)
    assert world.alarms == 1


async def test_replicas_have_one_key_and_one_memory(shelf):
    alarms = Alarms(count=lambda: None)

    def replica() -> Witness:
        return Witness(
            store=WitnessStore(pool=shelf.pool, key=shelf.key, alarms=alarms),
            key=witness_key(shelf.key),
            name=NAME,
            origin=ORIGIN,
            alarms=alarms,
            clock=SystemClock(),
        )

    first, second = replica(), replica()
    key = verification_key(ORIGIN, LOG.public)
    assert first.verification_key == second.verification_key
    await first.cosign(note_of(5), old_size=0, proof=[], log_key=key)
    assert (await second.cosign(note_of(8), old_size=0, proof=[], log_key=key)).known_size == 5
    with pytest.raises(Conflict):
        await second.cosign(note_of(8, FORKED), old_size=5, proof=[], log_key=key)
    proof = merkle.consistency_proof(LEAVES[:8], 5)
    assert (await second.cosign(note_of(8), old_size=5, proof=proof, log_key=key)).cosignature
