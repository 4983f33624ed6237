"""The gate in front of grpcio's synchronous server.

Every method is shown to grpcio as one that takes a stream of raw bytes. Its call
is then put in line as soon as headers are in. There, before it waits for a thread, the
peer and the binding are judged: so it waits in its own tenant's line, and nothing of an
owner's share is taken by a stolen token. Nothing is read or parsed for a stranger.

If this fails: handlers run for calls that the gate refused. Data stays sealed.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from casemate.errors import CasemateError, DeadlineExceeded, Exhausted
from casemate.gate.adapters.bodies import TICK, Bodies
from casemate.gate.adapters.caller_context import bind_caller, share_of
from casemate.gate.adapters.calls import (
    REQUEST_ID_KEY,
    RequestIds,
    authorize_message,
    connection_of,
    parse_request,
    proven_caller,
)
from casemate.gate.adapters.early_end import cut, end_early
from casemate.gate.adapters.incoming import Incoming
from casemate.gate.adapters.lane import GatedMethod
from casemate.gate.adapters.overflow import OverflowingCall
from casemate.gate.adapters.stream_places import StreamPlaces
from casemate.gate.adapters.unary import ADMITTED, UnaryMethod, await_body, judge_failure, succeed
from casemate.gate.adapters.watchdog import Watchdog
from casemate.gate.adapters.watching import watching
from casemate.transport.fair_pool import SHARE
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import NoReturn

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.byte_budget import ByteBudget
    from casemate.transport.fair_pool import FairThreadPool
    from casemate.transport.lane import MakeCall
    from casemate.transport.registry import AtOnce

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

RECHECK_EVERY = timedelta(milliseconds=250)
"""A stream that may not go on is found after one of these, told after two, cut after four: within a second."""
BODY_WITHIN = timedelta(seconds=10)
STREAMS = 12
"""Three quarters of the threads that a server has if nothing else is said."""
_CUT_AFTER_S = 0.5
_STREAM_AGAIN = timedelta(seconds=1)
_STRANGERS = ""
"""The line of calls that are refused, and of all where grpcio does not show the connection of a call in line."""


class GateInterceptor(grpc.ServerInterceptor):
    """Puts a gate in front of every method of a `grpc.server`. Must be the outermost interceptor.

    Args:
        gate: decides.
        recheck_every: how often running streams are judged again; also at once when trust changes.
        body_within: how long a single request, or the first message of a stream, may take to arrive after its headers.
        streams: streams that may run at once, each of which holds a thread: fewer than the server has,
            so that some are left for single calls whoever streams. No tenant has more than three quarters of them.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        recheck_every: timedelta = RECHECK_EVERY,
        body_within: timedelta = BODY_WITHIN,
        streams: int = STREAMS,
    ) -> None:
        self._gate = gate
        self._streams = StreamPlaces(streams)
        self._request_ids = RequestIds()
        self._bodies = Bodies(clock=gate.clock, within=body_within, ended=gate.refused)
        self._body_within_s = body_within.total_seconds()
        self._watchdog = Watchdog(trust=gate.trust, clock=gate.clock, every=recheck_every)
        self._body_watchdog = Watchdog(trust=gate.trust, clock=gate.clock, every=TICK)
        self._bodies_watched = False
        self._unary: dict[str, tuple[Handler, Handler]] = {}

    def close(self) -> None:
        """Ends the threads that watch running calls."""
        self._watchdog.close()
        self._body_watchdog.close()

    def require_policies(self, methods: Iterable[str]) -> None:
        """Refuses to go on when one of these full method names has no policy.

        Raises:
            ConfigurationError: names them all.
        """
        self._gate.policies.require(methods)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler that serves this call if the gate goes on agreeing, or one that refuses it."""
        handler = continuation(handler_call_details)
        method = handler_call_details.method
        policy = self._gate.policies.find(method)
        request_id = self._request_ids.take()
        try:
            admission = self._gate.at_headers(
                method, handler_call_details.invocation_metadata, request_id=request_id, served=handler is not None
            )
        except BaseException as error:  # noqa: BLE001  # grpcio would send its text, or end the thread that serves all
            return _refusal(error, request_id)
        if handler is not None and policy is not None and policy.unwrapped:
            return watching(self._gate, admission, handler, self._watchdog)
        SHARE.set(partial(self._line_of, admission))
        self._watch_bodies()
        if handler is not None and not handler.request_streaming and not handler.response_streaming:
            ADMITTED.set(admission)
            return self._unary_method(method, handler)
        call = _Call(
            self._gate,
            admission,
            handler,
            self._watchdog,
            self._bodies,
            streams=self._streams,
            first_within_s=self._body_within_s,
        )
        serializer = handler.response_serializer if handler is not None else None
        if handler is not None and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(call.answer_many, None, serializer)
        return grpc.stream_unary_rpc_method_handler(call.answer_one, None, serializer)

    def _line_of(self, admission: Admission, submitted: Sequence[object]) -> str:
        """Whose line a call waits in: the pool asks, once, with what grpcio submits."""
        known = connection_of(submitted[1]) if len(submitted) > 1 else None
        if known is None:
            return _STRANGERS  # another grpcio: the peer is proven when the call's turn has come
        try:
            admission.caller = self._gate.at_message(admission, known)
            return share_of(admission.caller)
        except BaseException as error:  # noqa: BLE001  # raised when its turn has come, where a status can be sent
            admission.refusal = error.with_traceback(None)  # its frames hold the admission: they would be a ring
            return _STRANGERS

    def lane_method(
        self, method: str, handler: Handler, *, pool: FairThreadPool, at_once: AtOnce | None, budget: ByteBudget
    ) -> MakeCall | None:
        """What serves a unary method on the server's lane; None for what passes unwrapped, or without a policy."""
        policy = self._gate.policies.find(method)
        if policy is None or policy.unwrapped or handler.unary_unary is None:
            return None
        return GatedMethod(
            self._gate,
            method=method,
            handler=handler,
            bodies=self._bodies,
            watch_bodies=self._watch_bodies,
            request_ids=self._request_ids,
            pool=pool,
            at_once=at_once,
            budget=budget,
        )

    def lane_overflow(self, state: Any, event: Any) -> OverflowingCall:  # noqa: ANN401  # private types of grpcio
        """A call that came while the server had all that it takes: it is refused, and told when to come back."""
        return OverflowingCall(self._gate, self._request_ids.take(), state, event)

    def _watch_bodies(self) -> None:
        if not self._bodies_watched:
            self._bodies_watched = True  # a thread begins with the first call, and not when a server is made
            self._body_watchdog.add(self._bodies)

    def _unary_method(self, method: str, handler: Handler) -> Handler:
        """What serves a unary method, made once for as long as its handler stays the same."""
        known = self._unary.get(method)
        if known is not None and known[0] is handler:
            return known[1]
        serving = UnaryMethod(
            self._gate,
            behavior=handler.unary_unary,
            deserializer=handler.request_deserializer,
            bodies=self._bodies,
        )
        wrapped: Handler = grpc.stream_unary_rpc_method_handler(serving, None, handler.response_serializer)
        if self._gate.policies.find(method) is not None:  # a bound: names without a policy are the callers' to choose
            self._unary[method] = (handler, wrapped)
        return wrapped


