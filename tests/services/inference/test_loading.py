"""Only what was signed and released runs, byte for byte; what runs stays while anything else is refused."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casemate.errors import CasemateError, Code, NotFound, Reason
from casemate.gate.core.records import Release
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.signing.keys import SigningKey
from services.inference.batcher import Batcher
from services.inference.loader import VerifiedModel
from services.inference.repository import Slot
from services.inference.single_flight import SingleFlight
from services.inference.version_policy import version_policies
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, SERVING, TENANT, House, signer
from tests.support.authority import LeafFactory

REFUSED = (Code.FAILED_PRECONDITION, Reason.MODEL_REFUSED)
SEALED = "files/model.onnx.sealed"
EXPIRES_AT = datetime.now(UTC) + timedelta(hours=1)


def refusal(ask: Callable[[], object]) -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        ask()
    return caught.value.code, caught.value.reason


def failures(house: House) -> float:
    return house.metrics.value("integrity_failures_total")


def flip(path: Path, position: float) -> None:
    """Flips one bit at a fraction of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(position * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", [SEALED, "manifest.dsse.json", "key.wrapped"])
@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_one_flipped_bit_refuses_the_reload_and_the_running_version_answers(
    house: House, digits: Digits, name: str, position: float
) -> None:
    house.publish({"model.onnx": digits.onnx})
    flip(house.stored() / name, position)
    assert refusal(house.reload) == REFUSED
    assert failures(house) == 1
    assert house.predict(digits.images) == digits.labels.tolist()
    flip(house.stored() / name, position)
    assert house.reload().number == 1
    assert failures(house) == 1


@pytest.mark.parametrize("name", [SEALED, "manifest.dsse.json", "key.wrapped", "files", "."])
def test_a_link_is_refused_and_the_same_bytes_in_place_are_not(house: House, digits: Digits, name: str) -> None:
    house.publish({"model.onnx": digits.onnx})
    path, elsewhere = house.stored() / name, house.repository.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert refusal(house.reload) == REFUSED
    assert house.predict(digits.images) == digits.labels.tolist()
    path.unlink()
    elsewhere.rename(path)
    assert house.reload().number == 1


@pytest.mark.parametrize("name", [SEALED, "files", "manifest.dsse.json", "key.wrapped", "."])
def test_anything_of_an_older_version_in_a_newer_ones_place_is_refused(house: House, digits: Digits, name: str) -> None:
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": digits.onnx}, number=2)
    old, new = house.stored(1) / name, house.stored(2) / name
    kept = house.repository.parent / "kept"
    new.rename(kept)
    (shutil.copytree if old.is_dir() else shutil.copy)(old, new)
    assert refusal(lambda: house.reload(2)) == REFUSED
    assert house.service.catalogue.entry((TENANT, "digits")).current == 2
    shutil.rmtree(new) if new.is_dir() else new.unlink()
    kept.rename(new)
    assert house.reload(2).number == 2


def stored_instead(house: House, digits: Digits, key: SigningKey, notes: bytes) -> None:
    """Puts another signed manifest of the released number into the repository, sealed as ours are."""
    files = {"model.onnx": digits.onnx, "notes.txt": notes}
    envelope = house.manifest(files, expires_at=EXPIRES_AT, key=key)
    house.service.publishing._vault.store(Slot(TENANT, "digits", 1), manifest=envelope, files=files)


def test_a_manifest_of_the_same_number_that_was_not_released_is_refused_and_so_is_another_publishers_signature(
    house: House, digits: Digits
) -> None:
    """By whoever can write to the repository and seal. It is told of as changed bytes are."""
    another = SigningKey.generate()
    house.trust.change(signer(another))
    files = {"model.onnx": digits.onnx, "notes.txt": b"released"}
    house.publish(files, envelope=house.manifest(files, expires_at=EXPIRES_AT))
    before = failures(house)
    for count, (key, notes) in enumerate([(house.publisher, b"not released"), (another, b"released")], 1):
        stored_instead(house, digits, key, notes)
        assert refusal(house.reload) == REFUSED
        assert failures(house) == before + count
    stored_instead(house, digits, house.publisher, b"released")
    assert house.reload().number == 1
    assert failures(house) == before + 2


def test_a_version_that_lies_in_the_repository_and_was_never_released_is_not_served(
    house: House, digits: Digits
) -> None:
    house.publish({"model.onnx": digits.onnx})
    shutil.copytree(house.stored(1), house.stored(2))
    replica = house.serve()
    assert refusal(lambda: house.reload(2)) == (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    assert refusal(lambda: house.predict(digits.images, "2")) == (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    index = house.call("RepositoryIndex", wire.RepositoryIndexRequest())
    assert [model.version for model in index.models] == ["1"]
    assert sorted(replica.catalogue.entry((TENANT, "digits")).versions) == [1]


def test_a_replica_loads_what_the_feed_names(house: House, digits: Digits) -> None:
    replica = house.serve()
    assert not replica.catalogue.models()
    house.publish({"model.onnx": digits.onnx})
    replica.watcher.reconcile()
    assert replica.catalogue.find(TENANT, "digits", "").slot == Slot(TENANT, "digits", 1)
    assert replica.watcher.complete


def test_a_spoiled_newest_version_does_not_bring_an_older_one_back(house: House, digits: Digits) -> None:
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": digits.onnx}, number=2)
    flip(house.stored(2) / SEALED, 0.5)
    house.service = house.serve()
    assert not house.service.watcher.complete
    assert refusal(lambda: house.predict(digits.images)) == (Code.FAILED_PRECONDITION, Reason.MODEL_NOT_READY)
    assert house.predict(digits.images, "1") == digits.labels.tolist()
    flip(house.stored(2) / SEALED, 0.5)
    house.reload()
    assert house.predict(digits.images) == digits.labels.tolist()


def test_what_a_publisher_signed_since_its_compromise_is_unloaded(house: House, digits: Digits) -> None:
    house.publish({"model.onnx": digits.onnx})
    recorded_at = house.trust.state.current.releases[TENANT, "digits"].versions[0].recorded_at
    house.trust.change(signer(house.publisher, compromised_since=recorded_at + timedelta(microseconds=1)))
    house.service.watcher.reconcile()
    assert house.predict(digits.images) == digits.labels.tolist()
    house.trust.change(signer(house.publisher, compromised_since=recorded_at))
    house.service.watcher.reconcile()
    assert refusal(lambda: house.predict(digits.images)) == (Code.FAILED_PRECONDITION, Reason.MODEL_NOT_READY)
    assert refusal(lambda: house.reload(1)) == REFUSED
    assert refusal(house.reload) == REFUSED


def test_what_runs_stays_until_a_successor_is_loaded(tmp_path: Path, leaf: LeafFactory, digits: Digits) -> None:
    house = House(directory=tmp_path, leaf=leaf, serving=replace(SERVING, versions=version_policies("latest:1")))
    key = (TENANT, "digits")
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": digits.onnx}, number=2)
    house.service.watcher.reconcile()
    assert sorted(house.service.catalogue.entry(key).versions) == [2]
    released = house.trust.state.current.releases[key].versions[1]
    house.trust.release(*key, replace(released, number=3, manifest_sha256=bytes(32)))
    house.service.watcher.reconcile()
    assert sorted(house.service.catalogue.entry(key).versions) == [2]
    assert not house.service.watcher.complete
    assert house.predict(digits.images) == digits.labels.tolist()
    house.close()


def test_a_release_that_is_withdrawn_is_unloaded_and_what_waits_for_it_is_ended(
    house: House, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin is a version that newer ones supersede: what waits for that is served."""
    ended: list[Batcher] = []
    withdraw = Batcher.withdraw

    def noted(batcher: Batcher) -> None:
        ended.append(batcher)
        withdraw(batcher)

    monkeypatch.setattr(Batcher, "withdraw", noted)
    for number in (1, 2, 3):
        house.publish({"model.onnx": digits.onnx}, number=number)
    house.service.watcher.reconcile()
    entry = house.service.catalogue.entry((TENANT, "digits"))
    assert (sorted(entry.versions), ended) == ([2, 3], [])
    house.trust.change(Release(tenant=TENANT, model="digits"))
    house.service.watcher.reconcile()
    assert refusal(lambda: house.predict(digits.images)) == (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    assert ended == [entry.versions[number].batcher for number in (2, 3)]


def test_the_newest_versions_and_the_labelled_one_stay_loaded(house: House, digits: Digits) -> None:
    for number in (1, 2, 3):
        house.publish({"model.onnx": digits.onnx}, number=number)
    house.service.watcher.reconcile()
    entry = house.service.catalogue.entry((TENANT, "digits"))
    assert (entry.current, sorted(entry.versions)) == (3, [2, 3])
    house.reload(1)
    house.service.watcher.reconcile()
    assert sorted(house.service.catalogue.entry((TENANT, "digits")).versions) == [1, 2, 3]
    release = house.trust.state.current.releases[TENANT, "digits"]
    house.trust.change(Release(tenant=TENANT, model="digits", versions=release.versions, labels={"stable": 1}))
    replica = house.serve()
    assert sorted(replica.catalogue.entry((TENANT, "digits")).versions) == [1, 2, 3]
    assert replica.catalogue.find(TENANT, "digits", "stable").slot.number == 1
    assert refusal(lambda: replica.catalogue.find(TENANT, "digits", "canary"))[0] is Code.NOT_FOUND
    house.trust.change(Release(tenant=TENANT, model="digits", versions=release.versions))
    later = house.serve()
    assert sorted(later.catalogue.entry((TENANT, "digits")).versions) == [2, 3]
    with pytest.raises(CasemateError) as caught:
        later.catalogue.find(TENANT, "digits", "1")
    assert caught.value.reason is Reason.MODEL_NOT_READY


def test_a_manifest_that_could_no_longer_be_published_still_loads(house: House, digits: Digits) -> None:
    expires_at = datetime.now(UTC) + timedelta(seconds=32)
    assert refusal(
        lambda: house.publish({"model.onnx": digits.onnx}, expires_at=expires_at - timedelta(seconds=10))
    ) == (
        Code.INVALID_ARGUMENT,
        Reason.MANIFEST_INVALID,
    )
    house.publish({"model.onnx": digits.onnx}, expires_at=expires_at)
    release = house.trust.state.current.releases[TENANT, "digits"].versions[0]
    assert release.recorded_at < expires_at
    assert house.reload().number == 1


def test_a_verified_model_is_made_by_the_loader_alone() -> None:
    with pytest.raises(TypeError):
        VerifiedModel(Slot(TENANT, "digits", 1), object(), b"", "", {}, object())


def test_one_load_at_a_time_serves_all_who_ask() -> None:
    flights: SingleFlight[int] = SingleFlight()
    begun, go_on, results = threading.Event(), threading.Event(), []
    calls = []

    def load() -> int:
        calls.append(1)
        begun.set()
        assert go_on.wait(PATIENCE)
        return len(calls)

    first = threading.Thread(target=lambda: results.append(flights.call("key", load)))
    first.start()
    assert begun.wait(PATIENCE)
    others = [threading.Thread(target=lambda: results.append(flights.call("key", load))) for _ in range(4)]
    for thread in others:
        thread.start()
    assert flights.call("other", lambda: 7) == 7
    go_on.set()
    for thread in (first, *others):
        thread.join(PATIENCE)
    assert len(results) == 5
    assert len(calls) == max(results)


def test_a_failed_load_fails_for_all_who_asked_and_the_next_one_is_new() -> None:
    flights: SingleFlight[int] = SingleFlight()

    def fail() -> int:
        raise NotFound

    with pytest.raises(NotFound):
        flights.call("key", fail)
    assert flights.call("key", lambda: 1) == 1
