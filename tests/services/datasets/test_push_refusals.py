"""What a push is refused for, and what is then true."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from casemate.signing import dsse
from casemate.signing.statements import DATASET_MANIFEST_TYPE
from tests.services.datasets.pushing import NEVER, nothing_changes, refusal, uploads
from tests.services.datasets.world import (
    CHUNKS,
    FINISH,
    PROMOTIONS,
    chunk_messages,
    manifest_message,
    manifest_of,
    our_errors,
)


async def test_another_manifest_under_the_same_upload_id_is_equivocation(world):
    trainer = world.actor()
    manifest = manifest_of()
    await trainer.push([manifest_message(world.signed(manifest)), *chunk_messages()[:1]])

    other = replace(manifest, expires_at=manifest.expires_at + timedelta(hours=1))
    async with nothing_changes(world):
        with pytest.raises(Conflict) as caught:
            await trainer.push([manifest_message(world.signed(other))])

    assert caught.value.reason is Reason.EQUIVOCATION
    assert (await trainer.push_all(world.signed(manifest))).rows == 6, "what was begun goes on"


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (chunk_messages()[1:2], 0),
        ([messages.PushDatasetRequest(chunk=messages.Chunk(offset=5, data=NEVER))], 0),
        ([messages.PushDatasetRequest(chunk=messages.Chunk(offset=2**64 - 1, data=NEVER))], 0),
        ([*chunk_messages(), messages.PushDatasetRequest(chunk=messages.Chunk(offset=40, data=NEVER))], 40),
        ([FINISH], 0),
        ([*chunk_messages()[:2], FINISH], 20),
    ],
    ids=["gap", "no boundary", "far out", "trailing", "finish at once", "finish early"],
)
async def test_an_offset_that_is_not_wanted_is_out_of_range_and_the_right_one_is_told(world, steps, wanted):
    trainer = world.actor()
    envelope = world.signed()

    with pytest.raises(OutOfRange) as caught:
        await trainer.push([manifest_message(envelope), *steps])

    assert caught.value.reason is Reason.WRONG_OFFSET
    assert [upload[1:3] for upload in await uploads(world)] == [("receiving", wanted)]
    assert (await trainer.push([manifest_message(envelope)]))[0].next_offset == wanted
    assert (await trainer.push_all(envelope)).rows == 6


async def test_the_first_records_that_break_the_schema_are_named_and_none_of_their_chunk_is_stored(world):
    chunks = (b"1,one\n2,two\n", b"3,three\n-4,four\nfive,five\n")

    with pytest.raises(InvalidRequest) as caught:
        await world.actor().push_all(world.signed(manifest_of(chunks)), chunks)

    assert await uploads(world) == [(1, "receiving", 12, 2)]

    assert caught.value.reason is Reason.RECORD_INVALID
    named = [violation.field for violation in caught.value.violations]
    assert named == ["records[3].number", "records[4].number"]


async def test_a_manifest_that_miscounts_its_rows_is_refused(world):
    honest = manifest_of()
    chunks = (replace(honest.chunks[0], rows=1), *honest.chunks[1:])
    trainer = world.actor()

    with pytest.raises(InvalidRequest) as caught:
        await trainer.push([manifest_message(world.signed(replace(honest, chunks=chunks, rows=5))), *chunk_messages()])

    assert caught.value.reason is Reason.MANIFEST_INVALID
    assert await uploads(world) == [(1, "receiving", 0, 0)]
    assert (await trainer.push_all(world.signed(manifest_of()))).rows == 6


@pytest.mark.parametrize("lie", [-1, 1])
@pytest.mark.parametrize("field", ["rows", "bytes"])
async def test_totals_that_are_not_those_of_the_chunks_are_refused_before_anything_is_stored(world, field, lie):
    """E6: the manifest's own sums."""
    trainer, honest = world.actor(), manifest_of()
    statement = json.loads(honest.to_statement())
    statement["predicate"][field] += lie
    envelope = dsse.sign_envelope(DATASET_MANIFEST_TYPE, json.dumps(statement).encode(), world.supplier)

    async with nothing_changes(world):
        with pytest.raises(InvalidRequest) as caught:
            await trainer.push([manifest_message(envelope), *chunk_messages(), FINISH])

    assert caught.value.reason is Reason.MANIFEST_INVALID
    assert (await trainer.push_all(world.signed(honest))).rows == 6


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

    async with nothing_changes(world):
        with pytest.raises(AlreadyExists):
            await trainer.push([manifest_message(late), FINISH])
        with pytest.raises(AlreadyExists):
            await trainer.push([manifest_message(world.signed())])

    assert await uploads(world) == [(1, "receiving", 40, 6), (1, "promoted", 40, 6)]
    async with world.sql() as sql:
        assert await sql.fetchval(PROMOTIONS) == 1
    assert (await trainer.push([manifest_message(early), FINISH]))[-1].promoted.version == 1


async def test_a_version_names_the_root_of_the_one_before(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    more = (b"7,seven\n",)

    async with nothing_changes(world):
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

    async with nothing_changes(world):
        with pytest.raises(InvalidRequest):
            await world.actor().push([first])


async def test_a_later_message_may_not_name_another_dataset(world):
    trainer = world.actor()
    chunk = chunk_messages()[0]
    chunk.dataset = "letters"

    with pytest.raises((InvalidRequest, NotFound)):
        await trainer.push([manifest_message(world.signed()), chunk])
    assert await uploads(world) == [(1, "receiving", 0, 0)]
    chunk.dataset = "digits"
    assert len(await trainer.push([manifest_message(world.signed()), chunk])) == 2


async def test_whoever_may_not_push_is_refused_before_anything_is_looked_at(world):
    reader = world.actor(scopes="datasets.read")
    anonymous = replace(world.actor(), metadata=())
    thief = replace(world.actor("mallory"), metadata=world.actor().metadata)
    envelope = world.signed()

    async with nothing_changes(world):
        assert isinstance(await refusal(reader, envelope), PermissionDenied)
        assert (await refusal(anonymous, envelope)).reason is Reason.TOKEN_MISSING
        stolen = await refusal(thief, envelope)
        assert isinstance(stolen, Unauthenticated)
        assert stolen.reason is Reason.CERTIFICATE_MISMATCH
        granted = world.grants
        world.grants = [grant for grant in granted if grant.verb != "push"]
        world.tell()
        assert isinstance(await refusal(world.actor(), envelope), NotFound)
    world.grants = granted
    world.tell()
    assert (await world.actor().push_all(envelope)).version == 1


async def test_what_is_acknowledged_is_in_the_database(world):
    trainer = world.actor()
    await trainer.push([manifest_message(world.signed()), *chunk_messages()[:2]])

    async with world.sql() as sql:
        upload = await sql.fetchrow("SELECT state, next_offset, next_batch, next_ordinal FROM uploads")
        rows = await sql.fetch("SELECT batch, ordinal FROM sealed_rows ORDER BY ordinal")

    assert tuple(upload) == ("receiving", len(CHUNKS[0] + CHUNKS[1]), 2, 3)
    assert [tuple(row) for row in rows] == [(0, 0), (0, 1), (1, 2)]
