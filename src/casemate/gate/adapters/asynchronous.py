"""The gate in front of `grpc.aio`.

The order is that of the synchronous adapter: a refusal at headers reads no body,
and an admitted call's peer and binding are judged before its body has arrived.

If this fails: handlers run for calls that the gate refused. Data stays sealed.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from casemate.errors import CasemateError, InternalError
from casemate.gate.adapters.caller_context import bind_caller, current_caller, share_of
from casemate.gate.adapters.calls import (
    REQUEST_ID_KEY,
    RequestIds,
    auth_context,
    authorize_message,
    no_message,
    parse_request,
    status_name,
)
from casemate.gate.adapters.fair_turns import FairTurns
from casemate.gate.adapters.late_bodies import LateBodies
from casemate.gate.adapters.stream_guard import StreamGuard
from casemate.transport.options import MAXIMUM_CONCURRENT_CALLS
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.byte_budget import ByteBudget, Held

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Any: the stubs' context is generic over messages that are bytes here and messages there.
Context: TypeAlias = Any

RECHECK_EVERY = timedelta(milliseconds=250)
BODY_WITHIN = timedelta(seconds=10)
AT_ONCE = 64
"""Handlers of single calls that run at once; the next wait their tenant's turn."""
PASSING = (GeneratorExit, KeyboardInterrupt)
"""What is not the call's: the event loop goes, or whoever runs the process interrupts it. All else ends by a status,
SystemExit too: a handler's would end the server."""


class AioGateInterceptor(grpc.aio.ServerInterceptor):
    """Puts a gate in front of every method of a `grpc.aio.server`. Must be the outermost interceptor.

    Handlers are coroutines or asynchronous generators.

    Args:
        gate: decides.
        recheck_every: how often running streams are judged again; also at once when trust changes.
        body_within: how long a single request, or the first message of a stream, may take to arrive after its headers.
        at_once: single calls whose handlers run at once, shared out among tenants. Streams are not counted.
        budget: bytes of single requests that wait; None: as for the default size of messages.
        calls: that may be under way at once, of every kind and of everybody; the next are refused unjudged.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        recheck_every: timedelta = RECHECK_EVERY,
        body_within: timedelta = BODY_WITHIN,
        at_once: int = AT_ONCE,
        budget: ByteBudget | None = None,
        calls: int = MAXIMUM_CONCURRENT_CALLS,
    ) -> None:
        self._gate = gate
        self._under_way = _UnderWay(calls)
        self._turns = FairTurns(at_once)
        self._request_ids = RequestIds()
        self._recheck_every_s = recheck_every.total_seconds()
        self._bodies = LateBodies(within_s=body_within.total_seconds(), budget=budget)

    def require_policies(self, methods: Iterable[str]) -> None:
        """Refuses to go on when one of these full method names has no policy.

        Raises:
            ConfigurationError: names them all.
        """
        self._gate.policies.require(methods)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler that serves this call if the gate goes on agreeing, or one that refuses it."""
        handler = await continuation(handler_call_details)
        method = _text(handler_call_details.method)
        request_id = self._request_ids.take()
        if self._under_way.count >= self._under_way.most:
            return _refusal(self._gate.overflowed(method, request_id=request_id), request_id)
        try:
            admission = self._gate.at_headers(
                method, handler_call_details.invocation_metadata, request_id=request_id, served=handler is not None
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # errors outermost: whatever it is, grpcio would send its text
            return _refusal(error, request_id)
        call = _Call(
            self._gate,
            admission,
            handler,
            self._recheck_every_s,
            bodies=self._bodies,
            turns=self._turns,
            under_way=self._under_way,
        )
        serializer = handler.response_serializer if handler is not None else None
        if handler is not None and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call.answer_many, None, serializer)
        return grpc.stream_unary_rpc_method_handler(call.answer_one, None, serializer)


def _text(method: str | bytes) -> str:
    return method.decode("ascii", "replace") if isinstance(method, bytes) else method


