"""Models in S3: moto's server, met by the real client."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from casemate.errors import AlreadyExists, CasemateError, Code, Reason, Unavailable
from services.inference.object_repository import (
    ObjectPlace,
    ObjectRepository,
    endpoint,
    object_place,
    open_object_repository,
)
from services.inference.repository import MANIFEST, NotStored, Slot
from services.inference.settings import repository_place
from tests.services.inference.conftest import Digits
from tests.services.inference.house import TENANT, House
from tests.support.authority import LeafFactory

MOTO = Path(__file__).parents[2] / "support" / "moto_process.py"
SLOT = Slot(TENANT, "digits", 1)
BUCKET = "sealed-models"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where moto's server listens."""
    with subprocess.Popen([sys.executable, MOTO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        server.stdin.close()
        server.wait(30)


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> s3fs.S3FileSystem:
    """An empty bucket, seen by a client of its own; credentials come as they do in production."""
    for name, value in {"ACCESS_KEY_ID": "test", "SECRET_ACCESS_KEY": "test", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    store = s3fs.S3FileSystem(endpoint_url=address, use_listings_cache=False, skip_instance_cache=True)
    if store.exists(BUCKET):
        store.rm(BUCKET, recursive=True)
    store.mkdir(BUCKET)
    return store


@pytest.fixture
def repository(address: str, bucket: s3fs.S3FileSystem) -> ObjectRepository:
    return open_object_repository(ObjectPlace(f"s3://{BUCKET}/house"), address=address)


def write(repository: ObjectRepository, content: bytes = b"sealed") -> None:
    files = {"model.onnx": iter([content[:3], content[3:]])}
    repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files=files)


def read(repository: ObjectRepository, limit: int = 100) -> bytes:
    with repository.open(SLOT) as stored:
        assert stored.read(MANIFEST, limit=10) == b"{}"
        return stored.read("files", "model.onnx.sealed", limit=limit)


def objects(bucket: s3fs.S3FileSystem) -> list[str]:
    return sorted(bucket.find(BUCKET))


def test_what_was_written_is_read_back(repository: ObjectRepository) -> None:
    with pytest.raises(NotStored), repository.open(SLOT):
        pass
    write(repository)
    assert read(repository) == b"sealed"


def test_a_second_write_replaces_the_first_whole_and_removes_it(
    repository: ObjectRepository, bucket: s3fs.S3FileSystem
) -> None:
    write(repository)
    before = objects(bucket)
    write(repository, b"sealed again")
    assert read(repository) == b"sealed again"
    assert len(objects(bucket)) == len(before) == 4


def test_a_reader_never_sees_two_writes_mixed(repository: ObjectRepository) -> None:
    write(repository)
    with repository.open(SLOT) as stored:
        write(repository, b"sealed again")
        with pytest.raises(NotStored):
            stored.read("files", "model.onnx.sealed", limit=100)
    assert read(repository) == b"sealed again"


def test_an_interrupted_write_leaves_what_was_there(repository: ObjectRepository) -> None:
    write(repository)

    def failing() -> Iterator[bytes]:
        yield b"part"
        raise OSError("disk full")

    with pytest.raises(CasemateError):
        repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": failing()})
    assert read(repository) == b"sealed"


def test_what_may_not_take_its_place_after_all_leaves_what_was_there(
    repository: ObjectRepository, bucket: s3fs.S3FileSystem
) -> None:
    write(repository)
    before = bucket.find(f"{BUCKET}/house")

    def late() -> None:
        raise AlreadyExists("another was first")

    with pytest.raises(AlreadyExists):
        repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": [b"other"]}, still=late)
    assert read(repository) == b"sealed"
    bucket.invalidate_cache()
    assert bucket.find(f"{BUCKET}/house") == before


def test_an_object_longer_than_it_may_be_is_refused(repository: ObjectRepository) -> None:
    write(repository)
    with pytest.raises(NotStored):
        read(repository, limit=5)
    assert read(repository, limit=6) == b"sealed"


@pytest.mark.parametrize("name", [b"../../other", b"", b"x" * 1000, b"\xff" * 32])
def test_a_pointer_that_names_no_folder_of_ours_is_refused(
    repository: ObjectRepository, bucket: s3fs.S3FileSystem, name: bytes
) -> None:
    write(repository)
    pointer = f"{BUCKET}/house/acme/digits/1/current"
    right = bucket.cat_file(pointer)
    bucket.pipe_file(pointer, name)
    with pytest.raises(NotStored) if name else pytest.raises(CasemateError), repository.open(SLOT):
        pass
    bucket.pipe_file(pointer, right)
    assert read(repository) == b"sealed"


def test_a_store_that_does_not_answer_is_unavailable_and_not_absent(
    bucket: s3fs.S3FileSystem, repository: ObjectRepository
) -> None:
    gone = open_object_repository(ObjectPlace(f"s3://{BUCKET}"), address="http://127.0.0.1:9")
    with pytest.raises(Unavailable), gone.open(SLOT):
        pass
    with pytest.raises(NotStored), repository.open(SLOT):
        pass


def test_a_replica_serves_from_the_bucket_what_another_published_and_nothing_that_changed_there(
    repository: ObjectRepository, bucket: s3fs.S3FileSystem, tmp_path: Path, leaf: LeafFactory, digits: Digits
) -> None:
    house = House(directory=tmp_path, leaf=leaf, store=repository)
    try:
        house.publish({"model.onnx": digits.onnx})
        replica = house.serve()
        assert replica.catalogue.find(TENANT, "digits", "").slot == SLOT
        assert not house.repository.exists()
        sealed = next(name for name in objects(bucket) if name.endswith("model.onnx.sealed"))
        right = bucket.cat_file(sealed)
        assert digits.onnx[:64] not in right
        bucket.pipe_file(sealed, right[:-1] + bytes([right[-1] ^ 1]))
        with pytest.raises(CasemateError) as caught:
            house.reload()
        assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, Reason.MODEL_REFUSED)
        assert house.predict(digits.images) == digits.labels.tolist()
        bucket.pipe_file(sealed, right)
        assert house.reload().number == 1
    finally:
        house.close()


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("s3://bucket/path", False),
        ("s3://bucket", False),
        ("s3://Bucket", True),
        ("s3://bucket/../x y", True),
        ("s3://", True),
        ("s3:///path", True),
    ],
)
def test_a_bucket_is_named_as_one(text: str, refused: bool) -> None:  # noqa: FBT001  # a parameter
    if refused:
        with pytest.raises(ValueError, match="s3://bucket/path"):
            repository_place(text)
    else:
        assert repository_place(text) == object_place(text) == ObjectPlace(text)


def test_a_folder_is_still_a_folder() -> None:
    assert repository_place("/var/lib/models") == Path("/var/lib/models")


@pytest.mark.parametrize("text", ["http://s3.example:9000", "http://localhost:9000", "ftp://127.0.0.1", "s3.example"])
def test_an_endpoint_is_reached_by_tls_or_on_this_machine(text: str) -> None:
    with pytest.raises(ValueError, match="https"):
        endpoint(text)
    for allowed in ("https://s3.example:9000", "http://127.0.0.1:9000", "http://[::1]:9000"):
        assert endpoint(allowed) == allowed
