"""Two who publish the same number at once: one of them is served, and what it stored is its own."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casemate.errors import AlreadyExists, Unavailable
from services.inference.repository import Repository, Slot
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, House
from tests.support.authority import LeafFactory


class FirstWaits(Repository):
    """A disk on which the first version to be written takes as long as the test says."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.begun, self.go = threading.Event(), threading.Event()

    def write(self, slot: Slot, **parts: object) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.go.wait(PATIENCE)
        super().write(slot, **parts)


def test_an_upload_that_was_still_being_sealed_does_not_take_the_place_of_one_that_was_released(
    tmp_path: Path, leaf: LeafFactory, digits: Digits
) -> None:
    store = FirstWaits(tmp_path / "repository")
    house = House(directory=tmp_path, leaf=leaf, store=store)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(house.publish, {"model.onnx": digits.onnx, "notes.txt": b"slow"})
        assert store.begun.wait(PATIENCE)
        house.publish({"model.onnx": digits.onnx, "notes.txt": b"quick"})
        store.go.set()
        with pytest.raises(AlreadyExists):
            slow.result(PATIENCE)
    assert house.reload().number == 1
    assert house.predict(digits.images) == digits.labels.tolist()
    house.close()


class FullAtFirst(Repository):
    """A disk that takes nothing, until there is room."""

    full = True

    def write(self, slot: Slot, **parts: object) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(slot, **parts)


def test_a_full_disk_is_unavailable_and_nothing_is_released_until_there_is_room(
    tmp_path: Path, leaf: LeafFactory, digits: Digits
) -> None:
    store = FullAtFirst(tmp_path / "repository")
    house = House(directory=tmp_path, leaf=leaf, store=store)
    envelope = house.manifest({"model.onnx": digits.onnx})
    with pytest.raises(Unavailable):
        house.publish({"model.onnx": digits.onnx}, envelope=envelope)
    assert not house.auth.recorded
    store.full = False
    house.publish({"model.onnx": digits.onnx}, envelope=envelope)
    assert house.predict(digits.images) == digits.labels.tolist()
    house.close()


def test_one_whose_place_was_taken_in_the_moment_before_its_release_takes_it_back(house: House, digits: Digits) -> None:
    house.auth.tells.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(house.publish, {"model.onnx": digits.onnx, "notes.txt": b"first"})
        assert house.auth.claims.acquire(timeout=PATIENCE)  # it is stored and recorded, and the feed has not said so
        with pytest.raises(AlreadyExists):
            house.publish({"model.onnx": digits.onnx, "notes.txt": b"second"})
        house.auth.tells.set()
        assert first.result(PATIENCE).number == 1
    assert house.reload().number == 1
    assert house.predict(digits.images) == digits.labels.tolist()
