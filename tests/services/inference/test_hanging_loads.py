"""A version whose load does not end holds up nobody but itself, and is told of."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from casemate.errors import CasemateError, Code, FailedPrecondition, NotFound, Reason, Unavailable
from casemate.gate.core.records import Release
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.loads import Loads
from services.inference.repository import Repository, Slot
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, SERVING, TENANT, House, grant, signer
from tests.services.inference.identity import identity
from tests.services.inference.test_queue_on_the_wire import until
from tests.support.authority import LeafFactory

AT_ONCE = timedelta(seconds=0.2)
SLOT = Slot("acme", "stuck", 1)


class Stuck(Repository):
    """A disk that does not answer for one model until it is told to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.model = ""
        self.go = threading.Event()
        self.hangs = threading.Semaphore(0)

    def open(self, slot: Slot):
        if slot.model == self.model:
            self.hangs.release()
            assert self.go.wait(2 * PATIENCE)
        return super().open(slot)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Stuck]:
    disk = Stuck(tmp_path / "repository")
    yield disk
    disk.go.set()


@pytest.fixture
def house(tmp_path: Path, leaf: LeafFactory, digits: Digits, disk: Stuck) -> Iterator[House]:
    """Of two published models; the one that comes first by name may be stuck."""
    house = House(
        directory=tmp_path, leaf=leaf, store=disk, serving=dataclasses.replace(SERVING, load_patience=AT_ONCE)
    )
    house.publish({"model.onnx": identity("FP32", shape=(None, 4))}, model="a-stuck-one")
    house.publish({"model.onnx": digits.onnx})
    yield house
    disk.go.set()
    house.close()


def states(house: House) -> dict[str, str]:
    index = house.call("RepositoryIndex", wire.RepositoryIndexRequest()).models
    return {model.name: model.state for model in index}


def test_a_load_that_hangs_lets_the_other_models_load_is_told_of_and_is_served_when_it_ends(
    house: House, disk: Stuck, digits: Digits, caplog: pytest.LogCaptureFixture
) -> None:
    disk.model = "a-stuck-one"
    house.service = house.serve()
    assert house.predict(digits.images) == digits.labels.tolist()
    assert states(house) == {"a-stuck-one": "LOADING", "digits": "READY"}
    assert not house.call("ServerReady", wire.ServerReadyRequest()).ready
    assert b"casemate_inference_loads_overdue 1.0" in house.metrics.exposition()
    assert any("has not ended within 0.2 s" in record.getMessage() for record in caplog.records)
    with pytest.raises(FailedPrecondition):
        house.call("ModelMetadata", wire.ModelMetadataRequest(name="a-stuck-one"))
    disk.go.set()
    until(lambda: states(house)["a-stuck-one"] == "READY")
    until(lambda: house.call("ServerReady", wire.ServerReadyRequest()).ready)  # in the next round, which begins at once
    assert b"casemate_inference_loads_overdue 1.0" not in house.metrics.exposition()


def compromised(house: House) -> object:
    recorded_at = house.trust.state.current.releases[TENANT, "digits"].versions[0].recorded_at
    return signer(house.publisher, compromised_since=recorded_at)


def replaced(house: House) -> object:
    release = house.trust.state.current.releases[TENANT, "digits"]
    other = dataclasses.replace(release.versions[0], manifest_sha256=bytes(32))
    return dataclasses.replace(release, versions=(other,))


MOVES = {
    "another manifest has its number": (replaced, Code.FAILED_PRECONDITION),
    "its publisher was compromised": (compromised, Code.FAILED_PRECONDITION),
    "it was withdrawn": (lambda _house: Release(tenant=TENANT, model="digits"), Code.NOT_FOUND),
    "nothing that concerns it": (lambda _house: grant("t/acme/other", "infer"), None),
}


@pytest.mark.parametrize(("move", "code"), MOVES.values(), ids=MOVES)
def test_trust_that_moves_while_a_version_is_read_is_asked_again(
    house: House, disk: Stuck, digits: Digits, move: Callable[[House], object], code: Code | None
) -> None:
    loader = house.service.watcher._loader
    build = loader._build

    def slowly(*arguments: Any) -> Any:  # by now its signature and its digests were found good
        disk.hangs.release()
        assert disk.go.wait(2 * PATIENCE)
        return build(*arguments)

    loader._build = slowly
    with ThreadPoolExecutor(1) as pool:
        reloading = pool.submit(house.reload, 1)
        assert disk.hangs.acquire(timeout=PATIENCE)  # it was trusted when it began
        house.trust.change(move(house))
        disk.go.set()
        if code is None:
            assert reloading.result(PATIENCE).number == 1
            assert house.predict(digits.images) == digits.labels.tolist()
            return
        with pytest.raises(FailedPrecondition) as refused:
            reloading.result(PATIENCE)
    assert refused.value.reason is Reason.MODEL_REFUSED
    with pytest.raises(CasemateError) as caught:
        house.predict(digits.images)
    assert caught.value.code is code


def test_a_model_that_was_taken_out_while_it_was_read_stays_out_until_it_is_loaded_on_purpose(
    house: House, disk: Stuck, digits: Digits
) -> None:
    disk.model = "digits"
    house.service = house.serve()
    house.call("RepositoryModelUnload", wire.RepositoryModelUnloadRequest(model_name="digits"), caller=house.trainer)
    disk.go.set()
    until(lambda: not house.service.watcher.overdue)
    with pytest.raises(FailedPrecondition):
        house.predict(digits.images)
    house.call("RepositoryModelLoad", wire.RepositoryModelLoadRequest(model_name="digits"), caller=house.trainer)
    assert house.predict(digits.images) == digits.labels.tolist()


def test_a_service_ends_though_a_load_hangs(house: House, disk: Stuck) -> None:
    disk.model = "a-stuck-one"
    service = house.serve()
    house._closing.remove(service.stop)
    assert service.watcher.overdue == {Slot("acme", "a-stuck-one", 1)}
    ending = threading.Thread(target=service.stop, daemon=True)
    ending.start()
    ending.join(PATIENCE)
    assert not ending.is_alive()


def test_who_asks_for_a_load_that_hangs_is_let_go_and_no_second_one_begins() -> None:
    go, begun, ended = threading.Event(), threading.Semaphore(0), threading.Event()
    told: list[Slot] = []

    def load(slot: Slot, _on_purpose: bool) -> None:  # noqa: FBT001
        begun.release()
        assert go.wait(PATIENCE)
        told.append(slot)

    loads = Loads(load, patience=timedelta(0), late=ended.set)
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            loads.run(SLOT, on_purpose=True, within=timedelta(seconds=0.05))
        assert caught.value.code is Code.UNAVAILABLE
    assert begun.acquire(timeout=PATIENCE)
    assert not begun.acquire(blocking=False)
    assert loads.overdue == {SLOT}
    go.set()
    assert ended.wait(PATIENCE)
    assert told == [SLOT]
    assert not loads.overdue
    loads.run(SLOT, on_purpose=True, within=timedelta(seconds=PATIENCE))
    assert told == [SLOT, SLOT]  # what had ended is loaded anew


def test_a_load_that_fails_in_time_says_so_to_whoever_asked() -> None:
    def load(_slot: Slot, _on_purpose: bool) -> None:  # noqa: FBT001
        raise NotFound("gone")

    loads = Loads(load, patience=timedelta(seconds=PATIENCE), late=lambda: None)
    with pytest.raises(NotFound):
        loads.run(SLOT, on_purpose=False, within=timedelta(seconds=PATIENCE))
