"""Models that were changed, reach outside, bring code, or go back in time (rows D11–D15, and D23's rounding)."""

from __future__ import annotations

import io
import json
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from casemate.errors import CasemateError, Code, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.backends import Backend
from tests.services.inference.back_end import LocalServer, Sums
from tests.services.inference.conftest import Digits
from tests.services.inference.house import PATIENCE, TENANT, House
from tests.services.inference.identity import identity
from tests.services.inference.test_upstream import request as rows_request
from tests.services.inference.test_upstream import upstream_file
from tests.support.authority import LeafFactory

INVALID = (Code.INVALID_ARGUMENT, Reason.MODEL_INVALID)


def refused(ask: Callable[[], object]) -> CasemateError:
    with pytest.raises(CasemateError) as caught:
        ask()
    return caught.value


def with_external_data(location: str) -> bytes:
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2], [1.0, 2.0])
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "weight"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("location", ["../../etc/passwd", "/etc/passwd", "weights.bin", "", "link"])
def test_d12_external_data_is_refused_wherever_it_lies_and_the_refusal_says_how_to_inline_it(
    house: House, tmp_path: Path, location: str
) -> None:
    error = refused(lambda: house.publish({"model.onnx": with_external_data(location)}))
    assert (error.code, error.reason) == INVALID
    assert "onnx.save_model(onnx.load('model.onnx'), 'whole.onnx', save_as_external_data=False)" in (
        error.violations[0].description
    )
    assert not list(house.repository.iterdir())
    assert not house.auth.recorded


def test_d12_what_the_refusal_says_to_do_makes_a_model_that_is_served(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(np.array([1, 2], dtype="<f4").tobytes())
    (tmp_path / "model.onnx").write_bytes(with_external_data("weights.bin"))
    monkeypatch.chdir(tmp_path)
    onnx.save_model(onnx.load("model.onnx"), "whole.onnx", save_as_external_data=False)
    house.publish({"model.onnx": (tmp_path / "whole.onnx").read_bytes()})
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(8)])
    request.inputs.add(name="x", datatype="FP32", shape=(2,))
    answer = house.call("ModelInfer", request)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [1.0, 2.0]


def archive(name: str, size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, bytes(size))
    return data.getvalue()


class Runs:
    """A pickle of it runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("a pickle was read",)


def pickled() -> bytes:
    import pickle  # what an attacker sends

    return pickle.dumps(Runs())


BUNDLES = {
    "zip slip": {"model.onnx": archive("../../evil.py", 10)},
    "zip bomb": {"model.onnx": archive("zeros", 4_000_000)},
    "pickle": {"model.onnx": pickled()},
    "joblib beside": {"model.onnx": b"onnx", "model.joblib": pickled()},
    "pickle as text": {"model.onnx": pickled(), "notes.txt": pickled()},
    "code beside": {"model.onnx": b"onnx", "setup.py": b"print()"},
}

_seen: list[str] = []
_watching = threading.Event()


def _audit(event: str, _arguments: tuple[object, ...]) -> None:
    if _watching.is_set() and event in ("pickle.find_class", "marshal.loads", "exec"):
        _seen.append(event)


@pytest.fixture(scope="module")
def code_that_ran() -> list[str]:
    """Audit events of code that was read from data, while `_watching`. A hook stays for the process's life."""
    sys.addaudithook(_audit)
    return _seen


@pytest.mark.parametrize("bundle", BUNDLES.values(), ids=BUNDLES)
def test_d13_archives_pickles_and_code_are_refused_and_none_of_it_runs(
    house: House, digits: Digits, code_that_ran: list[str], bundle: dict[str, bytes]
) -> None:
    house.publish({"model.onnx": digits.onnx})  # whatever is imported at first use is imported
    code_that_ran.clear()
    _watching.set()
    try:
        error = refused(lambda: house.publish(bundle, number=2))
    finally:
        _watching.clear()
    assert (error.code, error.reason) == INVALID
    assert "pickle.find_class" not in code_that_ran
    assert not house.stored(2).exists()
    assert house.predict(digits.images) == digits.labels.tolist()


