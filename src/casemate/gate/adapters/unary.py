"""Methods with one request and one response on the synchronous server: the way of nearly all calls, so it is short.

One object serves all calls of a method. What belongs to a call comes by the call's
own context, in which grpcio runs both the interceptor and the handler.

If this fails: handlers run for calls that the gate refused. Data stays sealed.
"""

from __future__ import annotations

from asyncio import CancelledError
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

import grpc

from casemate.errors import CasemateError, InternalError
from casemate.gate.adapters.caller_context import bind_caller, share_of
from casemate.gate.adapters.calls import (
    REQUEST_ID_KEY,
    authorize_message,
    no_message,
    parse_request,
    proven_caller,
    status_name,
)
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casemate.gate.adapters.bodies import Bodies
    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.status import WireStatus

ADMITTED: Final[ContextVar[Admission]] = ContextVar("casemate_admitted")
"""The admission of the call that runs, from its headers to its handler."""


class UnaryMethod:
    """Serves the admitted calls of one method.

    Args:
        gate: decides.
        behavior: the method's own.
        deserializer: of its requests.
        bodies: watches those that are waited for.
    """

    __slots__ = ("_behavior", "_bodies", "_deserializer", "_gate")

    def __init__(
        self,
        gate: Gate,
        *,
        behavior: Callable[[Any, grpc.ServicerContext], Any] | None,
        deserializer: Callable[[bytes], Any] | None,
        bodies: Bodies,
    ) -> None:
        if behavior is None:
            raise ValueError("a unary method without a behavior")
        self._gate = gate
        self._behavior = behavior
        self._deserializer = deserializer
        self._bodies = bodies

    def __call__(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:  # noqa: ANN401  # a message
        """Proves the peer before the body has come, then reads, parses, authorizes and serves.

        Whatever is raised becomes a status: grpcio leaves a call unanswered whose handler raised SystemExit, or by
        which compiled code panicked.
        """
        admission = ADMITTED.get()
        trailing = ((REQUEST_ID_KEY, admission.request_id),)
        code, judged = "CANCELLED", False
        try:
            context.set_trailing_metadata(trailing)
            caller = proven_caller(self._gate, admission, context)
            bind_caller(caller)
            raw = await_body(self._bodies, requests, context, caller, admission)
            message = parse_request(raw, self._deserializer)
            authorize_message(self._gate, admission, caller, message)
            self._gate.before_handler(admission, caller)
            judged = True
            response = self._behavior(message, context)
            code = succeed(context, trailing)
        except BaseException as error:
            if not judged and isinstance(error, CasemateError):
                self._gate.refused(admission, error)
            code, status = judge_failure(error, context, admission.request_id)
            if status is not None:
                context.abort_with_status(status.with_trailing(*trailing))
            raise
        else:
            return response
        finally:
            self._gate.finish(admission, code)


def await_body(
    bodies: Bodies, requests: Iterator[bytes], context: grpc.ServicerContext, caller: Caller, admission: Admission
) -> bytes:
    """The one message of a call.

    Raises:
        Exhausted: the caller lets too many wait.
        InvalidRequest: the call ended before its message.
        DeadlineExceeded: it came too late, and the call is being ended.
    """
    # Certificates without a token are a tenant's to have many of; clients are registered one by one.
    bodies.begin(context, caller.client_id or share_of(caller), admission)
    try:
        return next(requests)
    except StopIteration:
        raise no_message() from None
    finally:
        bodies.end(context)


def succeed(context: grpc.ServicerContext, trailing: tuple[tuple[str, str], ...]) -> str:
    """Adds our trailing metadata to the handler's, if it set any; the name of the status that it left."""
    present = context.trailing_metadata()
    if present is not trailing:
        context.set_trailing_metadata((*(present or ()), *trailing))
    # Its stubs forget the method.
    return "OK" if context.code() is None else status_name(context)  # type: ignore[attr-defined]


def judge_failure(
    error: BaseException, context: grpc.ServicerContext, request_id: str
) -> tuple[str, WireStatus | None]:
    """The name of the status that a call ends with, and the status; None where grpcio knows it already."""
    # A bare RpcError is grpcio's word that the peer left; a bare Exception, that the handler aborted.
    if type(error) is grpc.RpcError:
        return "CANCELLED", None
    if type(error) is Exception and not error.args and status_name(context) != "OK":
        return status_name(context), None
    if isinstance(error, CancelledError):
        error = InternalError("the handler raised a cancellation")  # nobody cancels a thread: it is a fault of its own
    status = to_status(error, request_id=request_id)
    return status.code.name, status
