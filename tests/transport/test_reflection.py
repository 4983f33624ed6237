"""Reflection lists and describes every service, with tritonclient in the same process."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from casemate.errors import ConfigurationError
from casemate.transport.channel import RotatingChannel
from casemate.transport.reflection import SERVICE_NAME, aio_reflection_service, reflection_service
from casemate.transport.server import build_aio_server, build_server
from tests.transport.conftest import QUICK

NAMES = (
    "casemate.auth.v1.AdminService",
    "casemate.auth.v1.TokenService",
    "casemate.datasets.v1.DatasetService",
    "casemate.inference.v1.ModelService",
    "grpc.health.v1.Health",
    "inference.GRPCInferenceService",
)


def ask(port: int, source) -> tuple[set[str], dict[str, set[str]]]:
    """What is listed; and by service, the files that describe it."""
    with RotatingChannel(target=f"127.0.0.1:{port}", service_name="auth", source=source) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        requests += [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in NAMES]
        listed, *described = stub.ServerReflectionInfo(iter(requests))
    files = {}
    for name, answer in zip(NAMES, described, strict=True):
        assert not answer.HasField("error_response"), name
        protos = [
            descriptor_pb2.FileDescriptorProto.FromString(serialized)
            for serialized in answer.file_descriptor_response.file_descriptor_proto
        ]
        files[name] = {f"{proto.package}.{service.name}" for proto in protos for service in proto.service}
    return {service.name for service in listed.list_services_response.service}, files


def test_every_service_is_listed_and_described_beside_tritonclient(server_source, client_source):
    import tritonclient.grpc as triton

    assert triton.InferInput("x", [1], "FP32").name() == "x"
    server = build_server(
        source=server_source,
        services=[reflection_service(NAMES)],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=QUICK,
    )
    server.start()
    try:
        listed, files = ask(server.port, client_source)
    finally:
        server.stop()
    assert listed == {*NAMES, SERVICE_NAME}
    for name in NAMES:
        assert name in files[name]


async def test_the_aio_server_lists_and_describes_the_same(server_source, client_source):
    server = build_aio_server(
        source=server_source,
        services=[aio_reflection_service(NAMES)],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=QUICK,
    )
    await server.start()
    try:
        listed, files = await asyncio.to_thread(ask, server.port, client_source)
    finally:
        await server.stop()
    assert listed == {*NAMES, SERVICE_NAME}
    for name in NAMES:
        assert name in files[name]


def test_a_service_without_a_descriptor_is_refused():
    with pytest.raises(ConfigurationError, match=r"no descriptor of: acme\.v1\.Unknown"):
        reflection_service(["acme.v1.Unknown"])
