"""Models' keys in the repository come under a new version, and the models still load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casemate.errors import PermissionDenied
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.keys.v1.key_service_pb2_grpc import KeyServiceStub
from casemate.sealing.keys import WrappedKey
from casemate.sealing.local import LocalKeyRing
from services.inference.repository import Repository, Slot
from tests.services.inference.house import PATIENCE, Caller, House, meant

if TYPE_CHECKING:
    from pathlib import Path

    from tests.services.inference.conftest import Digits


def _rewrap(house: House, who: Caller) -> messages.RewrapKeysResponse:
    metadata = (("authorization", f"Bearer {house.token(who, 'admin')}"),)
    with meant():
        stub = KeyServiceStub(house.channel(who))
        return list(stub.RewrapKeys(messages.RewrapKeysRequest(), metadata=metadata, timeout=PATIENCE))[-1]


def _status(house: House, who: Caller) -> dict[int, int]:
    metadata = (("authorization", f"Bearer {house.token(who, 'admin')}"),)
    stub = KeyServiceStub(house.channel(who))
    found = stub.GetKekStatus(messages.GetKekStatusRequest(), metadata=metadata, timeout=PATIENCE)
    assert {count.purpose for count in found.wrapped} == {"model-files"}
    return {count.kek_version: count.keys for count in found.wrapped}


def test_models_keys_are_rewrapped_and_the_models_load_again(house: House, digits: Digits) -> None:
    for number in (1, 2):
        house.publish({"model.onnx": digits.onnx}, number=number)
    operator = house.client("operator", tenant="casemate")
    assert _status(house, operator) == {1: 2}
    LocalKeyRing.rotate(house.kek)
    done = _rewrap(house, operator)
    assert (done.seen, done.rewrapped, done.failed) == (2, 2, 0)
    assert _status(house, operator) == {2: 2}
    assert WrappedKey.parse((house.stored() / "key.wrapped").read_bytes()).kek_version == 2
    assert house.reload(2).number == 2
    assert house.predict(digits.images) == digits.labels.tolist()
    assert _rewrap(house, operator).rewrapped == 0


def test_a_publisher_is_no_operator(house: House) -> None:
    with pytest.raises(PermissionDenied):
        _rewrap(house, house.trainer)
    assert _rewrap(house, house.client("operator", tenant="casemate")).seen == 0


def test_a_wrap_is_replaced_only_where_it_still_is_the_one_that_was_read(tmp_path: Path) -> None:
    repository, slot = Repository(tmp_path / "repository"), Slot("acme", "digits", 3)
    repository.write(slot, manifest=b"m", wrapped_key=b"one", files={"model.onnx": [b"sealed"]})
    assert repository.slots() == [slot]
    assert not repository.replace_wrapped_key(slot, b"other", b"two")
    assert not repository.replace_wrapped_key(Slot("acme", "digits", 4), b"one", b"two")
    assert repository.replace_wrapped_key(slot, b"one", b"two")
    with repository.open(slot) as stored:
        assert stored.read("key.wrapped", limit=10) == b"two"
    folder = tmp_path / "repository" / "acme" / "digits" / "3"
    assert sorted(path.name for path in folder.iterdir()) == ["files", "key.wrapped", "manifest.dsse.json"]
    assert (folder / "key.wrapped").stat().st_mode & 0o777 == 0o600
