"""What every service has: health, reflection behind a scope, a policy for each method."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from casemate.errors import Reason, Unauthenticated
from casemate.transport.status import from_rpc_error

SERVICES = {f"casemate.auth.v1.{name}Service" for name in ("Token", "Trust", "Admin", "Release")}
SERVING = health_pb2.HealthCheckResponse.SERVING


async def _health(caller, service=""):
    return (await HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(service=service))).status


async def _reflect(caller, metadata=()):
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    call = ServerReflectionStub(caller.channel).ServerReflectionInfo(iter(requests), metadata=metadata)
    return {service.name async for answer in call for service in answer.list_services_response.service}


async def test_health_asks_for_a_certificate_alone(world):
    caller = world.client("acme", "nobody")
    for service in ("", *SERVICES):
        assert await _health(caller, service) == SERVING, service


async def test_reflection_asks_for_its_scope(world):
    operator = world.operator()
    with pytest.raises(grpc.RpcError) as raised:
        await _reflect(operator)
    error = from_rpc_error(raised.value)
    assert isinstance(error, Unauthenticated)
    assert error.reason is Reason.TOKEN_MISSING
    token = (await operator.token("auth", ("reflection",))).access_token
    assert await _reflect(operator, (("authorization", f"Bearer {token}"),)) >= SERVICES


async def test_a_caller_without_a_certificate_is_not_spoken_to(world):
    directory = world.leaf("client", tenant="casemate", name="operator")
    credentials = grpc.ssl_channel_credentials((directory / "ca.pem").read_bytes())
    options = (("grpc.ssl_target_name_override", "auth.casemate.internal"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{world.running.port}", credentials, options) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            await HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_refusals_are_counted(world):
    caller = world.client("acme", "nobody")
    with pytest.raises(grpc.RpcError):
        await _reflect(caller)
    assert world.running.metrics.value("denied_total", reason="TOKEN_MISSING") == 1