def _refusal(error: BaseException, request_id: str) -> Handler:
    """A handler that refuses without waiting for the body: a streaming one does not read it."""

    async def refuse(_requests: AsyncIterator[bytes], context: Context) -> None:
        status = to_status(error, request_id=request_id).with_trailing((REQUEST_ID_KEY, request_id))
        await context.abort(status.code, status.details, status.trailing)

    return grpc.stream_stream_rpc_method_handler(refuse)


class _UnderWay:
    """How many calls are, of how many may be. Counted from where their end is certain to be seen."""

    __slots__ = ("count", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0


class _Call:
    """One admitted call: what it waits for, and how it ends."""

    def __init__(
        self,
        gate: Gate,
        admission: Admission,
        handler: Handler | None,
        recheck_every_s: float,
        *,
        bodies: LateBodies,
        turns: FairTurns,
        under_way: _UnderWay,
    ) -> None:
        self._gate = gate
        self._under_way = under_way
        self._admission = admission
        self._handler = handler
        self._recheck_every_s = recheck_every_s
        self._bodies = bodies
        self._turns = turns
        self._held: Held | None = None
        self._share: str | None = None
        self._trailing = ((REQUEST_ID_KEY, admission.request_id),)
        self._code = "CANCELLED"
        self._guard: StreamGuard | None = None
        self._taken = False

    async def answer_one(self, requests: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401  # a message
        """Serves a method with one response."""
        self._under_way.count += 1
        try:
            argument = await self._admit(requests, context)
            response = await self._behavior("unary")(argument, self._for_handler(argument, context))
            self._judge_again()
            self._succeed(context)
        except PASSING:
            raise
        except BaseException as error:
            await self._fail(error, context)
            raise
        else:
            return response
        finally:
            self._end()

    async def answer_many(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Serves a method with a stream of responses.

        Writes them itself: every await is then inside this coroutine, where a
        revocation can interrupt it and still send its status.
        """
        self._under_way.count += 1
        try:
            argument = await self._admit(requests, context)
            answer = self._behavior("stream")(argument, self._for_handler(argument, context))
            if hasattr(answer, "__aiter__"):
                await self._write_all(answer, context)
            else:
                await answer  # the handler writes by its context
            self._judge_again()
            self._succeed(context)
        except PASSING:
            raise
        except BaseException as error:
            await self._fail(error, context)
            raise
        finally:
            self._end()

    async def _write_all(self, responses: Any, context: Context) -> None:  # noqa: ANN401  # an asynchronous generator
        async with aclosing(responses):
            async for response in responses:
                if self._guard is None:
                    await context.write(response)
                    continue
                self._guard.judge_again()
                with self._guard.uninterrupted():
                    await context.write(response)

    def _judge_again(self) -> None:
        """A handler that swallowed its interruption has not succeeded."""
        if self._guard is not None:
            self._guard.judge_again()

    def _behavior(self, responses: str) -> Callable[[Any, Context], Any]:
        handler = self._handler
        if handler is None:
            raise RuntimeError("the gate let a method through that has no handler")
        requests = "stream" if handler.request_streaming else "unary"
        behavior: Callable[[Any, Context], Any] = getattr(handler, f"{requests}_{responses}")
        return behavior

    async def _admit(self, requests: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
        try:
            argument = await self._begin(requests, context)
            if self._guard is None and self._handler is not None:
                caller = current_caller()
                await self._take_turn(caller)
                self._gate.before_handler(self._admission, caller)
        except CasemateError as error:
            self._gate.refused(self._admission, error)
            raise
        return argument

    async def _begin(self, requests: AsyncIterator[bytes], context: Context) -> Any:  # noqa: ANN401
        """Proves the peer; what the handler gets is the parsed request, or an iterator that judges each message."""
        context.set_trailing_metadata(self._trailing)
        caller = self._gate.at_message(self._admission, auth_context(context))
        bind_caller(caller)
        handler = self._handler
        if handler is None:
            return None
        if handler.request_streaming or handler.response_streaming:
            self._guard = StreamGuard(
                self._gate, self._admission, caller, every_s=self._recheck_every_s, tell=partial(self._tell, context)
            )
        if handler.request_streaming:
            return _Messages(aiter(requests), self._take, bodies=self._bodies, refused=self._refused)
        return self._take(await self._await_body(requests, caller))

    def _refused(self, error: CasemateError) -> None:
        self._gate.refused(self._admission, error)

    async def _await_body(self, requests: AsyncIterator[bytes], caller: Caller) -> bytes:
        share = share_of(caller)
        try:
            raw, self._held = await self._bodies.only(requests, tenant=share, caller=caller.client_id or share)
        except StopAsyncIteration:
            raise no_message() from None
        return raw

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.end()

    def _take(self, raw: bytes) -> Any:  # noqa: ANN401
        self._judge_again()
        message = parse_request(raw, self._handler.request_deserializer if self._handler is not None else None)
        authorize_message(self._gate, self._admission, current_caller(), message)
        self._taken = self._handler is not None and self._handler.request_streaming
        return message

    async def _take_turn(self, caller: Caller) -> None:
        share = share_of(caller)
        await self._turns.take(share)
        self._share = share
        self._let_go()

    def _for_handler(self, argument: Any, context: Context) -> Context:  # noqa: ANN401
        """The context that a handler gets: one by which it reads and writes nothing that was not judged."""
        if self._guard is None:
            return context
        streaming = self._handler is not None and self._handler.request_streaming
        return _StreamContext(context, argument if streaming else None, self._guard)

    def _succeed(self, context: Context) -> None:
        trailing = context.trailing_metadata()
        if trailing is not self._trailing:
            context.set_trailing_metadata((*(trailing or ()), *self._trailing))
        self._code = status_name(context)

    async def _fail(self, error: BaseException, context: Context) -> None:
        """Ends the call by a status; returns only when the error itself has to go on."""
        guard = self._guard
        denial = guard.denial if guard is not None else None
        if isinstance(error, grpc.aio.AbortError):
            self._code = status_name(context)
            return
        if guard is not None and denial is not None:
            guard.forgive_cancellation()
            await guard.told()
            with guard.uninterrupted():
                await self._tell(context, denial)
        if isinstance(error, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is None or task.cancelling():
                return
            # Nobody ends this call: something that its handler waited for was cancelled. grpcio would leave it open.
            error = InternalError("the handler raised a cancellation that was not its own")
        await self._tell(context, error)

    async def _tell(self, context: Context, error: BaseException) -> None:
        """Sends the status of an error; raises grpcio's own when that is done."""
        status = to_status(error, request_id=self._admission.request_id)
        self._code = status.code.name
        status = status.with_trailing(*self._trailing)
        await context.abort(status.code, status.details, status.trailing)

    def _end(self) -> None:
        self._let_go()
        self._under_way.count -= 1
        if self._share is not None:
            self._turns.give(self._share)
        if self._guard is not None:
            self._guard.close()
        self._gate.finish(self._admission, self._code, taken=self._taken)


class _Messages:
    """The messages of a client's stream: each is judged, parsed and authorized before the handler sees it."""

    def __init__(
        self,
        raw: AsyncIterator[bytes],
        take: Callable[[bytes], Any],
        *,
        bodies: LateBodies,
        refused: Callable[[CasemateError], None],
    ) -> None:
        self._raw = raw
        self._take = take
        self._bodies: LateBodies | None = bodies
        self._refused = refused

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401  # any message
        bodies, self._bodies = self._bodies, None
        try:
            return self._take(await (anext(self._raw) if bodies is None else bodies.first(self._raw)))
        except CasemateError as error:
            self._refused(error)
            raise


class _StreamContext:
    """The context of a guarded call: `read` gives judged messages, and `write` says nothing once the call must end."""

    def __init__(self, context: Context, messages: AsyncIterator[Any] | None, guard: StreamGuard) -> None:
        self._context = context
        self._messages = messages
        self._guard = guard

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # whatever the context has
        return getattr(self._context, name)

    async def read(self) -> Any:  # noqa: ANN401  # a message, or grpcio's mark of the end
        if self._messages is None:
            return await self._context.read()
        return await anext(self._messages, grpc.aio.EOF)

    async def write(self, message: Any) -> None:  # noqa: ANN401  # any message
        self._guard.judge_again()
        with self._guard.uninterrupted():
            await self._context.write(message)
