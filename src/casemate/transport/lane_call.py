"""One unary call on the server's lane, and the context that its handler gets.

It is to the lane what `_RPCState` and `_Context` are to grpcio's own way: the batches that
are under way, and what a handler may ask and say. It has no thread; the serving thread
brings its events, and whichever thread has its answer sends that.

If this fails: calls are lost. What a call may do is decided by whoever derives from it:
`begin` comes before any of the call's message is asked for.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from casemate.transport.lane_turns import STRANGERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn, TypeAlias

    from casemate.transport.lane_turns import Turns

    Ended: TypeAlias = tuple[Any, Sequence[Callable[[], None]]]
    """What grpcio's loop takes from an event: what is over, if it is, and whom to tell."""

CYGRPC: Any = None
_COMMON: Any = None
_COMPRESSION: Any = None
try:
    # Private: a release without them is served grpcio's way.
    from grpc import _common, _compression
    from grpc._cython import cygrpc

    CYGRPC, _COMMON, _COMPRESSION = cygrpc, _common, _compression
except ImportError:
    pass

_OF_CYGRPC: Final = (
    *("ReceiveMessageOperation", "ReceiveCloseOnServerOperation", "SendInitialMetadataOperation"),
    *("SendMessageOperation", "SendStatusFromServerOperation", "CompletionType", "StatusCode", "WriteFlag"),
    *("auth_context", "peer_identities", "peer_identity_key"),
)
_OF_COMMON: Final = ("STATUS_CODE_TO_CYGRPC_STATUS_CODE", "decode", "encode")
AVAILABLE: Final = (
    all(hasattr(CYGRPC, name) for name in _OF_CYGRPC)
    and all(hasattr(_COMMON, name) for name in _OF_COMMON)
    and hasattr(_COMPRESSION, "compression_algorithm_to_metadata")
)
"""Whether this release of grpcio has what is needed here."""

_NO_FLAGS: Final = 0
_LOGGER = logging.getLogger(__name__)


