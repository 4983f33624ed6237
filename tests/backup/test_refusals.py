"""What a restore refuses, each beside what it takes; one backup for all of these."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from casemate.backup.create import create
from casemate.backup.folder import write_backup
from casemate.backup.manifest import MANIFEST, BackupClass, Manifest
from casemate.backup.places import AUTH, DATASETS
from casemate.backup.places import DATAKEYS as KEYS
from casemate.backup.restore import Request, require_empty
from casemate.backup.verify import verify
from casemate.clock import SystemClock
from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import FileKek
from tests.backup.small import SCHEMAS, House, build_house
from tests.services.datasets.conftest import _emptied
from tests.services.datasets.world import World, build_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS, DATAKEYS, LOG = BackupClass.ROWS, BackupClass.DATAKEYS, BackupClass.LOG


@dataclass
class Kept:
    """A house, two backups of it and a newer log, and an empty machine."""

    house: House
    elsewhere: House
    backup: dict[BackupClass, Path]
    second: dict[BackupClass, Path]
    request: Request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(embedded_postgres, leaf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    names = ("auth", "rows", "keys", "restored_auth", "restored_rows", "restored_keys")
    here = [await _emptied(embedded_postgres, f"test_refused_{name}") for name in names]
    settings = build_settings(
        identity=leaf("service", service="datasets"), database=here[1], data_keys=here[2], state=folder
    )
    world = World(settings=settings, leaf=leaf, superuser=embedded_postgres.superuser)
    async with world.serve():
        await world.actor().push_all(world.signed())
    house = build_house(settings, here[0], folder)
    await house.admit()
    backup, second = [await house.back_up(folder / "backups") for _ in range(2)]
    return Kept(
        house=house,
        elsewhere=house.moved(folder / "elsewhere", dict(zip((AUTH, DATASETS, KEYS), here[3:], strict=True))),
        backup=backup,
        second=second,
        request=Request(rows=backup[ROWS], datakeys=backup[DATAKEYS], log=second[LOG]),
    )


def cut(folder) -> None:
    data = (folder / "casemate_auth.dump").read_bytes()
    (folder / "casemate_auth.dump").write_bytes(data[:-1])


def flip(folder) -> None:
    data = bytearray((folder / "casemate_datasets.dump").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "casemate_datasets.dump").write_bytes(data)


def say(**changes):
    def rewrite(folder) -> None:
        document = json.loads((folder / MANIFEST).read_bytes())
        (folder / MANIFEST).write_text(json.dumps({**document, **changes}))

    return rewrite


async def test_wrong_inputs_are_refused_before_anything_is_written(kept, tmp_path):
    elsewhere, backup, request = kept.elsewhere, kept.backup, kept.request
    await elsewhere.judged(request)

    def altered(change) -> Request:
        copy = tmp_path / "altered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(backup[ROWS], copy)
        change(copy)
        return replace(request, rows=copy)

    def behind_a_link(folder) -> None:
        shutil.rmtree(tmp_path / "moved", ignore_errors=True)
        (folder / "keys").rename(tmp_path / "moved")
        (folder / "keys").symlink_to(tmp_path / "moved")

    def pipe(name: str):
        def put(folder) -> None:
            (folder / name).unlink()
            os.mkfifo(folder / name)

        return put

    newer_schema = {**SCHEMAS, AUTH: SCHEMAS[AUTH][:-1]}
    other_schema = {**SCHEMAS, DATASETS: ("00" * 32, *SCHEMAS[DATASETS][1:])}
    a_month_on = datetime.now(UTC) + timedelta(days=31)
    for wrong, options, error, says in (
        (cut, {}, StoredDataUnreadable, "has .* bytes, and"),
        (flip, {}, StoredDataUnreadable, "was altered"),
        (say(taken_at="2020-01-01T00:00:00+00:00"), {}, StoredDataUnreadable, "not the one that was sealed"),
        (say(parts=[]), {}, StoredDataUnreadable, "not the one that was sealed"),
        (say(seals={}), {}, StoredDataUnreadable, "not sealed under"),
        (say(format="casemate-backup/2"), {}, ConfigurationError, "not the manifest"),
        (lambda folder: (folder / MANIFEST).unlink(), {}, ConfigurationError, "no whole backup"),
        (lambda folder: (folder / "more").touch(), {}, StoredDataUnreadable, "not in its manifest"),
        (lambda folder: (folder / "more").symlink_to(tmp_path), {}, StoredDataUnreadable, "not in its manifest"),
        (behind_a_link, {}, StoredDataUnreadable, "not in its manifest"),
        (pipe("casemate_auth.dump"), {}, StoredDataUnreadable, "not a file"),
        (pipe(MANIFEST), {}, ConfigurationError, "not a file"),
        (replace(request, rows=backup[DATAKEYS]), {}, ConfigurationError, "class datakeys, and rows was wanted"),
        (request, {"schemas": newer_schema}, ConfigurationError, "newer than this program"),
        (request, {"schemas": other_schema}, ConfigurationError, "other migrations"),
        (request, {"now": a_month_on}, ConfigurationError, "receipts of shredding"),
    ):
        with pytest.raises(error, match=says):
            await elsewhere.judged(altered(wrong) if callable(wrong) else wrong, **options)
    foreign = LocalKeyRing.create(tmp_path / "foreign.json").describe().kek_id
    for service in ("auth", "datasets", "inference"):
        wanted = Manifest.load(backup[ROWS]).keks[service].kek_id
        keks = {**elsewhere.places.keks, service: FileKek(path=tmp_path / "foreign.json")}
        with pytest.raises(ConfigurationError, match=f"wants .* {wanted} version 1 of {service}, and found {foreign}"):
            await elsewhere.judged(request, keks=keks)
    assert not elsewhere.repository.exists()
    await require_empty(elsewhere.places)


async def test_older_data_keys_and_logs_are_refused_and_later_data_keys_are_taken(kept, tmp_path):
    elsewhere, first, second = kept.elsewhere, kept.backup, kept.second
    request = Request(rows=second[ROWS], datakeys=first[DATAKEYS], without_log=True)
    with pytest.raises(ConfigurationError, match="older than the rows"):
        await elsewhere.judged(request)
    with pytest.raises(ConfigurationError, match="older than the rows"):
        await elsewhere.judged(replace(request, datakeys=second[DATAKEYS], log=first[LOG]))
    await elsewhere.judged(Request(rows=first[ROWS], datakeys=second[DATAKEYS], log=second[LOG]))


async def test_a_checkpoint_that_somebody_kept_shows_a_log_that_is_too_short_or_another(kept, tmp_path):
    elsewhere, request = kept.elsewhere, kept.request
    log = Manifest.load(kept.request.log).log
    note = tmp_path / "checkpoint"

    def keep(size: int, root: bytes) -> Request:
        note.write_text(f"datasets.casemate.internal/log\n{size}\n{base64.b64encode(root).decode()}\n\n— …\n")
        return replace(request, checkpoint=note)

    await elsewhere.judged(keep(log.size, bytes.fromhex(log.root)))
    with pytest.raises(ConfigurationError, match="1 entries are missing"):
        await elsewhere.judged(keep(log.size + 1, bytes(32)))
    with pytest.raises(StoredDataUnreadable, match="another history"):
        await elsewhere.judged(keep(log.size, bytes(32)))


async def test_nothing_is_restored_over_what_is_there(kept):
    elsewhere = kept.elsewhere
    await require_empty(elsewhere.places)
    with pytest.raises(ConfigurationError, match="is not empty"):
        await require_empty(kept.house.places)
    elsewhere.repository.mkdir(parents=True)
    await require_empty(elsewhere.places)
    (elsewhere.repository / "acme").mkdir()
    with pytest.raises(ConfigurationError, match="is there already"):
        await require_empty(elsewhere.places)
    shutil.rmtree(elsewhere.repository)


async def test_a_part_altered_after_it_was_judged_leaves_the_database_empty(kept, tmp_path):
    backup = kept.backup
    elsewhere, rows = kept.elsewhere, tmp_path / "rows"
    shutil.copytree(backup[ROWS], rows)
    judged = await elsewhere.judged(Request(rows=rows, datakeys=backup[DATAKEYS], without_log=True))
    dump = rows / "casemate_auth.dump"
    data = bytearray(dump.read_bytes())
    data[-1] ^= 1
    dump.write_bytes(data)
    with pytest.raises(StoredDataUnreadable):
        await elsewhere.restored(judged, tmp_path / "staging")
    await require_empty(elsewhere.places)
    assert not elsewhere.auth.authority_key.exists()  # without which no service starts on rows


async def test_a_backup_holds_no_key_encryption_key_and_names_every_one(kept, tmp_path):
    backup = kept.backup
    secrets = []
    for location in kept.house.places.keks.values():
        document = json.loads(location.path.read_bytes())
        secrets += [key.encode() for key in document["versions"].values()]
        assert document["kek_id"] in {kek.kek_id for kek in Manifest.load(backup[ROWS]).keks.values()}
    for file in kept.backup[ROWS].parents[1].rglob("*"):
        if file.is_file():
            assert not any(secret in file.read_bytes() for secret in secrets)
    names = {part.path for part in Manifest.load(backup[ROWS]).parts}
    assert "casemate_datakeys.dump" not in names
    assert {part.path for part in Manifest.load(backup[DATAKEYS]).parts} == {"casemate_datakeys.dump"}


async def test_digests_alone_find_damage_and_do_not_say_who_made_it(kept, tmp_path):
    backup = {LOG: tmp_path / "log"}
    shutil.copytree(kept.backup[LOG], backup[LOG])
    assert (await verify(backup[LOG])).sealed_by == ()
    (backup[LOG] / "log.entries").write_bytes(b"")
    with pytest.raises(StoredDataUnreadable):
        await verify(backup[LOG])


async def test_a_backup_that_did_not_end_is_no_backup(kept, tmp_path):
    def full(_count: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        await create(kept.house.places, {ROWS: tmp_path / "backups"}, clock=SystemClock(), passed=full)
    assert list((tmp_path / "backups").iterdir()) == []
    with write_backup(tmp_path / "one", passed=lambda _: None) as writing, writing.part("part") as write:
        write(b"some")  # and nobody says that it is finished
    assert list(tmp_path.glob("*one")) == []
