"""A log and its witness: what is cosigned, what is not, and what is then no longer given out."""

from __future__ import annotations

import pytest

from casemate.cli.log import _look
from casemate.client.saved_log import HistoryDiffers, LogKeys, SavedLog, verify_file
from casemate.datasets.v1 import log_service_pb2 as messages
from casemate.errors import CasemateError, OutOfRange, StoredDataUnreadable
from casemate.signing.checkpoint import verify_checkpoint
from casemate.signing.cosignature import verify_cosignature
from casemate.signing.keys import SigningKey
from casemate.signing.log_proof import verify_log_proof
from tests.services.datasets.logs import (
    ALARMS,
    ORIGIN,
    SEEN_AT,
    WITNESS,
    OneWitness,
    append,
    look,
    receipt,
    rewritten,
    superuser,
)
from tests.services.datasets.world import our_errors


async def test_checkpoints_and_receipts_carry_the_witness(stopped_world):
    stopped_world.witness = witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        for number in range(3):
            await append(auth, number)
            with our_errors():
                shown = await auditor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=auditor.metadata)
        found = verify_log_proof(await receipt(auditor, 1), origin=ORIGIN, public_key=world.running.log_key)

        for checkpoint in (verify_checkpoint(shown.checkpoint, ORIGIN, world.running.log_key), found.checkpoint):
            assert verify_cosignature(checkpoint, name=WITNESS, public_key=witness.key.public).at == SEEN_AT
        keys = LogKeys.parse(shown.log_key, [shown.witness_key])
        assert (await look(auditor, SavedLog(keys=keys))).size == 3
        assert witness.asked == 3, "each head is cosigned once"


async def test_a_service_that_starts_again_learns_where_the_witness_stands(stopped_world):
    stopped_world.witness = witness = OneWitness(lambda: stopped_world.running.log_key)
    for _ in range(2):
        async with stopped_world.serve() as world:
            await append(world.service("auth"), 0)
            found = verify_log_proof(await receipt(world.actor(), 0), origin=ORIGIN, public_key=world.running.log_key)
            verify_cosignature(found.checkpoint, name=WITNESS, public_key=witness.key.public)
    assert witness.size == 2


async def test_a_rewritten_history_is_not_cosigned_and_alarms(stopped_world):
    stopped_world.witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        for number in range(5):
            await append(auth, number)
        await receipt(auditor, 0)

        await rewritten(world, sign=True)

        with pytest.raises(StoredDataUnreadable):
            await receipt(auditor, 0)
        assert world.running.metrics.value(ALARMS) == 1


async def test_a_log_that_its_witness_saw_longer_takes_no_entry_whose_index_was_given_out_before(
    stopped_world, tmp_path
):
    stopped_world.witness = OneWitness(lambda: stopped_world.running.log_key)
    async with stopped_world.serve() as world:
        auditor, auth = world.actor(), world.service("auth")
        await append(auth, 0)
        await receipt(auditor, 0)
        async with superuser(world) as sql:
            old = await sql.fetchrow("SELECT size, frontier, mac FROM log_head")
            await append(auth, 1)
            with our_errors():
                shown = await auditor.log.GetCheckpoint(messages.GetCheckpointRequest(), metadata=auditor.metadata)
            keys = LogKeys.parse(shown.log_key, [shown.witness_key])
            (await look(auditor, SavedLog(keys=keys))).save(tmp_path)
            new = await sql.fetchrow("SELECT size, frontier, mac FROM log_head")
            entry = await sql.fetchrow("SELECT * FROM log_entries WHERE index = 1")
            nodes = await sql.fetch("DELETE FROM log_nodes WHERE level > 0 RETURNING level, index, hash")
            await sql.execute("DELETE FROM log_entries WHERE index = 1")
            put = "UPDATE log_head SET size = $1, frontier = $2, mac = $3"
            await sql.execute(put, *old.values())

            with pytest.raises(StoredDataUnreadable) as caught:
                await receipt(auditor, 0)
            with pytest.raises(StoredDataUnreadable):
                await append(auth, 2)
            assert await sql.fetchval("SELECT size FROM log_head") == 1
            with pytest.raises(HistoryDiffers) as found:
                _look(_Refusing(caught.value), tmp_path, None, ())
            assert found.value.evidence == ((tmp_path / "checkpoint").read_text(),)

            places = ", ".join(f"${place}" for place in range(1, len(entry) + 1))
            await sql.execute(f"INSERT INTO log_entries VALUES ({places})", *entry.values())  # noqa: S608  # places alone
            await sql.executemany("INSERT INTO log_nodes (level, index, hash) VALUES ($1, $2, $3)", nodes)
            await sql.execute(put, *new.values())
        await receipt(auditor, 1)
        await append(auth, 2)


class _Refusing:
    """Reads a log whose service answers by this error."""

    def __init__(self, error: CasemateError) -> None:
        self._error = error

    def checkpoint(self):
        raise self._error


async def test_a_witness_that_does_not_answer_holds_nothing_up_and_is_missed(stopped_world):
    class Absent:
        async def cosign(self, **_):
            raise OutOfRange("not there")

    stopped_world.witness = Absent()
    async with stopped_world.serve() as world:
        await append(world.service("auth"), 0)
        keys = LogKeys(ORIGIN, world.running.log_key)
        text = await receipt(world.actor(), 0)
        assert verify_file(text, keys)
        with pytest.raises(CasemateError):
            verify_file(text, LogKeys(ORIGIN, keys.log, ((WITNESS, SigningKey.generate().public),)))