class LaneCall(grpc.ServicerContext):
    """One unary call, and the context that its handler gets.

    The serving thread calls `begin`, and `arrived` if that asked for the message. Some thread
    calls `answer` once, whatever happened; it may be the serving one.

    Attributes:
        line: whose turn serves its events. The lane guesses it by the connection; `begin` sets it, once it is proven.
        turns: where its message waits for that.
    """

    turns: Turns
    line = STRANGERS

    def __init__(self, state: Any, event: Any) -> None:  # noqa: ANN401  # private types of grpcio
        self._server_state = state
        self._rpc_event = event
        self._turn = threading.Lock()
        self._due = 0
        self._watching = self._answered = self._cancelled = self._over = self._begun = self._uncompressed = False
        self._callbacks: list[Callable[[], None]] | None = []
        self._code: Any = None
        self._details = b""
        self._trailing: Any = None
        self._compression: Any = None

    @abstractmethod
    def begin(self) -> None:
        """Headers are in: `ask` for the message, or `answer`."""

    @abstractmethod
    def arrived(self, raw: bytes | None) -> None:
        """The message is in; None: the call ended without one. `answer`, now or later."""

    def take(self) -> None:
        """Begins the call. Nothing leaves this by exception."""
        try:
            self.begin()
        except BaseException as error:  # noqa: BLE001  # the loop must live
            self._break(error)

    def ask(self) -> bool:
        """Asks for the message; False if the call is over, and none will come."""
        with self._turn:
            if self._over:
                return False
            self._due += 1
            self._rpc_event.call.start_server_batch((CYGRPC.ReceiveMessageOperation(_NO_FLAGS),), self._on_message)
            return True

    def watch(self) -> None:
        """Wants to know from now on when the peer leaves. Costs an event, so whoever answers at once does without."""
        with self._turn:
            if self._watching or self._answered:
                return
            self._watching = True
            self._due += 1
            self._rpc_event.call.start_server_batch((CYGRPC.ReceiveCloseOnServerOperation(_NO_FLAGS),), self._on_close)

    def answer(self, reply: bytes | None) -> None:
        """Ends the call by the code, details and trailing metadata that it has now, with a message if there is one."""
        with self._turn:
            if self._answered:
                return
            self._answered = True
            if not self._over:
                self._send(reply)
        with self._server_state.lock:
            self._server_state.active_rpc_count -= 1

    @property
    def left(self) -> bool:
        """Whether the peer is known to have left; known only of calls that `watch`."""
        return self._cancelled

    def _send(self, reply: bytes | None) -> None:
        self._due += 1
        try:
            self._rpc_event.call.start_server_batch(self._ending(reply, self._trailing), self._on_end)
        except Exception:
            # What a handler set, or gave, and what cannot be sent; the peer is to hear of an end all the same.
            _LOGGER.exception("an answer could not be sent")
            self._code, self._details, self._compression = grpc.StatusCode.INTERNAL, b"", None
            self._rpc_event.call.start_server_batch(self._ending(None, None), self._on_end)

    def _ending(self, reply: bytes | None, trailing: Any) -> list[Any]:  # noqa: ANN401
        code = CYGRPC.StatusCode.ok
        if self._code is not None:
            code = _COMMON.STATUS_CODE_TO_CYGRPC_STATUS_CODE.get(self._code, CYGRPC.StatusCode.unknown)
        operations = [CYGRPC.SendStatusFromServerOperation(trailing, code, self._details, _NO_FLAGS)]
        if not self._begun:
            operations.append(CYGRPC.SendInitialMetadataOperation(self._initial(None), _NO_FLAGS))
        if reply is not None:
            flags = CYGRPC.WriteFlag.no_compress if self._uncompressed else _NO_FLAGS
            operations.append(CYGRPC.SendMessageOperation(reply, flags))
        if not self._watching:
            operations.append(CYGRPC.ReceiveCloseOnServerOperation(_NO_FLAGS))
        return operations

    def _initial(self, metadata: Any) -> Any:  # noqa: ANN401
        if not self._compression:
            return metadata
        return (_COMPRESSION.compression_algorithm_to_metadata(self._compression), *(metadata or ()))

    def _break(self, error: BaseException) -> None:
        _LOGGER.error("a call could not be served", exc_info=error)
        self._code, self._details, self._trailing = grpc.StatusCode.INTERNAL, b"", None
        self.answer(None)

    # Events. The serving loop calls these, and takes what is over out of what it waits for.

    def _on_message(self, event: Any) -> Ended:  # noqa: ANN401
        with self._turn:
            self._due -= 1
        self.turns.put(self.line, partial(self._bring, event.batch_operations[0].message()))
        return None, ()

    def _bring(self, raw: bytes | None) -> None:
        try:
            self.arrived(raw)
        except BaseException as error:  # noqa: BLE001  # the loop must live
            self._break(error)

    def _on_close(self, event: Any) -> Ended:  # noqa: ANN401
        gone: Sequence[Callable[[], None]] = ()
        if event.batch_operations[0].cancelled():
            with self._turn:
                self._cancelled = True
                gone, self._callbacks = self._callbacks or (), None
        over, ended = self._on_end(event)
        return over, (*gone, *ended)

    def _on_end(self, _event: Any) -> Ended:  # noqa: ANN401
        with self._turn:
            self._due -= 1
            # A call whose peer left is over for the server, whatever its handler does: a server that ends would
            # wait for it otherwise.
            if self._due or not (self._answered or self._cancelled):
                return None, ()
            self._over = True
            ended, self._callbacks = self._callbacks or (), None
        return self, ended

    # The context, as grpcio's own behaves.

    def is_active(self) -> bool:
        """Whether anybody waits for the answer; the first time it asks, and knows from then on."""
        self.watch()
        return not self._cancelled and not self._answered

    def time_remaining(self) -> float:
        """Seconds until the peer's deadline."""
        return float(max(self._rpc_event.call_details.deadline - time.time(), 0))

    def cancel(self) -> None:  # type: ignore[override]  # as grpcio's own
        """Ends the call, from any thread."""
        self._rpc_event.call.cancel()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Has a function called when the call ends; False when it has."""
        self.watch()
        with self._turn:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def disable_next_message_compression(self) -> None:
        """The answer goes as it is."""
        self._uncompressed = True

    def set_compression(self, compression: grpc.Compression) -> None:
        """How the answer is compressed."""
        self._compression = compression

    def invocation_metadata(self) -> Any:  # noqa: ANN401
        """What came with the headers."""
        return self._rpc_event.invocation_metadata

    def peer(self) -> str:
        """The peer's address."""
        return str(_COMMON.decode(self._rpc_event.call.peer()))

    def peer_identities(self) -> Any:  # noqa: ANN401
        """The peer's names, as grpcio knows them."""
        return CYGRPC.peer_identities(self._rpc_event.call)

    def peer_identity_key(self) -> str | None:
        """What kind of names these are."""
        key = CYGRPC.peer_identity_key(self._rpc_event.call)
        return None if key is None else str(_COMMON.decode(key))

    def auth_context(self) -> Any:  # noqa: ANN401
        """What grpcio knows of the connection."""
        found = CYGRPC.auth_context(self._rpc_event.call) or {}
        return {_COMMON.decode(key): value for key, value in found.items()}

    def send_initial_metadata(self, initial_metadata: Any) -> None:  # noqa: ANN401
        """Sends metadata before the answer."""
        with self._turn:
            if self._cancelled:
                raise grpc.RpcError
            if self._begun:
                raise ValueError("Initial metadata no longer allowed!")
            operation = CYGRPC.SendInitialMetadataOperation(self._initial(initial_metadata), _NO_FLAGS)
            self._rpc_event.call.start_server_batch((operation,), self._on_end)
            # Only now: what cannot be sent raises, and no event of it comes. One that has come waits for this lock.
            self._begun = True
            self._due += 1

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:  # noqa: ANN401
        """Metadata to go with the status."""
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Any:  # noqa: ANN401
        """What `set_trailing_metadata` was given last."""
        return self._trailing

    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn:
        """Ends the handler, and the call by this status; OK is no such."""
        if code is grpc.StatusCode.OK:
            code, details = grpc.StatusCode.UNKNOWN, ""
        self.set_code(code)
        self.set_details(details)
        raise Exception  # noqa: TRY002  # bare, as grpcio raises it: adapters know an abort by that

    def abort_with_status(self, status: Any) -> NoReturn:  # noqa: ANN401
        """Likewise, with metadata."""
        self._trailing = status.trailing_metadata
        self.abort(status.code, status.details)

    def set_code(self, code: Any) -> None:  # noqa: ANN401
        """The code to end by; None is OK."""
        self._code = code

    def code(self) -> Any:  # noqa: ANN401
        """What `set_code` was given last."""
        return self._code

    def set_details(self, details: str) -> None:
        """The text to end by."""
        self._details = _COMMON.encode(details)

    def details(self) -> bytes:
        """What `set_details` was given last, as bytes."""
        return self._details
