"""What the conformance report says, each line from something that was tried against a running service."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2 as theirs
from tritonclient.utils import InferenceServerException

from casemate.open_inference.v2 import open_inference_pb2 as ours
from services.inference.models import EXTENSIONS
from services.inference.tensors import DATATYPES
from tests.services.inference.house import PATIENCE, House
from tests.services.inference.triton_clients import connect, connect_aio

SERVICE = ours.DESCRIPTOR.services_by_name["GRPCInferenceService"]
OPEN_INFERENCE = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
ROWS = np.array([[1.5, -2.0, 3.0]], dtype=np.float32)

Ask = Callable[[triton.InferenceServerClient], object]


def tensor(module: object, name: str = "FP32", array: np.ndarray = ROWS) -> list[object]:
    made = module.InferInput(f"{name}_in", list(array.shape), name)
    made.set_data_from_numpy(array)
    return [made]


CALLS: dict[str, Ask] = {
    "ServerLive": lambda client: client.is_server_live(),
    "ServerReady": lambda client: client.is_server_ready(),
    "ModelReady": lambda client: client.is_model_ready("fp32"),
    "ServerMetadata": lambda client: client.get_server_metadata(),
    "ModelMetadata": lambda client: client.get_model_metadata("fp32"),
    "ModelInfer": lambda client: client.infer("fp32", tensor(triton)),
    "ModelConfig": lambda client: client.get_model_config("fp32"),
    "ModelStatistics": lambda client: client.get_inference_statistics(),
    "RepositoryIndex": lambda client: client.get_model_repository_index(),
    "RepositoryModelLoad": lambda client: client.load_model("fp32"),
    "RepositoryModelUnload": lambda client: client.unload_model("int8"),
    "SystemSharedMemoryStatus": lambda client: client.get_system_shared_memory_status(),
    "SystemSharedMemoryRegister": lambda client: client.register_system_shared_memory("a", "/a", 64),
    "SystemSharedMemoryUnregister": lambda client: client.unregister_system_shared_memory("a"),
    "CudaSharedMemoryStatus": lambda client: client.get_cuda_shared_memory_status(),
    "CudaSharedMemoryRegister": lambda client: client.register_cuda_shared_memory("a", b"aGFuZGxl", 0, 64),
    "CudaSharedMemoryUnregister": lambda client: client.unregister_cuda_shared_memory("a"),
    "TraceSetting": lambda client: client.get_trace_settings(),
    "LogSettings": lambda client: client.get_log_settings(),
}
"""By tritonclient; its two clients have the same methods."""


@dataclass(frozen=True)
class Line:
    """One line of a table of the report."""

    cells: tuple[str, ...]

    def text(self) -> str:
        return f"| {' | '.join(self.cells)} |"


def outcome(error: Exception | None) -> str:
    if error is None:
        return "OK"
    assert isinstance(error, InferenceServerException), error
    return str(error.status()).removeprefix("StatusCode.")


def tried(ask: Callable[[], object]) -> str:
    try:
        ask()
    except InferenceServerException as error:
        return outcome(error)
    return "OK"


def streamed(client: triton.InferenceServerClient) -> str:
    answers: queue.SimpleQueue[object] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put(error if error else result))
    client.async_stream_infer("fp32", tensor(triton))
    answer = answers.get(timeout=PATIENCE)
    client.stop_stream()
    return outcome(answer if isinstance(answer, Exception) else None)


async def by_aio(house: House) -> dict[str, str]:
    async with connect_aio(house, house.trainer) as client:
        said = {}
        for name, ask in CALLS.items():
            try:
                await ask(client)
            except InferenceServerException as error:
                said[name] = outcome(error)
            else:
                said[name] = "OK"
        said["ModelStreamInfer"] = await _aio_stream(client)
        return said


async def _aio_stream(client: object) -> str:
    async def requests():
        yield {"model_name": "fp32", "inputs": tensor(triton)}

    async for result, error in client.stream_infer(requests()):
        if error is None:
            assert result.as_numpy("FP32_out").tolist() == ROWS.tolist()
        return outcome(error)
    raise AssertionError("the stream ended without an answer")


def rpc_lines(house: House) -> Iterator[Line]:
    with connect(house, house.trainer) as client:
        synchronous = {name: tried(lambda ask=ask: ask(client)) for name, ask in CALLS.items()}
        synchronous["ModelStreamInfer"] = streamed(client)
    aio = asyncio.run(by_aio(house))
    for method in SERVICE.methods:
        origin = "Open Inference" if method.name in OPEN_INFERENCE else "Triton"
        yield Line((f"`{method.name}`", origin, synchronous[method.name], aio[method.name]))


def datatype_lines(house: House) -> Iterator[Line]:
    with connect(house, house.trainer) as client:
        for name, datatype in sorted(DATATYPES.items()):
            array = np.zeros((1, 3), dtype=datatype.dtype)
            if name == "BYTES":
                array = np.array([[b"a", b"", "é".encode()]], dtype=object)
            if name == "BF16":
                array = np.array(ROWS, dtype=ml_dtypes.bfloat16)
            client.load_model(name.lower())
            back = client.infer(name.lower(), tensor(triton, name, array)).as_numpy(f"{name}_out")
            same = "the same" if back.tolist() == array.tolist() else "OTHERWISE"
            yield Line((name, same, "yes" if datatype.contents else "travels raw only"))


def _messages(container: object) -> Iterator[Descriptor]:
    for message in container:
        yield message
        yield from _messages(message.nested_types)


def _kind(field: FieldDescriptor) -> tuple[int, int, bool, str]:
    named = field.message_type or field.enum_type
    return field.number, field.type, field.is_repeated, named.name if named is not None else ""


def field_lines() -> Iterator[Line]:
    """Where our messages and those that tritonclient was generated from differ."""
    known = {message.full_name: message for file in (theirs, _config_file()) for message in _messages_of(file)}
    for message in sorted(_messages(ours.DESCRIPTOR.message_types_by_name.values()), key=lambda each: each.full_name):
        other = known.get(message.full_name)
        if other is None:  # the entries of a map that is reported as a field
            assert message.GetOptions().map_entry, f"{message.full_name} is no message of Triton's"
            continue
        for field in message.fields:
            same = other.fields_by_number.get(field.number)
            if same is None:
                yield Line((f"`{message.name}.{field.name} = {field.number}`", "ours beyond Triton's"))
            elif (same.name, _kind(same)) != (field.name, _kind(field)):
                yield Line((f"`{message.name}.{field.name} = {field.number}`", "OTHERWISE"))
        left_out = [field for field in other.fields if field.number not in message.fields_by_number]
        if left_out:
            yield Line((f"`{message.name}`", f"without {len(left_out)} of Triton's fields"))


def _messages_of(file: object) -> Iterator[Descriptor]:
    return _messages(file.DESCRIPTOR.message_types_by_name.values())


def _config_file() -> object:
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


def report(house: House) -> str:
    """The whole report, from what this service answered just now."""
    return "\n".join(
        [
            "# Open Inference Protocol: what is served",
            "",
            "Written by `make conformance` from a running service, asked by an unmodified tritonclient over mutual",
            "TLS 1.3 with a certificate-bound token. A test fails when this page is not what the service answers.",
            "",
            "## Rpcs",
            "",
            "| rpc | from | tritonclient | tritonclient.aio |",
            "|---|---|---|---|",
            *[line.text() for line in rpc_lines(house)],
            "",
            "UNIMPLEMENTED is meant: shared memory would let a client name the server's memory, and settings of the",
            "server are its operator's. A load that brings a `config` or `file:` is refused with FAILED_PRECONDITION.",
            "",
            f"Extensions that `ServerMetadata` advertises: {', '.join(f'`{name}`' for name in EXTENSIONS)}.",
            "",
            "KServe's own client (`InferenceGRPCClient`, and its stubs for load and unload) is run by",
            "`tests/services/inference/test_kserve.py`, in an environment of its own.",
            "",
            "## Datatypes",
            "",
            "Sent through an ONNX identity model and back.",
            "",
            "| datatype | comes back | typed contents |",
            "|---|---|---|",
            *[line.text() for line in datatype_lines(house)],
            "",
            "## Messages",
            "",
            "Every field has the name, number and type of Triton's, but for these:",
            "",
            "| field | |",
            "|---|---|",
            *[line.text() for line in field_lines()],
            "",
        ]
    )
