"""Pushing: what was not signed does not get in, what got in once is in once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import (
    AlreadyExists,
    CasemateError,
    Conflict,
    DigestMismatch,
    InvalidRequest,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Reason,
    SignatureInvalid,
    Unauthenticated,
)
from casemate.signing.keys import SigningKey
from tests.services.datasets.world import (
    CHUNKS,
    FINISH,
    PROMOTIONS,
    RECORDS,
    Actor,
    chunk_messages,
    manifest_message,
    manifest_of,
    our_errors,
)

OTHER_BYTES = b"1,one\n2,twO\n"
NEVER = b"3,three\n4,four\n"


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


def _unsigned(envelope: bytes) -> bytes:
    return json.dumps({**json.loads(envelope), "signatures": []}).encode()


def _forged(envelope: bytes) -> bytes:
    parsed = json.loads(envelope)
    parsed["signatures"][0]["sig"] = "A" * 86 + "=="
    return json.dumps(parsed).encode()


@pytest.mark.parametrize("damage", [_unsigned, _forged])
async def test_a_manifest_without_a_valid_signature_is_refused_and_leaves_nothing(world, damage):
    trainer = world.actor()
    envelope = world.signed()

    with pytest.raises(SignatureInvalid):
        await trainer.push([manifest_message(damage(envelope))])

    async with world.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM uploads") == 0
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
async def test_a_manifest_about_something_else_is_refused(world, change):
    with pytest.raises(InvalidRequest) as caught:
        await world.actor().push([manifest_message(world.signed(manifest_of(**change)))])

    assert caught.value.reason is Reason.MANIFEST_INVALID


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
        assert b'"kind":"quarantine"' in await sql.fetchval("SELECT entry FROM log_entries ORDER BY index DESC LIMIT 1")
    assert (await trainer.push_all(world.signed())).version == 1, "another upload of the version may go on"
    assert (await trainer.version(version=1)).rows == 6


async def test_other_bytes_for_a_promoted_version_are_refused_and_change_nothing(world):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push_all(envelope)

    with pytest.raises(Conflict) as caught:
        await trainer.push([manifest_message(envelope), *chunk_messages([OTHER_BYTES])])

    assert caught.value.reason is Reason.EQUIVOCATION
    assert (await trainer.version()).rows == 6


async def test_another_manifest_under_the_same_upload_id_is_equivocation(world):
    trainer = world.actor()
    manifest = manifest_of()
    await trainer.push([manifest_message(world.signed(manifest)), *chunk_messages()[:1]])

    other = replace(manifest, expires_at=manifest.expires_at + timedelta(hours=1))
    with pytest.raises(Conflict) as caught:
        await trainer.push([manifest_message(world.signed(other))])

    assert caught.value.reason is Reason.EQUIVOCATION


@pytest.mark.parametrize(
    "steps",
    [
        chunk_messages()[1:2],
        [messages.PushDatasetRequest(chunk=messages.Chunk(offset=5, data=NEVER))],
        [messages.PushDatasetRequest(chunk=messages.Chunk(offset=2**64 - 1, data=NEVER))],
        [*chunk_messages(), messages.PushDatasetRequest(chunk=messages.Chunk(offset=40, data=NEVER))],
        [FINISH],
        [*chunk_messages()[:2], FINISH],
    ],
    ids=["gap", "no boundary", "far out", "trailing", "finish at once", "finish early"],
)
async def test_an_offset_that_is_not_wanted_is_out_of_range_and_harms_nothing(world, steps):
    trainer = world.actor()
    envelope = world.signed()

    with pytest.raises(OutOfRange) as caught:
        await trainer.push([manifest_message(envelope), *steps])

    assert caught.value.reason is Reason.WRONG_OFFSET
    assert (await trainer.push_all(envelope)).rows == 6


async def test_the_first_record_that_breaks_the_schema_is_named(world):
    chunks = (b"1,one\n2,two\n", b"3,three\n-4,four\nfive,five\n")

    with pytest.raises(InvalidRequest) as caught:
        await world.actor().push_all(world.signed(manifest_of(chunks)), chunks)

    assert caught.value.reason is Reason.RECORD_INVALID
    assert [violation.field for violation in caught.value.violations] == ["records[3].number"]


async def test_a_manifest_that_miscounts_its_rows_is_refused(world):
    honest = manifest_of()
    chunks = (replace(honest.chunks[0], rows=1), *honest.chunks[1:])
    trainer = world.actor()

    with pytest.raises(InvalidRequest) as caught:
        await trainer.push([manifest_message(world.signed(replace(honest, chunks=chunks, rows=5))), *chunk_messages()])

    assert caught.value.reason is Reason.MANIFEST_INVALID


async def test_a_signer_revoked_during_the_upload_is_refused_at_the_end(world):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push([manifest_message(envelope), *chunk_messages()])
    call = trainer.datasets.PushDataset(metadata=trainer.metadata)
    await call.write(manifest_message(envelope))
    assert (await call.read()).next_offset == 40
    world.signers = [world.signer(world.supplier, compromised_since=datetime.now(UTC) - timedelta(seconds=1))]
    world.tell()

    await call.write(FINISH)
    with pytest.raises(PermissionDenied) as caught, our_errors():
        await call.read()

    assert caught.value.reason is Reason.SIGNER_UNTRUSTED
    async with world.sql() as sql:
        assert await sql.fetchval("SELECT state FROM uploads") == "receiving"
        assert await sql.fetchval(PROMOTIONS) == 0
    world.signers = [world.signer(world.supplier)]
    world.tell()
    assert (await trainer.push([manifest_message(envelope), FINISH]))[-1].promoted.version == 1


async def test_a_manifest_that_expires_during_the_upload_is_refused_at_the_end(world):
    trainer = world.actor()
    soon = datetime.now(UTC) + timedelta(seconds=60)
    call = trainer.datasets.PushDataset(metadata=trainer.metadata)
    for message in (manifest_message(world.signed(manifest_of(expires_at=soon))), *chunk_messages()):
        await call.write(message)
        await call.read()
    world.clock.shift = timedelta(seconds=90)

    await call.write(FINISH)

    with pytest.raises(InvalidRequest) as caught, our_errors():
        await call.read()
    assert caught.value.reason is Reason.MANIFEST_INVALID
    with pytest.raises(NotFound):
        await trainer.version()
    later = soon + timedelta(seconds=60)
    assert (await trainer.push_all(world.signed(manifest_of(expires_at=later)))).version == 1


async def test_two_writers_of_one_upload_store_it_once(world):
    envelope = world.signed()
    writers = [world.actor("one"), world.actor("two")]

    results = await asyncio.gather(*(writer.push_all(envelope) for writer in writers))

    assert results[0] == results[1]
    async with world.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM sealed_rows") == 6
        assert await sql.fetchval(PROMOTIONS) == 1


async def test_of_two_uploads_of_one_version_one_is_promoted(world):
    trainer = world.actor()
    early, late = world.signed(), world.signed()
    await trainer.push([manifest_message(late), *chunk_messages()])
    await trainer.push_all(early)

    with pytest.raises(AlreadyExists):
        await trainer.push([manifest_message(late), FINISH])
    with pytest.raises(AlreadyExists):
        await trainer.push([manifest_message(world.signed())])


async def test_a_version_names_the_root_of_the_one_before(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    more = (b"7,seven\n",)

    with pytest.raises(InvalidRequest):
        await trainer.push_all(world.signed(manifest_of(more, version=2, previous_root=bytes(32))), more)
    with pytest.raises(InvalidRequest):
        await trainer.push_all(world.signed(manifest_of(more, version=3, previous_root=root)), more)
    assert (await trainer.push_all(world.signed(manifest_of(more, version=2, previous_root=root)), more)).version == 2

    assert (await trainer.version()).version == 2
    assert (await trainer.version(version=1)).root == root


@pytest.mark.parametrize(
    "first",
    [
        chunk_messages()[0],
        FINISH,
        messages.PushDatasetRequest(),
    ],
    ids=["chunk", "finish", "nothing"],
)
async def test_the_manifest_comes_first(world, first):
    first = messages.PushDatasetRequest.FromString(first.SerializeToString())
    first.dataset = "digits"

    with pytest.raises(InvalidRequest):
        await world.actor().push([first])


async def test_a_later_message_may_not_name_another_dataset(world):
    trainer = world.actor()
    chunk = chunk_messages()[0]
    chunk.dataset = "letters"

    with pytest.raises((InvalidRequest, NotFound)):
        await trainer.push([manifest_message(world.signed()), chunk])
    chunk.dataset = "digits"
    assert len(await trainer.push([manifest_message(world.signed()), chunk])) == 2


async def _refusal(actor: Actor, envelope: bytes) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        await actor.push([manifest_message(envelope)])
    return caught.value


async def test_whoever_may_not_push_is_refused_before_anything_is_looked_at(world):
    reader = world.actor(scopes="datasets.read")
    anonymous = replace(world.actor(), metadata=())
    thief = replace(world.actor("mallory"), metadata=world.actor().metadata)
    envelope = world.signed()

    assert isinstance(await _refusal(reader, envelope), PermissionDenied)
    assert (await _refusal(anonymous, envelope)).reason is Reason.TOKEN_MISSING
    stolen = await _refusal(thief, envelope)
    assert isinstance(stolen, Unauthenticated)
    assert stolen.reason is Reason.CERTIFICATE_MISMATCH
    world.grants = [grant for grant in world.grants if grant.verb != "push"]
    world.tell()
    assert isinstance(await _refusal(world.actor(), envelope), NotFound)


async def test_what_is_acknowledged_is_in_the_database(world):
    trainer = world.actor()
    await trainer.push([manifest_message(world.signed()), *chunk_messages()[:2]])

    async with world.sql() as sql:
        upload = await sql.fetchrow("SELECT state, next_offset, next_batch, next_ordinal FROM uploads")
        rows = await sql.fetch("SELECT batch, ordinal FROM sealed_rows ORDER BY ordinal")

    assert tuple(upload) == ("receiving", len(CHUNKS[0] + CHUNKS[1]), 2, 3)
    assert [tuple(row) for row in rows] == [(0, 0), (0, 1), (1, 2)]
