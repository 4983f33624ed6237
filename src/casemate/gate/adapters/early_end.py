"""Ends a call of the synchronous server by a status while its handler neither reads nor answers.

grpcio's public means from another thread is `cancel`, which tells the peer CANCELLED
and not why. Beneath it lies what an abort does in the handler's own thread, and a
cancellation that carries a status; they are used from here where grpcio has them.

If this fails: the call is cancelled a moment later; its peer learns that it ended and not why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_abort: Any = None
_CODES: Any = None
try:
    # Private, as what follows: a release without them leaves `cancel`.
    from grpc._common import STATUS_CODE_TO_CYGRPC_STATUS_CODE as _KNOWN_CODES

    _CODES = _KNOWN_CODES
except ImportError:
    pass
try:
    from grpc._server import _CANCELLED, _SEND_INITIAL_METADATA_AND_SEND_MESSAGE_TOKEN, _SEND_MESSAGE_TOKEN
    from grpc._server import _abort as _known_abort

    _abort = _known_abort
    _SENDING = frozenset({_SEND_MESSAGE_TOKEN, _SEND_INITIAL_METADATA_AND_SEND_MESSAGE_TOKEN})
except ImportError:
    pass

if TYPE_CHECKING:
    from casemate.transport.status import WireStatus


def end_early(context: Any, status: WireStatus) -> None:  # noqa: ANN401  # the synchronous server's context
    """Sends a status and has whatever the handler still says go nowhere.

    Nothing happens if a message is half sent (a status cannot follow it) or the call has ended.
    """
    if _abort is None or _CODES is None:
        return
    try:
        state, call = context._state, context._rpc_event.call  # see above
        with state.condition:
            if state.client is _CANCELLED or state.statused or not _SENDING.isdisjoint(state.due):
                return
            state.code, state.details = status.code, status.details.encode()
            state.trailing_metadata = status.trailing
            _abort(state, call, _CODES[status.code], status.details.encode())
            # For the handler's own thread the call is over: it sends nothing more, and finishes.
            state.client = _CANCELLED
    except AttributeError:
        return  # another grpcio; `cancel` follows


def cut(context: Any, status: WireStatus, *, request_id: str) -> None:  # noqa: ANN401  # of either way of serving
    """Ends a call at once, whatever waits to be sent or read; from any thread.

    The peer gets code and text, with the request id in the text: what it does not read holds up
    metadata, and this goes past it. Where a release of grpcio cannot say that, it gets CANCELLED.
    """
    try:
        cancel, code = context._rpc_event.call.cancel, _CODES[status.code]  # see above
        cancel(code, f"{status.details} (request {request_id})")
    except (AttributeError, TypeError):
        context.cancel()
