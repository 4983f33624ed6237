"""Unary calls on the server's lane: headers, peer and binding on the serving thread, before any message is asked for.

The steps are those of `unary`, in the same order. What differs is who makes them: up to
the message no thread waits, so bodies that do not arrive hold none; and a call whose
handler is known to be short runs where its message arrived.

If this fails: handlers run for calls that the gate refused. Data stays sealed.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import CasemateError, DeadlineExceeded, Unavailable
from casemate.gate.adapters.caller_context import bind_caller, share_of, share_of_path
from casemate.gate.adapters.calls import (
    REQUEST_ID_KEY,
    RequestIds,
    auth_context,
    authorize_message,
    no_message,
    parse_request,
)
from casemate.gate.adapters.unary import judge_failure, succeed
from casemate.gate.core.caller import spiffe_path
from casemate.transport.lane_call import LaneCall
from casemate.transport.registry import LATER, AnswersLater
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from casemate.gate.adapters.bodies import Bodies
    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.byte_budget import ByteBudget, Held
    from casemate.transport.fair_pool import FairThreadPool
    from casemate.transport.registry import AtOnce, Behavior
    from casemate.transport.status import WireStatus

AT_ONCE_BYTES: Final = 16 * 1024
"""Messages up to this size are parsed on the serving thread, where their method may be served at once."""


class GatedMethod:
    """Makes the calls of one method.

    Args:
        gate: decides.
        method: full name.
        handler: the method's own.
        bodies: watches those that are waited for.
        watch_bodies: begins that watch; called for each call.
        request_ids: names for calls.
        pool: threads for what is not served at once.
        at_once: what serves a message here; None: nothing.
        budget: bytes for messages that wait.
    """

    __slots__ = (
        "at_once",
        "behavior",
        "bodies",
        "budget",
        "deserializer",
        "gate",
        "method",
        "pool",
        "request_ids",
        "serializer",
        "watch_bodies",
    )

    def __init__(
        self,
        gate: Gate,
        *,
        method: str,
        handler: grpc.RpcMethodHandler[Any, Any],
        bodies: Bodies,
        watch_bodies: Callable[[], None],
        request_ids: RequestIds,
        pool: FairThreadPool,
        at_once: AtOnce | None,
        budget: ByteBudget,
    ) -> None:
        if handler.unary_unary is None:
            raise ValueError("a unary method without a behavior")
        self.gate = gate
        self.method = method
        self.behavior: Behavior = handler.unary_unary
        self.deserializer = handler.request_deserializer
        self.serializer = handler.response_serializer
        self.bodies = bodies
        self.watch_bodies = watch_bodies
        self.request_ids = request_ids
        self.pool = pool
        self.at_once = at_once
        self.budget = budget

    def __call__(self, state: Any, event: Any) -> GatedCall:  # noqa: ANN401  # private types of grpcio
        """One call."""
        return GatedCall(self, state, event)


class GatedCall(LaneCall, AnswersLater):
    """One call on its way from its headers to its answer.

    Whatever is raised becomes a status, SystemExit and a panic of compiled code too: nobody
    else is there to answer, and the thread serves others.
    """

    _admission: Admission
    _caller: Caller
    _held: Held | None = None

    def __init__(self, of: GatedMethod, state: Any, event: Any) -> None:  # noqa: ANN401
        super().__init__(state, event)
        self._of = of

    def begin(self) -> None:
        """Admits the call, proves its peer, and asks for its message; or refuses it, and nothing of it is read."""
        of = self._of
        request_id = of.request_ids.take()
        try:
            admission = of.gate.at_headers(of.method, self.invocation_metadata(), request_id=request_id)
        except BaseException as error:  # noqa: BLE001  # errors outermost
            self._refuse(to_status(error, request_id=request_id), request_id)
            return
        self._admission = admission
        self._ours = ((REQUEST_ID_KEY, request_id),)
        self._trailing = self._ours
        of.watch_bodies()
        try:
            self._caller = caller = of.gate.at_message(admission, auth_context(self))
            self.line = share_of(caller)
        except BaseException as error:  # noqa: BLE001
            if admission.peer is not None:  # of a token that is not its own, the line is not either
                self.line = share_of_path(spiffe_path(admission.peer.spiffe_id))
            self._fail(error, judged=False)
            return
        held = of.budget.ask(tenant=self.line, caller=caller.client_id or self.line, go=self._ask)
        self._held = held
        if self._answered:
            held.end()  # refused meanwhile
        elif not held.bytes and not self.add_callback(self._leave):  # its message waits with its peer
            self._leave()

    def _ask(self) -> None:
        """There is room for the message: now, or on the thread of whoever made some."""
        caller = self._caller
        try:
            # Certificates without a token are a tenant's to have many of; clients are registered one by one.
            self._of.bodies.begin(self, caller.client_id or share_of(caller), self._admission)
        except BaseException as error:  # noqa: BLE001
            self._fail(error, judged=False)
            return
        if not self.ask():
            self._of.bodies.forget(self)
            self._end_unasked()

    def _leave(self) -> None:
        """The peer left. If its message was never asked for, nothing else tells of the end."""
        if self._held is not None and self._held.leave():
            self._end_unasked()

    def _end_unasked(self) -> None:
        self._of.gate.finish(self._admission, "CANCELLED")
        self.answer(None)
        self._let_go()  # likewise

    def _let_go(self) -> None:
        if self._held is not None:
            self._held.end()

    def arrived(self, raw: bytes | None) -> None:
        """Serves the message here, or gives it to a thread."""
        of = self._of
        try:
            of.bodies.end(self)
        except DeadlineExceeded as error:
            self._fail(error, judged=True)
            return
        if raw is None:
            self._let_go()
            self._end_without_message()
        elif of.at_once is None or len(raw) > AT_ONCE_BYTES:
            if self._held is not None:
                self._held.arrived(len(raw))
            self._queue(self._judge_and_serve, raw)
        else:
            self._let_go()  # what is so small and waits for a thread is bounded by the places
            try:
                message = self._judge(raw)
                here = of.at_once(self._caller, message, self)
            except BaseException as error:  # noqa: BLE001
                self._fail(error, judged=False)
                return
            if here is not None:
                Context().run(self._serve, message, here)  # what it sets must not be the next call's
            else:
                self._queue(self._serve, message)

    def _end_without_message(self) -> None:
        """Its peer left, which is no denial, or sent none: the end of the call tells, and is then noted."""
        self._admission.release()
        self.add_callback(self._note_end)
        self._refuse(to_status(no_message(), request_id=self._admission.request_id), self._admission.request_id)

    def _note_end(self) -> None:
        gate, error = self._of.gate, no_message()
        if not self.left:
            gate.refused(self._admission, error)
        gate.finish(self._admission, "CANCELLED" if self.left else error.code.value)

    def _queue(self, serve: Callable[[Any], None], given: Any) -> None:  # noqa: ANN401
        self.watch()
        try:
            self._of.pool.run(share_of(self._caller), self._in_thread, serve, given)
        except RuntimeError:  # the server ends
            self._fail(Unavailable("no thread is left"), judged=True)

    def _in_thread(self, serve: Callable[[Any], None], given: Any) -> None:  # noqa: ANN401
        self._let_go()
        if self.left:
            self._of.gate.finish(self._admission, "CANCELLED")
            self.answer(None)
        else:
            Context().run(serve, given)

    def _judge(self, raw: bytes) -> Any:  # noqa: ANN401  # a message
        message = parse_request(raw, self._of.deserializer)
        authorize_message(self._of.gate, self._admission, self._caller, message)
        return message

    def _judge_and_serve(self, raw: bytes) -> None:
        try:
            message = self._judge(raw)
        except BaseException as error:  # noqa: BLE001
            self._fail(error, judged=False)
        else:
            self._serve(message)

    def _serve(self, message: Any, behavior: Behavior | None = None) -> None:  # noqa: ANN401
        of, judged = self._of, False
        try:
            of.gate.before_handler(self._admission, self._caller)
            judged = True
            bind_caller(self._caller)
            reply = (behavior or of.behavior)(message, self)
        except BaseException as error:  # noqa: BLE001
            self._fail(error, judged=judged)
            return
        if reply is LATER:
            self.watch()  # no thread holds it: a server that ends must hear of its end from grpcio
        else:
            self.conclude(lambda: reply)

    def conclude(self, reply: Callable[[], Any]) -> None:
        """Ends a judged call by what `reply` returns or raises; from any thread, once."""
        of = self._of
        try:
            message = reply()
            if of.serializer is not None:
                message = of.serializer(message)
            code = succeed(self, self._ours)
        except BaseException as error:  # noqa: BLE001
            self._fail(error, judged=True)
            return
        of.gate.finish(self._admission, code)
        self.answer(message)

    def in_thread(self, work: Callable[[], object]) -> None:
        """Gives work a thread, in the line of the caller's tenant."""
        self._of.pool.run(share_of(self._caller), work)

    def _fail(self, error: BaseException, *, judged: bool) -> None:
        try:
            self._end_by(error, judged=judged)
        except BaseException as broken:  # noqa: BLE001  # of what a handler left: nobody else would answer
            self._break(broken)
        finally:
            self._let_go()  # after the answer: what `begin` is given meanwhile, it gives back itself

    def _end_by(self, error: BaseException, *, judged: bool) -> None:
        gate, admission = self._of.gate, self._admission
        if not judged and isinstance(error, CasemateError):
            gate.refused(admission, error)
        code, status = judge_failure(error, self, admission.request_id)
        gate.finish(admission, code)
        if status is not None:
            self._refuse(status, admission.request_id)
            return
        if self._trailing is not self._ours:
            self._trailing = (*(self._trailing or ()), *self._ours)
        self.answer(None)

    def _refuse(self, status: WireStatus, request_id: str) -> None:
        self.set_code(status.code)
        self.set_details(status.details)
        self.set_trailing_metadata((*status.trailing, (REQUEST_ID_KEY, request_id)))
        self.answer(None)
