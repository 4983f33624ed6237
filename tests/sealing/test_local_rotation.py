"""A local ring that several rotate at once, that another user owns, or that lies behind a link."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.sealing.keys import DataKey, KeyContext
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import alone_with, rewrite_file

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    LocalKeyRing.create(tmp_path / "kek.json")
    return tmp_path / "kek.json"


async def test_rotations_at_once_each_add_a_version_and_none_loses_anothers_key(path: Path) -> None:
    """What was wrapped under any of the rings that they returned opens from the file."""
    together = threading.Barrier(8)
    rings: list[LocalKeyRing] = []

    def rotate() -> None:
        together.wait()
        rings.append(LocalKeyRing.rotate(path))

    threads = [threading.Thread(target=rotate) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    final = LocalKeyRing.load(path)
    assert sorted(ring.describe().current_version for ring in rings) == list(range(2, 10))
    assert final.describe().current_version == 9
    for ring in rings:
        key, wrapped = await ring.generate_data_key(CONTEXT)
        assert await final.unwrap(wrapped, CONTEXT) == key


def test_a_rotation_waits_for_one_that_is_under_way(path: Path) -> None:
    """The one that holds the folder writes version 2 after the other has begun; that becomes version 3."""
    kept = path.read_bytes()
    with alone_with(path):
        other = threading.Thread(target=LocalKeyRing.rotate, args=(path,))
        other.start()
        document = json.loads(kept)
        document["versions"]["2"] = document["versions"]["1"]
        rewrite_file(path, json.dumps(document).encode())
    other.join()
    versions = json.loads(path.read_bytes())["versions"]
    assert sorted(versions) == ["1", "2", "3"]
    assert versions["2"] == document["versions"]["2"]


def test_of_two_operators_who_saw_one_version_the_second_is_told(path: Path) -> None:
    """And one who looks again rotates."""
    LocalKeyRing.rotate(path, after=1)
    with pytest.raises(ConfigurationError, match="somebody else rotated it"):
        LocalKeyRing.rotate(path, after=1)
    assert LocalKeyRing.rotate(path, after=2).describe().current_version == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_rotation_leaves_the_file_to_its_owner(path: Path) -> None:
    """Root rotates; the service, which is not root, reads on."""
    os.chown(path, NOBODY, NOBODY)
    path.chmod(0o400)
    LocalKeyRing.rotate(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (NOBODY, NOBODY, 0o400)


def test_rotation_behind_a_link_changes_what_the_link_names(path: Path, tmp_path: Path) -> None:
    """Otherwise the service that reads the real file never hears of the new version."""
    link = tmp_path / "elsewhere" / "kek.json"
    link.parent.mkdir()
    link.symlink_to(path)
    LocalKeyRing.rotate(link)
    assert link.is_symlink()
    assert LocalKeyRing.load(path).describe().current_version == 2
    assert [entry.name for entry in link.parent.iterdir()] == ["kek.json"]


def _with_versions(path: Path, *numbers: str) -> None:
    document = json.loads(path.read_bytes())
    document["versions"] = dict.fromkeys(numbers, next(iter(document["versions"].values())))
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("numbers", [("4294967296",), ("0", "1"), ("-1",), ("1", "01")], ids=str)
def test_ring_with_a_number_that_no_wrap_can_carry_is_refused(path: Path, numbers: tuple[str, ...]) -> None:
    """At the start and not at the first wrap; the twin is the highest number."""
    _with_versions(path, *numbers)
    with pytest.raises(ConfigurationError, match="not a key ring"):
        LocalKeyRing.load(path)
    _with_versions(path, "4294967295")
    LocalKeyRing.load(path)
    with pytest.raises(ConfigurationError, match="no version number left"):
        LocalKeyRing.rotate(path)


def test_document_that_is_nested_without_end_is_no_ring(path: Path) -> None:
    """Typed, as every other wrong file."""
    path.write_bytes(b"[" * 60_000)
    with pytest.raises(ConfigurationError, match="not a key ring"):
        LocalKeyRing.load(path)


async def test_no_local_of_a_failed_wrap_holds_the_key(path: Path) -> None:
    """A name that is no text fails in the middle of it; see also what KMS does."""
    from tests.sealing.frames import require_no_local_holds

    key = DataKey.generate()
    unfit = KeyContext(purpose="p", tenant="t", name="\udcff", version=1)
    with pytest.raises(UnicodeEncodeError) as failed:
        await LocalKeyRing.load(path).wrap(key, unfit)
    require_no_local_holds(failed.value, key.reveal())
