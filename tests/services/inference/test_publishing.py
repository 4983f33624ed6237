"""What PublishModel takes, and everything that it does not."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from casemate.errors import CasemateError, Code, Reason
from casemate.gate.core.records import Grant
from casemate.inference.v1 import model_service_pb2
from casemate.signing.keys import SigningKey
from services.inference.app import AUDIENCE
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, TENANT, House, pieces, signer
from tests.support.authority import TRUST_DOMAIN


def files(digits: Digits) -> dict[str, bytes]:
    return {"labels.json": b"[0,1,2]", "model.onnx": digits.onnx}


def refusal(house: House, *arguments: object, **options: object) -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        house.publish(*arguments, **options)
    return caught.value.code, caught.value.reason


def is_untouched(house: House) -> bool:
    return not list(house.repository.iterdir()) and not house.auth.recorded and not house.log.entries


def test_a_signed_model_is_sealed_recorded_logged_and_served(house: House, digits: Digits) -> None:
    done = house.publish(files(digits))
    recorded = house.auth.recorded[0]
    assert (recorded.tenant, recorded.model, recorded.version.number) == (TENANT, "digits", 1)
    assert recorded.version.manifest_sha256 == done.manifest_sha256
    assert recorded.version.signer_key_id == house.publisher.public.key_id
    assert house.log.entries[done.log_index] == {
        "dataset_roots": [],
        "kind": "release",
        "manifest_sha256": done.manifest_sha256.hex(),
        "model": "digits",
        "number": 1,
        "signer_key_id": house.publisher.public.key_id,
        "tenant": TENANT,
    }
    assert house.predict(digits.images) == digits.labels.tolist()
    stored = b"".join(path.read_bytes() for path in house.stored().rglob("*") if path.is_file())
    assert b"skl2onnx" in digits.onnx
    assert b"skl2onnx" not in stored


def test_the_next_number_follows_and_becomes_the_one_served(house: House, digits: Digits) -> None:
    house.publish(files(digits))
    assert refusal(house, files(digits), number=3) == (Code.FAILED_PRECONDITION, Reason.CONCURRENT_UPDATE)
    house.publish(files(digits), number=2)
    loaded = house.service.catalogue.entry((TENANT, "digits"))
    assert (loaded.current, sorted(loaded.versions)) == (2, [1, 2])
    assert house.predict(digits.images, "1") == house.predict(digits.images, "2")


def test_a_taken_number_is_refused_and_the_same_manifest_again_is_not(house: House, digits: Digits) -> None:
    envelope = house.manifest(files(digits))
    first = house.publish(files(digits), envelope=envelope)
    before = (house.stored() / "key.wrapped").read_bytes()
    again = house.publish(files(digits), envelope=envelope)
    assert (again.manifest_sha256, again.log_index) == (first.manifest_sha256, first.log_index)
    assert len(house.log.entries) == 1
    assert (house.stored() / "key.wrapped").read_bytes() == before
    with pytest.raises(CasemateError) as caught:
        house.publish({"model.onnx": digits.onnx})
    assert caught.value.code is Code.ALREADY_EXISTS
    said = [violation.description for violation in caught.value.violations]
    assert said == ["number 1 is taken; the next is 2"]


def test_publishing_the_same_manifest_again_repairs_a_spoiled_version(house: House, digits: Digits) -> None:
    envelope = house.manifest(files(digits))
    house.publish(files(digits), envelope=envelope)
    (house.stored() / "key.wrapped").write_bytes(b"spoiled")
    house.publish(files(digits), envelope=envelope)
    assert house.reload().number == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": "datasets.casemate.internal"},
        {"audience": "inference.other.example"},
        {"tenant": "globex"},
        {"model": "letters"},
        {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
    ],
    ids=str,
)
def test_a_manifest_for_somewhere_else_is_refused_and_nothing_is_written(
    house: House, digits: Digits, changes: dict[str, object]
) -> None:
    envelope = house.manifest(files(digits), **changes)
    assert refusal(house, files(digits), envelope=envelope) == (Code.INVALID_ARGUMENT, Reason.MANIFEST_INVALID)
    assert is_untouched(house)
    house.publish(files(digits), audience=f"{AUDIENCE}.{TRUST_DOMAIN}")


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "supplier"},
        {"tenant": "globex"},
        {"valid_until": datetime.now(UTC) - timedelta(minutes=1)},
        {"compromised_since": datetime.now(UTC) - timedelta(minutes=1)},
    ],
    ids=["a-supplier", "another-tenants", "no-longer-valid", "revoked"],
)
def test_a_key_that_is_no_publishers_is_refused_and_a_publishers_is_not(
    house: House, digits: Digits, changes: dict[str, object]
) -> None:
    key = SigningKey.generate()
    assert refusal(house, files(digits), key=key) == (Code.PERMISSION_DENIED, Reason.SIGNER_UNTRUSTED)
    house.trust.change(signer(key, **changes))
    assert refusal(house, files(digits), key=key) == (Code.PERMISSION_DENIED, Reason.SIGNER_UNTRUSTED)
    assert is_untouched(house)
    house.trust.change(signer(key))
    house.publish(files(digits), key=key)


def test_one_changed_byte_in_the_upload_is_refused(house: House, digits: Digits) -> None:
    changed = bytearray(digits.onnx)
    changed[len(changed) // 2] ^= 1
    sent = {**files(digits), "model.onnx": bytes(changed)}
    envelope = house.manifest(files(digits))
    assert refusal(house, sent, envelope=envelope) == (Code.INVALID_ARGUMENT, Reason.DIGEST_MISMATCH)
    assert is_untouched(house)
    house.publish(files(digits), envelope=envelope)


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_byte_too_few_or_too_many_is_refused(house: House, digits: Digits, extra: int) -> None:
    envelope = house.manifest(files(digits))
    model = digits.onnx[:extra] if extra < 0 else digits.onnx + b"x"
    sent = {**files(digits), "model.onnx": model}
    assert refusal(house, sent, envelope=envelope) == (Code.INVALID_ARGUMENT, Reason.DIGEST_MISMATCH)
    assert is_untouched(house)


def test_a_dataset_root_that_is_not_promoted_is_refused_and_a_promoted_one_is_not(house: House, digits: Digits) -> None:
    root = hashlib.sha256(b"root").digest()
    envelope = house.manifest(files(digits), dataset_roots=(root,))
    assert refusal(house, files(digits), envelope=envelope) == (Code.FAILED_PRECONDITION, Reason.DATASET_UNKNOWN)
    assert is_untouched(house)
    house.roots.promoted.add(root)
    house.publish(files(digits), envelope=envelope)


@pytest.mark.parametrize(
    "sent",
    [
        {"model.pkl": b"\x80\x04K\x01."},
        {"labels.json": b"[]"},
        {"model.onnx": b"not onnx"},
        {"model.onnx": b"\x80\x04K\x01."},
        {"model.onnx": b"onnx", "run.py": b"import os"},
        {"model.onnx": b"onnx", "large.txt": bytes(4 * 1024 * 1024)},
    ],
    ids=["pickle", "no-model", "no-onnx", "pickle-as-onnx", "code", "too-large"],
)
def test_what_is_no_servable_model_is_refused_and_nothing_is_written(house: House, sent: dict[str, bytes]) -> None:
    assert refusal(house, sent) == (Code.INVALID_ARGUMENT, Reason.MODEL_INVALID)
    assert is_untouched(house)


def upload_of(*messages: model_service_pb2.PublishModelRequest) -> Iterator[model_service_pb2.PublishModelRequest]:
    return iter(messages)


def test_the_manifest_comes_first_and_only_once(house: House, digits: Digits) -> None:
    envelope = house.manifest(files(digits))
    first = model_service_pb2.PublishModelRequest(model="digits", manifest=envelope)
    data = model_service_pb2.PublishModelRequest(model="digits", data=digits.onnx)
    for messages in [(data,), (first, first), (first, model_service_pb2.PublishModelRequest())]:
        with pytest.raises(CasemateError) as caught:
            house.upload(upload_of(*messages))
        assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert is_untouched(house)


def test_only_who_was_granted_it_publishes(house: House, digits: Digits) -> None:
    assert refusal(house, files(digits), caller=house.caller) == (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    assert is_untouched(house)
    house.publish(files(digits), caller=house.trainer)


def test_uploads_beyond_the_cap_are_told_to_come_back(house: House, digits: Digits) -> None:
    envelope = house.manifest(files(digits))
    begun, go_on = threading.Semaphore(0), threading.Event()

    def waiting() -> Iterator[model_service_pb2.PublishModelRequest]:
        messages = pieces(envelope, files(digits), "digits")
        yield next(messages)
        yield next(messages)
        begun.release()
        go_on.wait(PATIENCE)
        yield from messages

    threads = [threading.Thread(target=lambda: house.upload(waiting())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=PATIENCE)
    try:
        assert_soon_busy(house, digits, envelope)
    finally:
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert house.publish(files(digits), envelope=envelope).number == 1


def assert_soon_busy(house: House, digits: Digits, envelope: bytes) -> None:
    """The client's first messages are sent; the server takes its place for each soon after."""
    for _ in range(100):
        with pytest.raises(CasemateError) as caught:
            house.upload(upload_of(next(pieces(envelope, files(digits), "digits"))))
        if caught.value.code is Code.RESOURCE_EXHAUSTED:
            assert caught.value.retry_after is not None
            return
    raise AssertionError("the third upload was never refused")


