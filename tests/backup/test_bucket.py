"""Models in a bucket are in the backup, and come back to a bucket or to a folder (moto's server, the real client)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from casemate.backup.folder import write_backup
from casemate.backup.manifest import BackupClass
from casemate.backup.models import Bucket, open_models
from casemate.backup.places import Places
from casemate.backup.restore import Judged, Request, require_empty
from casemate.errors import ConfigurationError, StoredDataUnreadable, Unavailable
from services.inference.object_repository import ObjectPlace, ObjectRepository, open_object_repository
from services.inference.repository import MANIFEST, Slot
from tests.backup.test_environment import environment

MOTO = Path(__file__).parents[1] / "support" / "moto_process.py"
SLOT = Slot("acme", "digits", 1)
CONTENT = b"sealed" * 400_000  # more than one piece
ROWS, DATAKEYS, LOG = BackupClass.ROWS, BackupClass.DATAKEYS, BackupClass.LOG


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where moto's server listens."""
    with subprocess.Popen([sys.executable, MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()
        server.wait(30)


@pytest.fixture
def store(address: str, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """Two empty buckets, seen by a client of its own; credentials come as they do in production."""
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = s3fs.S3FileSystem(endpoint_url=address, use_listings_cache=False, skip_instance_cache=True)
    for bucket in ("here", "there"):
        if store.exists(bucket):
            store.rm(bucket, recursive=True)
        store.mkdir(bucket)
    return store


def place(address: str, bucket: str) -> Bucket:
    return Bucket(url=f"s3://{bucket}/production", endpoint=address)


def repository(address: str, bucket: str) -> ObjectRepository:
    return open_object_repository(ObjectPlace(place(address, bucket).url), address=address)


def published(address: str) -> ObjectRepository:
    """As inference writes a version; and what an interrupted write of another left."""
    models = repository(address, "here")
    models.write(SLOT, manifest=b"signed", wrapped_key=b"wrapped", files={"model.onnx": iter([CONTENT])})
    return models


async def backed_up(house, folder: Path, where: Bucket) -> Judged:
    backup = await house.back_up(folder, repository=where)
    newer = await house.back_up(folder, LOG)
    return await house.judged(Request(rows=backup[ROWS], datakeys=backup[DATAKEYS], log=newer[LOG]))


async def test_a_bucket_is_backed_up_and_restored_and_inference_reads_it(house, elsewhere, store, address, tmp_path):
    published(address)
    store.pipe_file(f"here/production/acme/digits/2/{'0' * 32}/{MANIFEST}", b"half")
    judged = await backed_up(house, tmp_path / "backups", place(address, "here"))
    there = elsewhere.at(place(address, "there"))
    await require_empty(there.places)
    await there.restored(judged, tmp_path / "staging")
    models = repository(address, "there")
    assert models.slots() == [SLOT]
    with models.open(SLOT) as stored:
        assert stored.read(MANIFEST, limit=10) == b"signed"
        assert stored.read("key.wrapped", limit=10) == b"wrapped"
        assert stored.read("files", "model.onnx.sealed", limit=len(CONTENT)) == CONTENT
    assert open_models(place(address, "here")).versions() == open_models(place(address, "there")).versions()


async def test_a_bucket_that_is_not_empty_is_not_restored_to(elsewhere, store, address):
    there = elsewhere.at(place(address, "there"))
    await require_empty(there.places)
    store.pipe_file("there/production/somebody/elses", b"object")
    with pytest.raises(ConfigurationError, match="s3://there/production is there already"):
        await require_empty(there.places)


@pytest.mark.long
async def test_what_was_in_a_bucket_may_come_back_to_a_folder(house, elsewhere, store, address, tmp_path):
    published(address)
    judged = await backed_up(house, tmp_path / "backups", place(address, "here"))
    await elsewhere.restored(judged, tmp_path / "staging")
    version = elsewhere.repository / "acme" / "digits" / "1"
    assert (version / "files" / "model.onnx.sealed").read_bytes() == CONTENT
    assert (version / MANIFEST).read_bytes() == b"signed"


def test_a_part_that_turns_out_to_be_altered_leaves_no_version_in_the_bucket(store, address):
    def altered():
        yield b"the first piece"
        raise StoredDataUnreadable("files/model.onnx.sealed of the backup was altered")

    models = open_models(place(address, "there"))
    whole = [(MANIFEST, lambda: [b"signed"]), ("key.wrapped", lambda: [b"wrapped"])]
    with pytest.raises(StoredDataUnreadable, match="was altered"):
        models.write("acme/digits/1", [*whole, ("files/model.onnx.sealed", altered)])
    assert repository(address, "there").slots() == []
    models.write("acme/digits/1", [*whole, ("files/model.onnx.sealed", lambda: [b"sealed"])])
    assert repository(address, "there").slots() == [SLOT]


def test_a_version_that_is_written_again_while_it_is_copied_is_copied_whole(store, address, tmp_path):
    """The folder that was named first is gone by then."""
    from casemate.backup.create import _copy_models  # its retry is what is asked for

    models = published(address)
    again = iter([True, False])

    class Rewritten:
        """The bucket, in which the version is written again between its listing and its reading."""

        def __getattr__(self, name: str):
            return getattr(open_models(place(address, "here")), name)

        def files(self, version: str):
            found = list(open_models(place(address, "here")).files(version))
            if next(again):
                models.write(SLOT, manifest=b"second", wrapped_key=b"key", files={"model.onnx": iter([b"new"])})
            yield from found

    with write_backup(tmp_path / "backup", passed=lambda _: None) as writing:
        _copy_models(writing, Rewritten())
        partial = tmp_path / ".partial-backup" / "models" / "acme" / "digits" / "1"
        assert (partial / MANIFEST).read_bytes() == b"second"
        assert (partial / "files" / "model.onnx.sealed").read_bytes() == b"new"
        assert [part.path for part in writing.parts].count(f"models/acme/digits/1/{MANIFEST}") == 1


def test_a_store_that_does_not_answer_is_no_empty_one(store):
    gone = open_models(Bucket(url="s3://here/production", endpoint="http://127.0.0.1:9"))
    with pytest.raises(Unavailable):
        gone.versions()
    with pytest.raises(Unavailable):
        gone.is_empty()


def test_the_bucket_is_found_by_inferences_own_settings(house, tmp_path):
    told = environment(house, tmp_path / "told") | {
        "CASEMATE_INFERENCE_REPOSITORY_DIR": "s3://here/production",
        "CASEMATE_INFERENCE_REPOSITORY_ENDPOINT": "https://store.example:9000",
    }
    told = {name: value for name, value in told.items() if name.startswith("CASEMATE_")}
    places = Places.of(dict.fromkeys(("auth", "datasets", "inference"), told), authority=None, pki=None)
    assert places.repository == Bucket(url="s3://here/production", endpoint="https://store.example:9000")
