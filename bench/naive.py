"""What most services do: `jwt.decode` for every call, and no binding. To compare with, never to use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NoReturn

import grpc
import jwt


class _Naive:
    def __init__(self, public_key: Any, issuer: str) -> None:  # noqa: ANN401  # either of PyJWT's kinds
        self._public_key = public_key
        self._issuer = issuer

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Whether the token verifies and has the scope."""
        try:
            claims = jwt.decode(
                str(dict(metadata).get("authorization", "")).removeprefix("Bearer "),
                key=self._public_key,
                algorithms=["EdDSA"],
                audience="inference",
                issuer=self._issuer,
            )
        except jwt.PyJWTError:
            return False
        return "models.infer" in claims["scope"].split()


class NaiveInterceptor(_Naive, grpc.ServerInterceptor):
    """Decodes in front of the synchronous server."""

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401  # a handler
        """The handler, or one that refuses."""
        if self.admits(handler_call_details.invocation_metadata):
            return continuation(handler_call_details)

        def refuse(_request: object, context: grpc.ServicerContext) -> NoReturn:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)


class AioNaiveInterceptor(_Naive, grpc.aio.ServerInterceptor):
    """Decodes in front of `grpc.aio`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401  # a handler
        """The handler, or one that refuses."""
        if self.admits(handler_call_details.invocation_metadata):
            return await continuation(handler_call_details)

        async def refuse(_request: object, context: Any) -> None:  # noqa: ANN401
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)
