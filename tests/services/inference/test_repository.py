"""What lies in the repository, and what is not followed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from casemate.errors import AlreadyExists, Reason
from services.inference.repository import FILES, MANIFEST, NotStored, Repository, Slot

SLOT = Slot("acme", "digits", 1)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


def write(repository: Repository, content: bytes = b"sealed", slot: Slot = SLOT) -> None:
    repository.write(slot, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": iter((content[:2], content[2:]))})


def read(repository: Repository, limit: int = 100) -> bytes:
    with repository.open(SLOT) as stored:
        return stored.read(FILES, "model.onnx.sealed", limit=limit)


def place(tmp_path: Path) -> Path:
    return tmp_path / "repository" / "acme" / "digits" / "1"


def test_what_was_written_is_read_back_and_nothing_else_is_left(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    assert read(repository) == b"sealed"
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["acme"]
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "repository").rglob("*")}
    assert modes == {0}


def test_a_second_write_replaces_the_directory_whole(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    (place(tmp_path) / "stray").touch()
    write(repository, b"newer")
    assert sorted(path.name for path in place(tmp_path).iterdir()) == [FILES, "key.wrapped", MANIFEST]
    assert read(repository) == b"newer"
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["acme"]


def test_an_interrupted_write_leaves_what_was_there(repository: Repository, tmp_path: Path) -> None:
    write(repository)

    def failing():
        yield b"part"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": failing()})
    assert read(repository) == b"sealed"
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["acme"]


def test_what_may_not_take_its_place_after_all_leaves_what_was_there(repository: Repository, tmp_path: Path) -> None:
    write(repository)

    def late() -> None:
        raise AlreadyExists("another was first")

    with pytest.raises(AlreadyExists):
        repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": [b"other"]}, still=late)
    assert read(repository) == b"sealed"
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["acme"]
    repository.write(SLOT, manifest=b"{}", wrapped_key=b"key", files={"model.onnx": [b"other"]})
    assert read(repository) == b"other"


@pytest.mark.parametrize("target", [f"{FILES}/model.onnx.sealed", FILES, "."])
def test_a_link_anywhere_on_the_way_is_refused_and_the_thing_itself_is_read(
    repository: Repository, tmp_path: Path, target: str
) -> None:
    write(repository)
    path = Path(os.path.normpath(place(tmp_path) / target))
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    with pytest.raises(NotStored) as caught:
        read(repository)
    assert caught.value.reason is Reason.MODEL_REFUSED
    path.unlink()
    moved.rename(path)
    assert read(repository) == b"sealed"


def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    file = place(tmp_path) / FILES / "model.onnx.sealed"
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(NotStored):
        read(repository)


def test_a_folder_in_place_of_a_file_is_refused(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    file = place(tmp_path) / FILES / "model.onnx.sealed"
    file.unlink()
    file.mkdir()
    with pytest.raises(NotStored):
        read(repository)


def test_what_a_killed_writer_left_is_swept_and_what_is_young_is_not(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    old, young = (tmp_path / "repository" / f".staging-{name}" for name in ("old", "young"))
    for directory in (old, young):
        directory.mkdir()
    os.utime(old, (0, 0))
    Repository(tmp_path / "repository")
    assert (old.exists(), young.exists()) == (False, True)
    assert read(repository) == b"sealed"


def test_a_file_longer_than_it_may_be_is_refused(repository: Repository) -> None:
    write(repository)
    with pytest.raises(NotStored):
        read(repository, limit=5)
    assert read(repository, limit=6) == b"sealed"


def test_an_absent_version_is_refused(repository: Repository, tmp_path: Path) -> None:
    write(repository)
    shutil.rmtree(place(tmp_path))
    with pytest.raises(NotStored):
        read(repository)


@pytest.mark.parametrize(
    ("tenant", "model", "number"),
    [("..", "digits", 1), ("acme", "../acme", 1), ("acme", ".hidden", 1), ("acme", "", 1), ("acme", "digits", 0)],
)
def test_a_name_that_is_no_path_component_makes_no_slot(tenant: str, model: str, number: int) -> None:
    with pytest.raises(NotStored):
        Slot(tenant, model, number)
