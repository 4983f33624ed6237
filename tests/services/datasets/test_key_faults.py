"""What datasets does when keys are damaged (E13), refused (E14, E27), or cannot be asked for (E15)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from casemate.errors import FailedPrecondition, Reason, StoredDataUnreadable, Unavailable
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import KekSettings, kek_location
from services.datasets.key_store import rows_context
from tests.services.datasets.world import CHUNKS, manifest_of

PATIENCE = 30.0


async def push(world, dataset: str = "digits"):
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(dataset=dataset)), dataset=dataset)
    return trainer


async def pulled(world, trainer, dataset: str = "digits") -> int:
    """Chunks pulled with nothing in memory."""
    world.running.ring.drop()
    return len((await trainer.pull(dataset))[1])


@pytest.mark.parametrize(
    ("table", "column", "data_keys"),
    [
        ("data_keys", "wrapped", True),
        ("batches", "salt", False),
        ("batches", "commitment", False),
        ("sealed_rows", "sealed", False),
    ],
)
async def test_each_byte_that_is_flipped_is_data_loss_and_never_a_row(world, table, column, data_keys):
    """E13. The twin: with the byte put back, the version opens."""
    trainer = await push(world)
    where = "WHERE purpose = 'dataset-rows'" if data_keys else ""
    name = {"data_keys": "id", "batches": "number", "sealed_rows": "ordinal"}[table]
    select = f"SELECT {name}, {column} FROM {table} {where} ORDER BY {name} LIMIT 1"  # noqa: S608  # names of this test
    update = f"UPDATE {table} SET {column} = $1 WHERE {name} = $2"  # noqa: S608  # as above
    async with world.sql(data_keys=data_keys) as sql:
        row = await sql.fetchrow(select)
        key, good = row.values()
        for place in range(len(good)):
            bad = bytes(byte ^ (index == place) for index, byte in enumerate(good))
            await sql.execute(update, bad, key)
            with pytest.raises(StoredDataUnreadable):
                await pulled(world, trainer)
        await sql.execute(update, good, key)
    assert await pulled(world, trainer) == len(CHUNKS)


async def test_a_key_wrapped_by_another_key_encryption_key_is_data_loss_and_pages_and_others_are_unaffected(
    world, tmp_path
):
    """E14, the wrong KEK."""
    trainer, other = await push(world), await push(world, dataset="letters")
    stranger = LocalKeyRing.create(tmp_path / "stranger.json")
    _, wrapped = await stranger.generate_data_key(rows_context("acme", "digits", 1))
    async with world.sql(data_keys=True) as sql:
        await sql.execute("UPDATE data_keys SET wrapped = $1 WHERE name = 'digits'", wrapped.to_bytes())
    with pytest.raises(StoredDataUnreadable):
        await pulled(world, trainer)
    assert world.running.metrics.value("integrity_failures_total") == 1
    assert await pulled(world, other, "letters") == len(CHUNKS)


@pytest_asyncio.fixture
async def cloud(stopped_world, aws, monkeypatch, tmp_path):
    """A service whose key-encryption key is in KMS, behind the double."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    location = kek_location(f"aws-kms:{aws.arn}?endpoint={aws.double.url}")
    stopped_world.settings = replace(
        stopped_world.settings, kek=KekSettings(kek=location), authority_key_file=tmp_path / "authority.key"
    )
    async with stopped_world.serve():
        yield stopped_world


async def until_pulled(world, trainer) -> None:
    """After a fault: the provider may be left alone for some seconds first."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await pulled(world, trainer) == len(CHUNKS)
            except Unavailable:
                await asyncio.sleep(0.2)
            else:
                return


async def test_a_disabled_key_is_a_failed_precondition_within_seconds_and_enabled_it_opens_again(cloud, aws):
    """E14. What is in memory is dropped by the watch, so that disabling ends reading."""
    trainer = await push(cloud)
    await trainer.pull()
    key_id = aws.arn.rpartition("/")[2]
    await aws.admin.disable_key(KeyId=key_id)
    async with asyncio.timeout(PATIENCE):
        while len(cloud.running.ring):
            await asyncio.sleep(0.05)
    with pytest.raises(FailedPrecondition) as refusal:
        await trainer.pull()
    assert refusal.value.reason == Reason.KEY_NOT_ACTIVE
    with pytest.raises(FailedPrecondition):
        await trainer.push_all(cloud.signed(manifest_of(dataset="letters")), dataset="letters")
    async with cloud.sql() as sql:
        assert await sql.fetchval("SELECT count(*) FROM uploads WHERE dataset = 'letters'") == 0
    await aws.admin.enable_key(KeyId=key_id)
    await until_pulled(cloud, trainer)


async def test_a_throttled_kms_leaves_keys_in_memory_in_use_and_the_rest_unavailable(cloud, aws):
    """E15."""
    trainer = await push(cloud)
    await trainer.pull()
    aws.double.refusal = ("ThrottlingException", 400)
    assert len((await trainer.pull())[1]) == len(CHUNKS)
    with pytest.raises(Unavailable):
        await pulled(cloud, trainer)
    assert cloud.running.metrics.value("integrity_failures_total") == 0
    aws.double.refusal = None
    await until_pulled(cloud, trainer)


async def test_a_slow_kms_stalls_nobody_else_and_ends_as_unavailable(cloud, aws):
    """E15. The call that needs the key waits out its limit; what needs none is answered meanwhile."""
    trainer = await push(cloud)
    aws.double.slow = True
    cloud.running.ring.drop()
    waiting = asyncio.create_task(trainer.pull())
    while aws.double.calls[-1] != "Decrypt":
        await asyncio.sleep(0.01)
    for _ in range(20):
        assert (await trainer.version()).version == 1
    assert not waiting.done()
    with pytest.raises(Unavailable):
        await waiting
    aws.double.slow = False
    aws.double.ending.set()
    await until_pulled(cloud, trainer)


async def test_a_key_encryption_key_that_is_gone_opens_nothing_and_no_backup_either(cloud, aws):
    """E27. Both databases are still whole; nothing in them opens."""
    trainer = await push(cloud)
    aws.double.refusal = ("NotFoundException", 400)
    with pytest.raises(FailedPrecondition) as refusal:
        await pulled(cloud, trainer)
    assert refusal.value.reason == Reason.KEY_NOT_ACTIVE
    async with cloud.sql(data_keys=True) as sql:
        assert await sql.fetchval("SELECT count(*) FROM data_keys WHERE purpose = 'dataset-rows'") == 1


async def test_another_plaintext_than_was_wrapped_is_data_loss(cloud, aws):
    """E14. A KMS that answers with another key's bytes is not believed."""
    trainer = await push(cloud)
    aws.double.give_another_plaintext()
    with pytest.raises(StoredDataUnreadable):
        await pulled(cloud, trainer)
