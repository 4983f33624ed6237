"""A caller with many calls at once on one connection is served or told to wait, never that nobody is there."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import pytest

from services.inference.servicers import OPEN_INFERENCE
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, House
from tests.services.inference.test_hostile_requests import image
from tests.support.authority import LeafFactory


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    house.publish({"model.onnx": digits.onnx})
    yield house
    house.close()


def codes(house: House, *, at_once: int, calls: int) -> Counter[grpc.StatusCode]:
    """How that many calls on one connection end, so many of them under way all the time."""
    options = [("grpc.ssl_target_name_override", "inference.casemate.internal")]
    target, credentials = f"127.0.0.1:{house.service.port}", house.credentials(house.caller)
    message, metadata = image(1).SerializeToString(), house.metadata(house.caller)
    seen: Counter[grpc.StatusCode] = Counter()
    left, done, lock = itertools.count(), threading.Event(), threading.Lock()
    with grpc.secure_channel(target, credentials, options=options) as channel:
        infer = channel.unary_unary(f"/{OPEN_INFERENCE}/ModelInfer", None, None)

        def ask() -> None:
            if next(left) < calls:
                infer.future(message, metadata=metadata, timeout=PATIENCE).add_done_callback(note)

        def note(asked: grpc.Future) -> None:
            with lock:
                seen[asked.code()] += 1
                if seen.total() == calls:
                    done.set()
            ask()

        for _ in range(at_once):
            ask()
        assert done.wait(PATIENCE)
    return seen


def test_ninety_calls_at_once_on_one_connection_are_never_told_that_the_service_is_away(house: House) -> None:
    """Half of them were: HTTP/2 streams that had ended still counted while Python held the calls' last objects."""
    seen = codes(house, at_once=90, calls=900)
    assert seen[grpc.StatusCode.OK] > 0
    assert set(seen) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}  # 64 are one caller's share


def test_as_many_as_one_callers_share_are_all_answered(house: House) -> None:
    assert codes(house, at_once=32, calls=300) == {grpc.StatusCode.OK: 300}