def test_d14_the_repository_of_yesterday_does_not_bring_yesterdays_model_back(
    house: House, digits: Digits, tmp_path: Path
) -> None:
    import shutil

    house.publish({"model.onnx": digits.onnx})
    yesterday = tmp_path / "yesterday"
    shutil.copytree(house.repository, yesterday)
    house.publish({"model.onnx": digits.onnx}, number=2)
    shutil.rmtree(house.repository)
    shutil.copytree(yesterday, house.repository)
    error = refused(lambda: house.reload(2))
    assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, Reason.MODEL_REFUSED)
    house.service = house.serve()
    assert refused(lambda: house.predict(digits.images)).code is Code.FAILED_PRECONDITION
    assert house.predict(digits.images, "1") == digits.labels.tolist()


@pytest.fixture
def slow_house(tmp_path: Path, leaf: LeafFactory) -> Iterator[tuple[House, Sums]]:
    """A house with a model on a back end that answers when the test says."""
    sums = Sums()
    server = LocalServer(sums.service(), "127.0.0.1:0", grpc.LocalConnectionType.LOCAL_TCP)
    sidecar = Backend(
        name="sidecar",
        address=f"127.0.0.1:{server.port}",
        transport="local",
        tenants=frozenset({TENANT}),
        timeout=timedelta(seconds=PATIENCE),
    )
    house = House(directory=tmp_path, leaf=leaf, backends={"sidecar": sidecar})
    house.publish(upstream_file(), model="sums")
    yield house, sums
    house.close()
    server.stop()


def test_d15_a_call_that_runs_while_its_model_is_unloaded_is_answered_by_it(slow_house: tuple[House, Sums]) -> None:
    house, sums = slow_house
    sums.hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: house.call("ModelInfer", rows_request()))
        assert sums.begun.acquire(timeout=PATIENCE)
        house.call("RepositoryModelUnload", wire.RepositoryModelUnloadRequest(model_name="sums"), caller=house.trainer)
        error = refused(lambda: house.call("ModelInfer", rows_request()))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, Reason.MODEL_NOT_READY)
        sums.hold.set()
        answer = running.result(PATIENCE)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4").tolist() == [3.0, 12.0]


@pytest.mark.parametrize(
    ("decimals", "seen"),
    [(None, [[0.12345679, 0.98765433, float("inf")]]), (2, [[0.12, 0.99, float("inf")]]), (0, [[0, 1, float("inf")]])],
)
def test_d23_scores_are_rounded_where_the_publisher_says_so(
    house: House, decimals: int | None, seen: list[list[float]]
) -> None:
    files = {"model.onnx": identity("FP32", "INT64")}
    if decimals is not None:
        files["serving.json"] = json.dumps({"output_decimals": decimals}).encode()
    house.publish(files)
    scores = np.array([[0.12345679, 0.98765433, np.inf]], dtype="<f4")
    counts = np.array([[1, 2, 3]], dtype="<i8")
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[scores.tobytes(), counts.tobytes()])
    request.inputs.add(name="FP32_in", datatype="FP32", shape=(1, 3))
    request.inputs.add(name="INT64_in", datatype="INT64", shape=(1, 3))
    first, second = house.call("ModelInfer", request).raw_output_contents
    assert first == np.array(seen, dtype="<f4").tobytes()
    assert second == counts.tobytes()


@pytest.mark.parametrize("decimals", [-1, 16, True, "2", 1.5])
def test_d23_a_rounding_that_is_none_refuses_the_version(house: House, decimals: object) -> None:
    files = {"model.onnx": identity("FP32"), "serving.json": json.dumps({"output_decimals": decimals}).encode()}
    error = refused(lambda: house.publish(files))
    assert (error.code, error.reason) == INVALID