def _refusal(error: BaseException, request_id: str) -> Handler:
    """A handler that refuses without waiting for the body: a streaming one does not read it."""

    def refuse(_requests: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
        context.abort_with_status(to_status(error, request_id=request_id).with_trailing((REQUEST_ID_KEY, request_id)))

    return grpc.stream_stream_rpc_method_handler(refuse)


class _Call:
    """One admitted call: what it waits for, and how it ends."""

    def __init__(
        self,
        gate: Gate,
        admission: Admission,
        handler: Handler | None,
        watchdog: Watchdog,
        bodies: Bodies,
        *,
        streams: StreamPlaces,
        first_within_s: float,
    ) -> None:
        self._gate = gate
        self._admission = admission
        self._handler = handler
        self._watchdog = watchdog
        self._bodies = bodies
        self._streams = streams
        self._first_within_s = first_within_s
        self._share: str | None = None
        self._trailing = ((REQUEST_ID_KEY, admission.request_id),)
        self._code = "CANCELLED"
        self._context: grpc.ServicerContext | None = None
        self._caller: Caller | None = None
        self._incoming: Incoming | None = None
        self._taken = False
        self._denial: CasemateError | None = None
        self._denied_at: float | None = None

    def answer_one(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:  # noqa: ANN401  # a message
        """Serves a method with one response."""
        try:
            response = self._behavior("unary")(self._admit(requests, context), context)
            self._judge_again()  # a handler that swallowed its end has not succeeded
            self._code = succeed(context, self._trailing)
        except BaseException as error:  # noqa: BLE001  # errors outermost; grpcio leaves what is no Exception unanswered
            self._fail(error, context)
        else:
            return response
        finally:
            self._end()

    def answer_many(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
        """Serves a method with a stream of responses."""
        try:
            for response in self._behavior("stream")(self._admit(requests, context), context):
                self._judge_again()
                yield response
            self._judge_again()
            self._code = succeed(context, self._trailing)
        except GeneratorExit:
            raise  # grpcio wants no more: the peer has left
        except BaseException as error:  # noqa: BLE001  # as above
            self._fail(error, context)
        finally:
            self._end()

    def tick(self, monotonic: float) -> None:
        """Judges this call again, from the watchdog's thread; wakes it if it waits for a message."""
        context = self._context
        if context is None:
            return
        if self._denial is None:
            try:
                self._judge_again()
                self._judge_silence(monotonic)
            except Exception as error:  # noqa: BLE001  # kept, and raised in the call's own thread
                if self._incoming is not None:
                    self._incoming.deny(error)
            return
        if self._denied_at is None:
            self._denied_at = monotonic
        status = to_status(self._denial, request_id=self._admission.request_id)
        if monotonic - self._denied_at >= _CUT_AFTER_S:
            cut(context, status, request_id=self._admission.request_id)  # its peer does not read either
        else:
            # The handler neither reads nor answers, so it cannot tell its peer itself.
            end_early(context, status.with_trailing(*self._trailing))

    def _judge_silence(self, monotonic: float) -> None:
        """Ends a stream that was opened and on which nothing came: it would hold a thread for a token's life."""
        silent = self._incoming is not None and self._incoming.awaits_first
        if silent and monotonic - self._admission.started >= self._first_within_s:
            self._denial = silence = DeadlineExceeded("the first message did not arrive")
            self._gate.refused(self._admission, silence)
            raise silence

    def _behavior(self, responses: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        handler = self._handler
        if handler is None:
            return _unreachable
        requests = "stream" if handler.request_streaming else "unary"
        behavior: Callable[[Any, grpc.ServicerContext], Any] = getattr(handler, f"{requests}_{responses}")
        return behavior

    def _admit(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:  # noqa: ANN401
        try:
            return self._begin(requests, context)
        except CasemateError as error:
            self._gate.refused(self._admission, error)
            raise

    def _begin(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:  # noqa: ANN401
        """Proves the peer; what the handler gets is the parsed request, or an iterator that judges each message."""
        context.set_trailing_metadata(self._trailing)
        self._context = context
        caller = self._caller = proven_caller(self._gate, self._admission, context)
        bind_caller(caller)
        handler = self._handler
        if handler is None:
            return None
        share = share_of(caller)
        if not self._streams.take(share):
            raise Exhausted("all streams that may run do", retry_after=_STREAM_AGAIN)
        self._share = share
        if handler.request_streaming:
            self._watchdog.add(self)
            self._incoming = Incoming(requests, lambda raw: self._take(raw, caller))
            return self._incoming
        message = self._take(await_body(self._bodies, requests, context, caller, self._admission), caller)
        self._gate.before_handler(self._admission, caller)
        if handler.response_streaming:
            self._watchdog.add(self)
        return message

    def _take(self, raw: bytes, caller: Caller) -> Any:  # noqa: ANN401
        if self._incoming is not None:
            self._judge_again()
        try:
            message = parse_request(raw, self._handler.request_deserializer if self._handler is not None else None)
        except CasemateError as error:
            self._gate.refused(self._admission, error)
            raise
        authorize_message(self._gate, self._admission, caller, message)
        self._taken = self._incoming is not None
        return message

    def _judge_again(self) -> None:
        if self._denial is not None:
            raise self._denial
        if self._caller is not None:
            try:
                self._gate.recheck(self._admission, self._caller)
            except Exception as error:
                self._denial = error  # type: ignore[assignment]  # ours, or a bug that ends the call as well
                raise

    def _fail(self, error: BaseException, context: grpc.ServicerContext) -> NoReturn:
        self._code, status = judge_failure(self._denial or error, context, self._admission.request_id)
        if status is not None:
            context.abort_with_status(status.with_trailing(*self._trailing))
        raise error

    def _end(self) -> None:
        self._watchdog.remove(self)
        if self._share is not None:
            self._streams.give(self._share)
        if self._incoming is not None:
            self._incoming.close()
        self._gate.finish(self._admission, self._code, taken=self._taken)


def _unreachable(_argument: object, _context: grpc.ServicerContext) -> Any:  # noqa: ANN401
    raise RuntimeError("the gate let a method through that has no handler")
