"""Tokens on the calls of channels that are not ours, synchronous and `grpc.aio`.

Each call gets a token that is bound to the session's certificate. However many
calls need a new one at once, one asks for it. After a call that was refused for
its token (revoked, expired by the server's clock, bound to a certificate that
was renewed) the next one asks for a new token.

If this fails: calls are answered UNAUTHENTICATED. The token still opens nothing
without the certificate's private key.
"""

# ruff: noqa: ANN401  # calls, requests and their details are whatever grpcio passes
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc

from casemate.errors import Reason, Unauthenticated
from casemate.transport.status import from_rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_STALE = frozenset(
    {
        Reason.TOKEN_INVALID,
        Reason.TOKEN_EXPIRED,
        Reason.TOKEN_REVOKED,
        Reason.TOKEN_MISSING,
        Reason.CERTIFICATE_MISMATCH,
    }
)


class TokenHolder(Protocol):
    """Gives the metadata of a call; `casemate.client.session.Session` is one."""

    def metadata(self, audience: str) -> Sequence[tuple[str, str]]:
        """The `authorization` entry; may block while a token is fetched. Safe in threads."""
        ...

    def present_metadata(self, audience: str) -> Sequence[tuple[str, str]] | None:
        """The same without blocking; None when a token would have to be fetched."""
        ...

    def forget_tokens(self) -> None:
        """Drops what is held."""
        ...


class _Details(NamedTuple):
    """What grpcio's interceptors are told of a call, with other metadata."""

    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class BearerInterceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Puts a token on every call of a synchronous channel: `grpc.intercept_channel(channel, BearerInterceptor(…))`.

    Args:
        holder: whose tokens.
        audience: the service that is called.
    """

    def __init__(self, holder: TokenHolder, *, audience: str) -> None:
        self._holder = holder
        self._audience = audience

    def intercept_unary_unary(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Sends the call with a token."""
        return self._send(continuation, client_call_details, request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], client_call_details: Any, request: Any) -> Any:
        """Sends the call with a token."""
        return self._send(continuation, client_call_details, request)

    def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Sends the call with a token."""
        return self._send(continuation, client_call_details, request_iterator)

    def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        """Sends the call with a token."""
        return self._send(continuation, client_call_details, request_iterator)

    def _send(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        call = continuation(_with_token(details, self._holder.metadata(self._audience)), request)
        call.add_done_callback(self._judge)
        return call

    def _judge(self, call: Any) -> None:
        # A call is its own error when it failed.
        if call.code() is grpc.StatusCode.UNAUTHENTICATED and _is_stale(call):
            self._holder.forget_tokens()


def aio_bearer_interceptors(holder: TokenHolder, *, audience: str) -> tuple[grpc.aio.ClientInterceptor, ...]:
    """Interceptors that put a token on every call of a `grpc.aio` channel, one for each kind of method.

    Use: `grpc.aio.secure_channel(target, credentials, interceptors=aio_bearer_interceptors(…))`.

    Args:
        holder: whose tokens; fetched in a thread, so that the loop goes on.
        audience: the service that is called.
    """
    tokens = _AioTokens(holder, audience)
    return (_AioUnaryUnary(tokens), _AioUnaryStream(tokens), _AioStreamUnary(tokens), _AioStreamStream(tokens))


class _AioTokens:
    def __init__(self, holder: TokenHolder, audience: str) -> None:
        self._holder = holder
        self._audience = audience
        self._fetch: asyncio.Task[Sequence[tuple[str, str]]] | None = None
        self._judging: set[asyncio.Future[None]] = set()

    async def send(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        entries = self._holder.present_metadata(self._audience)
        if entries is None:
            entries = await self._fetched()
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *entries)
        call = await continuation(
            grpc.aio.ClientCallDetails(
                details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
            ),
            request,
        )
        call.add_done_callback(self._ended)
        return call

    async def _fetched(self) -> Sequence[tuple[str, str]]:
        if self._fetch is None:
            self._fetch = asyncio.create_task(asyncio.to_thread(self._holder.metadata, self._audience))
            self._fetch.add_done_callback(self._fetch_ended)
        # Shielded: a caller that gives up must not take the token from the others who wait.
        return await asyncio.shield(self._fetch)

    def _fetch_ended(self, task: asyncio.Task[Sequence[tuple[str, str]]]) -> None:
        self._fetch = None
        if not task.cancelled():
            task.exception()  # seen here, also when everybody who waited has gone

    def _ended(self, call: Any) -> None:
        task = asyncio.ensure_future(self._judge(call))
        self._judging.add(task)
        task.add_done_callback(self._judging.discard)

    async def _judge(self, call: Any) -> None:
        if call.cancelled() or await call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            return
        empty = grpc.aio.Metadata()
        error = grpc.aio.AioRpcError(
            grpc.StatusCode.UNAUTHENTICATED, empty, await call.trailing_metadata() or empty, await call.details()
        )
        if _is_stale(error):
            self._holder.forget_tokens()


class _AioUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, tokens: _AioTokens) -> None:
        self._tokens = tokens

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await self._tokens.send(continuation, client_call_details, request)


class _AioUnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, tokens: _AioTokens) -> None:
        self._tokens = tokens

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        return await self._tokens.send(continuation, client_call_details, request)


class _AioStreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, tokens: _AioTokens) -> None:
        self._tokens = tokens

    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._tokens.send(continuation, client_call_details, request_iterator)


class _AioStreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, tokens: _AioTokens) -> None:
        self._tokens = tokens

    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._tokens.send(continuation, client_call_details, request_iterator)


def _with_token(details: Any, metadata: Sequence[tuple[str, str]]) -> Any:
    return _Details(
        method=details.method,
        timeout=details.timeout,
        metadata=[*(details.metadata or ()), *metadata],
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
        compression=getattr(details, "compression", None),
    )


def _is_stale(error: Any) -> bool:
    judged = from_rpc_error(error)
    return isinstance(judged, Unauthenticated) and judged.reason in _STALE
