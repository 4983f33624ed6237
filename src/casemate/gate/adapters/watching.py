"""Health's Watch on the synchronous server: a call that waits for news and holds neither a thread nor a place.

grpcio knows a behaviour that takes no thread by attributes of its function, and calls it
with a callback to send by. What is made here has the same attributes, proves the peer, and
hands the call on as it is; from then on the watchdog judges it, and ends it with its right.

If this fails: whoever has a certificate that was revoked is still told whether the server
serves, until its connection ages out (ten minutes), and nothing else.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from casemate.gate.adapters.calls import REQUEST_ID_KEY, proven_caller
from casemate.gate.adapters.early_end import cut, end_early
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from casemate.gate.adapters.watchdog import Watchdog
    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.status import WireStatus

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_CARRIED = ("experimental_non_blocking", "experimental_thread_pool")
_TOLD_BEFORE_CANCELLED = 2


def watching(gate: Gate, admission: Admission, handler: Handler, watchdog: Watchdog) -> Handler:
    """The handler of one call of `handler`, which proves its peer and watches it."""
    behavior = handler.unary_stream
    if behavior is None:
        raise RuntimeError("a method that is to be watched answers by no stream")

    def watch(request: object, context: grpc.ServicerContext, *send: Callable[[object], None], **named: Any) -> Any:  # noqa: ANN401
        call = _Watching(gate, admission, context, watchdog)
        call.begin()
        return behavior(request, context, *send, **named)

    for name in _CARRIED:
        if hasattr(behavior, name):
            setattr(watch, name, getattr(behavior, name))
    return grpc.unary_stream_rpc_method_handler(watch, handler.request_deserializer, handler.response_serializer)


class _Watching:
    """One such call."""

    def __init__(self, gate: Gate, admission: Admission, context: grpc.ServicerContext, watchdog: Watchdog) -> None:
        self._gate = gate
        self._admission = admission
        self._context = context
        self._watchdog = watchdog
        self._caller: Caller | None = None
        self._denied: WireStatus | None = None
        self._told = 0
        self._ending = threading.Lock()
        self._ended = False

    def begin(self) -> None:
        """Proves the peer, or ends the call."""
        try:
            self._caller = proven_caller(self._gate, self._admission, self._context)
        except BaseException as error:  # noqa: BLE001  # errors outermost: grpcio leaves others than Exception open
            status = self._status(error)
            self._end(status.code.name)
            self._context.abort_with_status(status)
        self._context.set_trailing_metadata(((REQUEST_ID_KEY, self._admission.request_id),))
        self._watchdog.add(self)
        if not self._context.add_callback(self._end):
            self._end()

    def tick(self, _monotonic: float) -> None:
        """Judges the call again, from the watchdog's thread."""
        if self._caller is None:
            return
        if self._denied is None:
            try:
                self._gate.recheck(self._admission, self._caller)
            except Exception as error:  # noqa: BLE001  # a bug in judging ends the call as well
                self._denied = self._status(error)
        if self._denied is None:
            return
        if self._told < _TOLD_BEFORE_CANCELLED:
            self._told += 1
            end_early(self._context, self._denied)
        else:
            cut(self._context, self._denied, request_id=self._admission.request_id)  # its peer does not read

    def _status(self, error: BaseException) -> WireStatus:
        status = to_status(error, request_id=self._admission.request_id)
        return status.with_trailing((REQUEST_ID_KEY, self._admission.request_id))

    def _end(self, code: str | None = None) -> None:
        with self._ending:
            ended, self._ended = self._ended, True
        if ended:
            return
        self._watchdog.remove(self)
        denied = None if self._denied is None else self._denied.code.name
        self._gate.finish(self._admission, code or denied or "CANCELLED")