def test_an_upload_that_sends_nothing_more_is_cut_and_one_that_works_is_not(house: House, digits: Digits) -> None:
    clock = [0.0]
    uploads = house.service.uploads
    uploads.now = lambda: clock[0]
    envelope, silence = house.manifest(files(digits)), threading.Event()

    def silent() -> Iterator[model_service_pb2.PublishModelRequest]:
        yield next(pieces(envelope, files(digits), "digits"))
        silence.wait(PATIENCE)

    ended: queue.SimpleQueue[tuple[Code, Reason]] = queue.SimpleQueue()

    def upload() -> None:
        try:
            house.upload(silent())
        except CasemateError as error:
            ended.put((error.code, error.reason))

    thread = threading.Thread(target=upload)
    thread.start()
    turns, cut = threading.Event(), 0
    while not cut:
        assert not turns.wait(0.01)
        clock[0] += 10
        cut = uploads.cut_idle()
    assert clock[0] > 30
    assert ended.get(timeout=PATIENCE) == (Code.DEADLINE_EXCEEDED, Reason.STREAM_IDLE)
    silence.set()
    thread.join(PATIENCE)
    assert is_untouched(house)
    assert house.publish(files(digits), envelope=envelope).number == 1


def test_a_tenant_whose_uploads_take_their_places_leaves_one_to_another(house: House, digits: Digits) -> None:
    other, key = house.client("trainer", tenant="globex"), SigningKey.generate()
    house.trust.change(signer(key, tenant="globex"))
    house.trust.change(Grant(id="g", tenant="globex", caller="t/globex/trainer", verb="*", resource="model/*"))
    uploads = house.service.uploads
    places = [uploads.enter(lambda _error: None, cancel=lambda: None, tenant=TENANT) for _ in range(2)]
    with places[0], places[1]:
        with pytest.raises(CasemateError) as caught:
            house.publish(files(digits))
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        envelope = house.manifest(files(digits), tenant="globex", key=key)
        assert house.publish(files(digits), envelope=envelope, caller=other).number == 1
