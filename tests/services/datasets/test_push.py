"""Pushing: what was not signed does not get in, what got in once is in once."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from casemate.errors import (
    Conflict,
    DigestMismatch,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Reason,
    SignatureInvalid,
)
from casemate.signing.keys import SigningKey
from services.datasets import push
from tests.services.datasets.pushing import OTHER_BYTES, forged, nothing_changes, unsigned
from tests.services.datasets.world import (
    FINISH,
    RECORDS,
    chunk_messages,
    manifest_message,
    manifest_of,
    our_errors,
)


async def test_a_signed_dataset_becomes_readable_in_one_step(world):
    trainer = world.actor()
    manifest = manifest_of()

    answers = await trainer.push([manifest_message(world.signed(manifest)), *chunk_messages(), FINISH])

    assert [answer.next_offset for answer in answers] == [0, 12, 20, 40, 40]
    promoted = answers[-1].promoted
    assert (promoted.version, promoted.root, promoted.rows) == (1, manifest.root, 6)
    description, batches = await trainer.pull()
    assert [record for batch in batches for record in batch.records] == RECORDS
    assert description.signer_key_id == world.supplier.public.key_id


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-sha256"])
async def test_every_algorithm_of_a_registered_key_is_taken(world, algorithm):
    key = SigningKey.generate(algorithm)
    world.signers.append(world.signer(key))
    world.tell()

    assert (await world.actor().push_all(world.signed(key=key))).version == 1


async def test_json_lines_are_taken_too(world):
    chunks = (b'{"number":1,"name":"one"}\n', b'{"name":"two","number":2}\n')

    promoted = await world.actor().push_all(world.signed(manifest_of(chunks, format="jsonl")), chunks)

    assert promoted.rows == 2


async def test_the_checks_of_an_upload_are_made_in_a_thread_that_serves_nobody(world, monkeypatch):
    """Those of four thousand columns take 35 milliseconds, in which the loop would answer no other caller."""
    made, threads = push.record_check, []

    def noted(encoding, schema):
        threads.append(threading.current_thread())
        return made(encoding, schema)

    monkeypatch.setattr(push, "record_check", noted)
    assert (await world.actor().push_all(world.signed())).version == 1
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread(), "the service runs on this test's loop"


@pytest.mark.parametrize("damage", [unsigned, forged])
async def test_a_manifest_without_a_valid_signature_is_refused_and_leaves_nothing(world, damage):
    trainer = world.actor()
    envelope = world.signed()

    async with nothing_changes(world):
        with pytest.raises(SignatureInvalid):
            await trainer.push([manifest_message(damage(envelope))])
    assert (await trainer.push_all(envelope)).version == 1


async def test_a_key_that_may_not_sign_for_the_tenant_is_refused(world):
    trainer = world.actor()
    stranger, publisher, foreigner, late = (SigningKey.generate() for _ in range(4))
    past = datetime.now(UTC) - timedelta(days=1)
    world.signers += [
        world.signer(publisher, role="publisher"),
        world.signer(foreigner, tenant="globex"),
        world.signer(late, valid_until=past),
    ]
    world.tell()

    async with nothing_changes(world):
        for key in (stranger, publisher, foreigner, late):
            with pytest.raises(PermissionDenied) as caught:
                await trainer.push([manifest_message(world.signed(key=key))])
            assert caught.value.reason is Reason.SIGNER_UNTRUSTED
    assert (await trainer.push_all(world.signed())).version == 1


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "letters"},
        {"tenant": "globex"},
        {"audience": "inference.casemate.internal"},
        {"audience": "datasets.other.example"},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"version": 2, "previous_root": bytes(32)},
    ],
    ids=["dataset", "tenant", "service", "deployment", "expiry", "version"],
)
async def test_a_manifest_about_something_else_is_refused_and_leaves_nothing(world, change):
    trainer = world.actor()
    async with nothing_changes(world):
        with pytest.raises(InvalidRequest) as caught:
            await trainer.push([manifest_message(world.signed(manifest_of(**change)))])

    assert caught.value.reason is Reason.MANIFEST_INVALID
    assert (await trainer.push_all(world.signed())).version == 1


async def test_one_changed_byte_is_refused_and_the_right_bytes_are_still_taken(world):
    trainer = world.actor()
    envelope = world.signed()

    with pytest.raises(DigestMismatch):
        await trainer.push([manifest_message(envelope), *chunk_messages([OTHER_BYTES])])

    async with world.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM sealed_rows") == 0
    assert (await trainer.push_all(envelope)).rows == 6


async def test_an_upload_goes_on_where_it_was_cut_off(world):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push([manifest_message(envelope), *chunk_messages()[:2]])

    answers = await trainer.push([manifest_message(envelope), chunk_messages()[2], FINISH])

    assert answers[0].next_offset == 20
    assert answers[-1].promoted.rows == 6
    _, batches = await trainer.pull()
    assert [record for batch in batches for record in batch.records] == RECORDS


async def test_an_upload_goes_on_after_the_service_restarted(stopped_world):
    envelope = stopped_world.signed()
    async with stopped_world.serve() as world:
        await world.actor().push([manifest_message(envelope), *chunk_messages()[:1]])

    async with stopped_world.serve() as world:
        answers = await world.actor().push([manifest_message(envelope), *chunk_messages()[1:], FINISH])
        _, batches = await world.actor().pull()

    assert answers[0].next_offset == 12
    assert [record for batch in batches for record in batch.records] == RECORDS


async def test_the_same_chunk_again_is_acknowledged_and_stored_once(world):
    trainer = world.actor()
    first, second, third = chunk_messages()

    answers = await trainer.push([manifest_message(world.signed()), first, second, first, second, third, first, FINISH])

    assert [answer.next_offset for answer in answers] == [0, 12, 20, 20, 20, 40, 40, 40]
    async with world.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM sealed_rows") == 6


async def test_a_lost_last_answer_is_made_up_for_by_asking_again(world):
    trainer = world.actor()
    envelope = world.signed()
    first = await trainer.push_all(envelope)

    answers = await trainer.push([manifest_message(envelope), chunk_messages()[0], FINISH])

    assert [answer.next_offset for answer in answers] == [40, 40, 40]
    assert answers[-1].promoted == first


async def test_other_bytes_at_a_stored_offset_quarantine_the_upload(world):
    trainer = world.actor()
    envelope = world.signed()

    with pytest.raises(Conflict) as caught:
        await trainer.push([manifest_message(envelope), *chunk_messages()[:1], *chunk_messages([OTHER_BYTES])])

    assert caught.value.reason is Reason.EQUIVOCATION
    with pytest.raises(Conflict) as caught:
        await trainer.push([manifest_message(envelope)])
    assert caught.value.reason is Reason.EQUIVOCATION
    with pytest.raises(NotFound):
        await trainer.version()
    async with world.sql() as sql:
        assert await sql.fetchval("SELECT state FROM uploads") == "quarantined"
        entry = json.loads(await sql.fetchval("SELECT entry FROM log_entries ORDER BY index DESC LIMIT 1"))
        assert (entry["kind"], entry["body"]["why"]) == ("quarantine", "equivocation")
    assert (await trainer.push_all(world.signed())).version == 1, "another upload of the version may go on"
    assert (await trainer.version(version=1)).rows == 6


async def test_other_bytes_for_a_promoted_version_are_refused_and_change_nothing(world):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push_all(envelope)

    async with nothing_changes(world):
        with pytest.raises(Conflict) as caught:
            await trainer.push([manifest_message(envelope), *chunk_messages([OTHER_BYTES])])

    assert caught.value.reason is Reason.EQUIVOCATION
    assert (await trainer.version()).rows == 6


@pytest.mark.parametrize("place", [0, 1], ids=["where the other stream began", "further on"])
@pytest.mark.parametrize("bad", [False, True], ids=["the same bytes", "other bytes"])
async def test_other_bytes_where_a_second_stream_stored_some_quarantine_the_upload(world, place, bad):
    trainer = world.actor()
    envelope = world.signed()
    late = trainer.datasets.PushDataset(metadata=trainer.metadata)
    await late.write(manifest_message(envelope))
    assert (await late.read()).next_offset == 0
    await trainer.push([manifest_message(envelope), *chunk_messages()[:2]])

    again = chunk_messages()[place]
    again.chunk.data = again.chunk.data.upper() if bad else again.chunk.data
    await late.write(again)

    async with world.sql() as sql:
        if not bad:
            assert (await late.read()).next_offset == 20
            late.cancel()
            assert await sql.fetchval("SELECT state FROM uploads") == "receiving"
            return
        with pytest.raises(Conflict) as caught, our_errors():
            await late.read()
        assert caught.value.reason is Reason.EQUIVOCATION
        assert await sql.fetchval("SELECT state FROM uploads") == "quarantined"
        entry = json.loads(await sql.fetchval("SELECT entry FROM log_entries ORDER BY index DESC LIMIT 1"))
    assert (entry["kind"], entry["body"]["why"]) == ("quarantine", "equivocation")
    with pytest.raises(Conflict):
        await trainer.push([manifest_message(envelope), *chunk_messages()[2:], FINISH])
