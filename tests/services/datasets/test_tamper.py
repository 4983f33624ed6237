"""The owner of the database as attacker: what was changed is refused, and put back it reads again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1 import log_service_pb2
from casemate.errors import Conflict, StoredDataUnreadable
from casemate.sealing.keys import WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import seal_batch
from services.datasets.key_store import rows_context
from services.datasets.push import batch_context
from tests.services.datasets.world import FINISH, PROMOTIONS, chunk_messages, manifest_message, manifest_of, our_errors

ALARMS, FAILURES = "authority_alarms_total", "integrity_failures_total"

SWAP_ROWS = """
UPDATE sealed_rows a SET sealed = b.sealed FROM sealed_rows b
WHERE a.upload = b.upload AND a.ordinal IN (0, 1) AND b.ordinal = 1 - a.ordinal
"""


EVERYTHING = 'SELECT t::text FROM "{}" t'


async def test_two_rows_swapped_by_sql_are_data_loss_and_swapped_back_they_read(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql() as sql:
        assert await sql.execute(SWAP_ROWS) == "UPDATE 2"

        with pytest.raises(StoredDataUnreadable):
            await trainer.pull()
        assert world.running.metrics.value(FAILURES) == 1

        await sql.execute(SWAP_ROWS)
    _, batches = await trainer.pull()
    assert len(batches) == 3


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM sealed_rows WHERE ordinal = 1",
        "DELETE FROM sealed_rows WHERE ordinal = 5",
        "DELETE FROM batches WHERE number = 2",
        "INSERT INTO sealed_rows SELECT upload, batch, 6, sealed FROM sealed_rows WHERE ordinal = 5",
        "UPDATE sealed_rows SET sealed = set_byte(sealed, 0, get_byte(sealed, 0) # 1) WHERE ordinal = 3",
        "UPDATE sealed_rows SET sealed = '' WHERE ordinal = 3",
        "UPDATE batches SET salt = set_byte(salt, 0, get_byte(salt, 0) # 1) WHERE number = 1",
        "UPDATE batches SET commitment = set_byte(commitment, 31, get_byte(commitment, 31) # 1) WHERE number = 1",
        "UPDATE batches SET salt = '' WHERE number = 1",
        "UPDATE batches SET first_ordinal = 4 WHERE number = 1",
        """UPDATE batches a SET salt = b.salt, commitment = b.commitment FROM batches b
           WHERE a.number = 0 AND b.number = 1""",
        "UPDATE manifests SET envelope = set_byte(envelope, 100, get_byte(envelope, 100) # 1)",
        "DELETE FROM manifests",
        "ALTER TABLE batches ALTER salt DROP NOT NULL; UPDATE batches SET salt = NULL",
        "ALTER TABLE batches ALTER commitment DROP NOT NULL; UPDATE batches SET commitment = NULL",
        "ALTER TABLE sealed_rows ALTER sealed DROP NOT NULL; UPDATE sealed_rows SET sealed = NULL WHERE ordinal = 2",
    ],
)
async def test_stored_data_that_was_changed_is_data_loss(world, change):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    await trainer.pull()
    async with world.sql() as sql:
        assert not (await sql.execute(change)).endswith(" 0")

    with pytest.raises(StoredDataUnreadable):
        await trainer.pull()
    assert world.running.metrics.value(FAILURES) >= 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE uploads SET row_count = 5",
        "UPDATE uploads SET root = sha256(root)",
        "UPDATE uploads SET promoted_at = promoted_at - interval '1 year'",
        "UPDATE uploads SET promoted_at = 'infinity'",
        "UPDATE uploads SET started_at = '-infinity'",
        "UPDATE uploads SET dataset = 'letters'",
        "UPDATE uploads SET signer_key_id = 'another'",
        "UPDATE uploads SET id = gen_random_uuid()",
        "UPDATE uploads SET mac = ''",
    ],
)
async def test_a_row_of_authority_that_was_changed_is_data_loss_and_alarms(world, change):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE manifests DROP CONSTRAINT manifests_upload_fkey")
        await sql.execute("ALTER TABLE batches DROP CONSTRAINT batches_upload_fkey")
        assert await sql.execute(change) == "UPDATE 1"

    with pytest.raises(StoredDataUnreadable):
        await trainer.version("letters" if "letters" in change else "digits")
    assert world.running.metrics.value(ALARMS) == 1


async def test_an_update_by_sql_promotes_nothing(world):
    trainer, inference = world.actor(), world.service("inference")
    manifest = manifest_of()
    await trainer.push([manifest_message(world.signed(manifest)), *chunk_messages()])
    async with world.sql() as sql:
        await sql.execute("UPDATE uploads SET state = 'promoted', promoted_at = now(), log_index = 0")

    with pytest.raises(StoredDataUnreadable):
        await trainer.version()
    with pytest.raises(StoredDataUnreadable):
        await trainer.pull(version=1)
    request = messages.CheckRootsRequest(tenant="acme", roots=[manifest.root])
    assert list((await inference.datasets.CheckRoots(request)).refused) == [manifest.root]
    assert world.running.metrics.value(ALARMS) == 3


async def test_a_quarantined_upload_is_not_freed_by_sql(world):
    trainer = world.actor()
    envelope = world.signed()
    other = chunk_messages([b"1,one\n2,twO\n"])
    with pytest.raises(Conflict):
        await trainer.push([manifest_message(envelope), *chunk_messages()[:1], *other])
    async with world.sql() as sql:
        await sql.execute("UPDATE uploads SET state = 'receiving'")

    with pytest.raises(StoredDataUnreadable):
        await trainer.push_all(envelope)


async def test_the_progress_of_an_upload_is_not_moved_by_sql(world):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push([manifest_message(envelope), *chunk_messages()[:1]])
    async with world.sql() as sql:
        await sql.execute("UPDATE uploads SET next_offset = 40, next_batch = 3, next_ordinal = 6")

        with pytest.raises(StoredDataUnreadable):
            await trainer.push([manifest_message(envelope), FINISH])

        await sql.execute("UPDATE uploads SET next_offset = 12, next_batch = 1, next_ordinal = 2")
    assert (await trainer.push_all(envelope)).rows == 6


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM sealed_rows WHERE ordinal = 5",
        "INSERT INTO sealed_rows SELECT upload, -1, 0, sealed FROM sealed_rows WHERE ordinal = 5",
        "INSERT INTO sealed_rows SELECT upload, 2147483647, 0, sealed FROM sealed_rows WHERE ordinal = 5",
        "INSERT INTO sealed_rows SELECT upload, 3, 0, sealed FROM sealed_rows WHERE ordinal = 5",
    ],
)
async def test_a_row_lost_or_added_before_the_end_is_found_before_promotion(world, change):
    trainer = world.actor()
    envelope = world.signed()
    await trainer.push([manifest_message(envelope), *chunk_messages()])
    async with world.sql() as sql:
        assert (await sql.execute(change)).endswith(" 1")

    with pytest.raises(StoredDataUnreadable):
        await trainer.push([manifest_message(envelope), FINISH])

    async with world.sql() as sql:
        assert await sql.fetchval("SELECT state FROM uploads") == "receiving"
        assert await sql.fetchval(PROMOTIONS) == 0


async def test_rows_of_another_version_do_not_open(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    async with world.sql() as sql:
        swapped = await sql.execute(
            "UPDATE sealed_rows a SET sealed = b.sealed FROM sealed_rows b "
            "WHERE a.upload <> b.upload AND a.ordinal = b.ordinal"
        )
        assert swapped == "UPDATE 12"
        await sql.execute(
            "UPDATE batches a SET salt = b.salt, commitment = b.commitment FROM batches b "
            "WHERE a.upload <> b.upload AND a.number = b.number"
        )

    for version in (1, 2):
        with pytest.raises(StoredDataUnreadable):
            await trainer.pull(version=version)


async def test_the_genuine_manifest_of_another_version_is_data_loss(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    swap = "UPDATE manifests a SET envelope = b.envelope FROM manifests b WHERE a.upload <> b.upload"
    async with world.sql() as sql:
        assert await sql.execute(swap) == "UPDATE 2"

        for version in (1, 2):
            with pytest.raises(StoredDataUnreadable):
                await trainer.version(version=version)

        await sql.execute(swap)
    assert (await trainer.version(version=1)).root == root


async def test_a_data_key_of_another_version_is_of_no_use_and_a_deleted_one_shreds(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    swap = (
        "UPDATE data_keys a SET wrapped = b.wrapped FROM data_keys b "
        "WHERE a.purpose = 'dataset-rows' AND b.purpose = 'dataset-rows' AND a.id <> b.id"
    )
    async with world.sql(data_keys=True) as sql:
        assert await sql.execute(swap) == "UPDATE 2"
        world.running.ring.drop()  # what was unwrapped before would serve for its time
        for version in (1, 2):
            with pytest.raises(StoredDataUnreadable):
                await trainer.pull(version=version)
        await sql.execute(swap)
        await trainer.pull(version=1)

        await sql.execute("DELETE FROM data_keys WHERE purpose = 'dataset-rows' AND version = 1")
    world.running.ring.drop()
    with pytest.raises(StoredDataUnreadable):
        await trainer.pull(version=1)
    await trainer.pull(version=2)


async def test_rows_resealed_by_a_holder_of_the_data_key_are_not_the_signed_ones(world):
    trainer = world.actor()
    manifest = manifest_of()
    await trainer.push_all(world.signed(manifest))
    async with world.sql(data_keys=True) as sql:
        wrapped = await sql.fetchval("SELECT wrapped FROM data_keys WHERE purpose = 'dataset-rows'")
    ring = LocalKeyRing.load(world.settings.kek.kek_file)
    key = await ring.unwrap(WrappedKey.parse(wrapped), rows_context("acme", "digits", 1))

    async def reseal(rows: list[bytes]) -> None:
        batch = seal_batch(key, batch_context(manifest, 1), rows, first_ordinal=2)
        async with world.sql() as sql:
            await sql.execute(
                "UPDATE batches SET salt = $1, commitment = $2 WHERE number = 1", batch.salt, batch.commitment
            )
            await sql.execute("UPDATE sealed_rows SET sealed = $1 WHERE batch = 1", batch.rows[0])

    await reseal([b"3,drei"])
    with pytest.raises(StoredDataUnreadable):
        await trainer.pull()
    await reseal([b"3,three"])
    assert len((await trainer.pull())[1]) == 3


async def test_a_log_head_put_back_to_nothing_is_data_loss_and_alarms(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql() as sql:
        await sql.execute("UPDATE log_head SET size = 0, frontier = ''")

    with pytest.raises(StoredDataUnreadable), our_errors():
        await trainer.log.GetCheckpoint(log_service_pb2.GetCheckpointRequest(), metadata=trainer.metadata)
    assert world.running.metrics.value(ALARMS) == 1
    with pytest.raises(StoredDataUnreadable):
        await trainer.push_all(world.signed(manifest_of(version=2, previous_root=manifest_of().root)))


async def test_an_edited_log_entry_is_data_loss(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    request = log_service_pb2.GetEntryRequest(index=0)
    await trainer.log.GetEntry(request, metadata=trainer.metadata)
    async with world.sql() as sql:
        await sql.execute("ALTER TABLE log_entries DISABLE TRIGGER ALL")
        await sql.execute("UPDATE log_entries SET entry = 'x', leaf_hash = sha256('\\x0078')")

    with pytest.raises(StoredDataUnreadable), our_errors():
        await trainer.log.GetEntry(request, metadata=trainer.metadata)


async def test_neither_database_nor_its_files_hold_plaintext(world):
    canary = b"canary-5e7a1f"
    chunks = (b"1,%s\n2,two\n" % canary,)
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)
    _, batches = await trainer.pull()
    assert canary in batches[0].records[0]

    async with world.sql() as sql:
        await sql.execute("CHECKPOINT")
        directory = Path(await sql.fetchval("SHOW data_directory"))
        tables = [row[0] for row in await sql.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        assert "sealed_rows" in tables
        dump = [str(row) for table in tables for row in await sql.fetch(EVERYTHING.format(table))]
        plain = await sql.fetchval("SELECT tenant FROM uploads")

    assert plain == "acme"
    assert not any(canary.decode() in row or canary.hex() in row for row in dump)
    assert await asyncio.to_thread(_files_with, directory, b"acme"), "the search does see what is plain"
    assert await asyncio.to_thread(_files_with, directory, canary) == []


def _files_with(directory: Path, needle: bytes) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and needle in path.read_bytes()]
