"""Somebody else's servicers: they know nothing of Casemate."""

from __future__ import annotations

from typing import Any

from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc


class Greeter(greeter_pb2_grpc.GreeterServicer):
    """Of the synchronous server."""

    def Greet(self, request: Any, _context: Any) -> Any:  # noqa: ANN401, N802  # generated types; the protocol's name
        """Greets."""
        return greeter_pb2.GreetResponse(greeting=f"Hello, {request.name}")


class AioGreeter(greeter_pb2_grpc.GreeterServicer):
    """Of `grpc.aio`."""

    async def Greet(self, request: Any, _context: Any) -> Any:  # noqa: ANN401, N802
        """Greets."""
        return greeter_pb2.GreetResponse(greeting=f"Hello, {request.name}")
