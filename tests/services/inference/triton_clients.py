"""Unmodified tritonclients, as their users make them: mutual TLS, and a plugin that adds the token."""

from __future__ import annotations

from tritonclient import grpc as triton
from tritonclient.grpc import aio as triton_aio

from tests.services.inference.house import Caller, House

SERVER_NAME = [("grpc.ssl_target_name_override", "inference.casemate.internal")]


class Bearer:
    """A plugin of tritonclient, as its users write one."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: object) -> None:
        request.headers["authorization"] = f"Bearer {self._token}"


def connect(house: House, caller: Caller, *, token: str | None = None) -> triton.InferenceServerClient:
    """A synchronous client of the house's service."""
    client = triton.InferenceServerClient(
        f"127.0.0.1:{house.service.port}", creds=house.credentials(caller), channel_args=SERVER_NAME
    )
    client.register_plugin(Bearer(token or house.token(caller)))
    return client


def connect_aio(house: House, caller: Caller) -> triton_aio.InferenceServerClient:
    """An asyncio client of the house's service."""
    client = triton_aio.InferenceServerClient(
        f"127.0.0.1:{house.service.port}", creds=house.credentials(caller), channel_args=SERVER_NAME
    )
    client.register_plugin(Bearer(house.token(caller)))
    return client
