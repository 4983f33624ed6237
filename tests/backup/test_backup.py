"""A backup is whole or none, says what it proves, and what it brings back is held against the log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from casemate.backup.manifest import BackupClass
from casemate.backup.restore import WITHOUT_LOG, Request, require_empty
from casemate.errors import ConfigurationError, NotFound
from casemate.storage.pool import open_connection
from tests.backup.small import DIGEST_UNTIL, MALLORY, SPIFFE_ID, THUMBPRINT
from tests.services.datasets.world import CHUNKS, manifest_of

ROWS, DATAKEYS, LOG = BackupClass.ROWS, BackupClass.DATAKEYS, BackupClass.LOG


async def test_a_restore_takes_away_again_what_was_shredded_and_revoked_after_the_backup(
    house, elsewhere, stopped_world, tmp_path
):
    backup = await house.back_up(tmp_path / "backups")
    async with stopped_world.serve():
        await stopped_world.actor().shred()
        later = manifest_of(dataset="later")
        await stopped_world.actor().push_all(stopped_world.signed(later), dataset="later")
    await house.take_away()
    newer = await house.back_up(tmp_path / "backups", LOG)
    epoch = await _epoch(house)

    request = Request(rows=backup[ROWS], datakeys=backup[DATAKEYS], log=newer[LOG])
    await require_empty(elsewhere.places)
    done = await elsewhere.restored(await elsewhere.judged(request), tmp_path / "staging")

    assert done["datasets"]["versions_shredded"] == done["datasets"]["versions_lost"] == 1
    expected = {"families_ended": 1, "clients_disabled": 1, "grants_removed": 1, "grants_lost": 1}
    assert expected.items() <= done["auth"].items()
    # Nobody here knows whose digest that is: the restore says until when another house's word may be taken for him.
    assert done["auth"]["subjects_known_by_digest_until"] == DIGEST_UNTIL.isoformat()
    async with elsewhere.authority() as authority:
        assert not (await authority.store.client(MALLORY)).enabled
        assert (await authority.store.client("acme-trainer")).enabled
        async with authority.pool.acquire() as connection:
            assert [grant.id for grant in await authority.tables.grants.all(connection)] == ["grant-trainer"]
            revoked = {(one.kind.value, one.value) for one in await authority.tables.revocations.all(connection)}
            expected = {
                ("spiffe_id", SPIFFE_ID),
                ("certificate", THUMBPRINT),
                ("client", MALLORY),
                ("subject", MALLORY),
            }
            assert expected <= revoked
            [family] = await authority.tables.families.all(connection)
            assert family.ended_at is not None
            assert len(await authority.tables.token_keys.all(connection)) == 1
        await elsewhere.tell_log(authority)  # numbers go on, and the log takes them
    assert await _epoch(elsewhere) != epoch
    assert (elsewhere.repository / "acme/digits/1/files/model.onnx.sealed").read_bytes() == b"sealed" * 500_000
    assert not list(elsewhere.repository.rglob("half"))

    moved = replace(stopped_world, settings=elsewhere.datasets)
    async with moved.serve():
        with pytest.raises(NotFound):
            await moved.actor().pull(version=1)
        entries = await _log(elsewhere)
        assert [entry["kind"] for entry in entries].count("shred") == 1  # the one of that time, and no second
        again = await moved.actor().shred()
        assert again.receipt  # the receipt names the entry of that time
    assert [kind for kind in (entry["kind"] for entry in entries) if kind == "restore"] == ["restore"]


async def test_without_a_newer_log_the_version_comes_back_and_has_to_be_asked_for(
    house, elsewhere, stopped_world, tmp_path
):
    backup = await house.back_up(tmp_path / "backups")
    async with stopped_world.serve():
        await stopped_world.actor().shred()
    request = Request(rows=backup[ROWS], datakeys=backup[DATAKEYS])
    with pytest.raises(ConfigurationError, match=f"would come back unseen.*{WITHOUT_LOG}"):
        await elsewhere.judged(request)
    with pytest.raises(ConfigurationError, match="of the very moment of the rows"):
        await elsewhere.judged(replace(request, log=backup[LOG]))

    done = await elsewhere.restored(await elsewhere.judged(replace(request, without_log=True)), tmp_path / "staging")
    assert done["auth"]["families_ended"] == 1  # these end whatever the log says
    moved = replace(stopped_world, settings=elsewhere.datasets)
    async with moved.serve():
        assert len((await moved.actor().pull(version=1))[1]) == len(CHUNKS)


async def test_a_backup_waits_for_no_reader_and_services_go_on(house, stopped_world, tmp_path):
    """Rows and data keys that belong together are of one moment, whatever is pushed and shredded meanwhile."""
    import asyncio

    async with stopped_world.serve():
        done = asyncio.Event()

        async def load() -> int:
            number = 0
            while not done.is_set():
                number += 1
                name = f"busy-{number}"
                await stopped_world.actor().push_all(stopped_world.signed(manifest_of(dataset=name)), dataset=name)
                await stopped_world.actor().shred(dataset=name)
            return number

        loading = asyncio.create_task(load())
        for _ in range(2):
            await house.back_up(tmp_path / "backups")
        done.set()
        assert await loading > 0


async def _epoch(house) -> str:
    connection = await open_connection(house.auth.database)
    try:
        return str(await connection.fetchval("SELECT epoch FROM trust_head"))
    finally:
        await connection.close()


async def _log(house) -> list[dict]:
    connection = await open_connection(house.datasets.database)
    try:
        return [
            json.loads(row["entry"]) for row in await connection.fetch("SELECT entry FROM log_entries ORDER BY index")
        ]
    finally:
        await connection.close()
