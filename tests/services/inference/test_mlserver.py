"""MLServer, unmodified, in an environment of its own, behind our door."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

from casemate.transport.local_channel import local_channel
from services.inference.backends import Backend
from tests.services.inference.house import PATIENCE, TENANT, House
from tests.services.inference.triton_clients import connect
from tests.support.authority import LeafFactory
from tests.support.foreign import INSTALLING, foreign_python

pytestmark = pytest.mark.timeout(INSTALLING)

TENSORS = {
    "inputs": [{"name": "rows", "datatype": "FP32", "shape": [-1, 3]}],
    "outputs": [{"name": "sum", "datatype": "FP32", "shape": [-1, 1]}],  # its codec makes vectors columns
}

RUNTIME = """
import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Sums(MLModel):
    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        sums = NumpyCodec.encode_output("sum", rows.sum(axis=1).astype(np.float32))
        return InferenceResponse(model_name=self.name, outputs=[sums])
"""


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """MLServer's gRPC port, once it serves the model `sums`."""
    python = foreign_python("mlserver")
    folder = tmp_path_factory.mktemp("mlserver")
    rest, wire_port, metrics = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": rest, "grpc_port": wire_port, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
    model = folder / "sums"
    model.mkdir()
    (model / "runtime.py").write_text(RUNTIME)
    (model / "model-settings.json").write_text(
        json.dumps({"name": "sums", "implementation": "runtime.Sums", **TENSORS})
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([python.with_name("mlserver"), "start", folder], stdout=log, stderr=log, cwd=folder)
        try:
            with local_channel(f"127.0.0.1:{wire_port}") as channel:
                grpc.channel_ready_future(channel).result(PATIENCE * 2)
            yield wire_port
        finally:
            process.terminate()
            process.wait(PATIENCE)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def test_mlserver_predicts_behind_mutual_tls_tokens_and_grants(port: int, tmp_path: Path, leaf: LeafFactory) -> None:
    mlserver = Backend(
        name="mlserver",
        address=f"127.0.0.1:{port}",
        transport="local",
        tenants=frozenset({TENANT}),
        timeout=timedelta(seconds=PATIENCE),
    )
    house = House(directory=tmp_path, leaf=leaf, backends={"mlserver": mlserver})
    try:
        signed = json.dumps({"backend": "mlserver", "model": "sums", **TENSORS}).encode()
        house.publish({"upstream.json": signed}, model="added")
        tensor = triton.InferInput("rows", [2, 3], "FP32")
        tensor.set_data_from_numpy(np.arange(6, dtype=np.float32).reshape(2, 3))
        with connect(house, house.caller) as client:
            assert client.infer("added", [tensor]).as_numpy("sum").tolist() == [[3.0], [12.0]]
        with connect(house, house.client("stranger")) as stranger, pytest.raises(InferenceServerException) as caught:
            stranger.infer("added", [tensor])
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    finally:
        house.close()
