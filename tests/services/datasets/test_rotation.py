"""KeyService on datasets: a key-encryption key rotated under reads and writes (E16), seen and done by operators."""

from __future__ import annotations

import asyncio
import json

import pytest

from casemate.errors import PermissionDenied
from casemate.sealing.local import LocalKeyRing
from tests.services.datasets.world import CHUNKS, RECORDS, manifest_of


def operator(world):
    return world.actor("operator", tenant="casemate", scopes="admin")


async def test_the_status_counts_keys_by_purpose_and_version_and_rewrapping_moves_them_all(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    house = operator(world)
    assert await house.kek_status() == {("authority-rows", 1): 1, ("dataset-rows", 1): 1, ("log-signing", 1): 1}

    LocalKeyRing.rotate(world.settings.kek.kek_file)
    progress = await house.rewrap()

    assert (progress[0].seen, progress[0].total) == (0, 3)
    assert (progress[-1].seen, progress[-1].rewrapped, progress[-1].failed) == (3, 3, 0)
    assert await house.kek_status() == {("authority-rows", 2): 1, ("dataset-rows", 2): 1, ("log-signing", 2): 1}
    world.running.ring.drop()
    assert [record for batch in (await trainer.pull())[1] for record in batch.records] == RECORDS


async def test_the_first_version_is_removable_once_all_is_rewrapped_and_the_service_starts_again(stopped_world):
    world = stopped_world
    async with world.serve():
        await world.actor().push_all(world.signed())
        LocalKeyRing.rotate(world.settings.kek.kek_file)
        await operator(world).rewrap()
    path = world.settings.kek.kek_file
    document = json.loads(path.read_bytes())
    del document["versions"]["1"]
    path.write_text(json.dumps(document))
    async with world.serve():
        assert len((await world.actor().pull())[1]) == len(CHUNKS)


async def test_reads_and_writes_do_not_fail_while_the_key_is_rotated_and_rewrapped(world):
    trainer, house = world.actor(), operator(world)
    root = (await trainer.push_all(world.signed())).root
    ended = asyncio.Event()
    counts = {"reads": 0, "writes": 0}

    async def read():
        while not ended.is_set():
            world.running.ring.drop()  # each read unwraps anew
            assert len((await trainer.pull(version=1))[1]) == len(CHUNKS)
            counts["reads"] += 1

    async def write():
        previous, number = root, 2
        while not ended.is_set():
            manifest = manifest_of(version=number, previous_root=previous)
            previous = (await trainer.push_all(world.signed(manifest))).root
            counts["writes"] += 1
            number += 1

    async with asyncio.timeout(60):
        work = [asyncio.create_task(read()), asyncio.create_task(write())]
        for _ in range(3):
            LocalKeyRing.rotate(world.settings.kek.kek_file)
            assert (await house.rewrap())[-1].failed == 0
            before = dict(counts)
            while counts["reads"] == before["reads"] or counts["writes"] == before["writes"]:
                assert not any(task.done() for task in work)
                await asyncio.sleep(0.01)
        ended.set()
        await asyncio.gather(*work)
    await house.rewrap()
    assert {version for _, version in await house.kek_status()} == {4}


async def test_a_tenants_own_administrator_is_no_operator(world):
    for refused in (
        world.actor("admin", tenant="acme", scopes="admin"),
        world.actor("operator", tenant="casemate", scopes="log.read"),
    ):
        with pytest.raises(PermissionDenied):
            await refused.kek_status()
        with pytest.raises(PermissionDenied):
            await refused.rewrap()
    assert len(await operator(world).kek_status()) == 2


async def test_a_ring_that_is_spoilt_under_the_service_is_counted_and_it_goes_on(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    world.settings.kek.kek_file.write_text("{}")
    world.running.ring.drop()
    assert len((await trainer.pull())[1]) == len(CHUNKS)
    assert world.running.metrics.value("kek_reload_failed_total") == 1
