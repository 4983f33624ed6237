"""The gate in front of our HTTP faces.

A face serves rpcs in another dress: each request is judged as the rpc that it stands
for, by the same policy, on every request of a connection. A method that needs a token
takes it from `Authorization`.

If this fails: handlers run for requests that the gate refused. TLS has still proven a
certificate of ours, and the domain proves the client behind it again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import CasemateError, InternalError
from casemate.gate.adapters.calls import RequestIds
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate
    from casemate.transport.http_messages import Answer, Request

REQUEST_ID_HEADER: Final = "Casemate-Request-Id"
"""On every answer, good or bad: what a caller quotes, and the logs know."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """A request whose peer was proven.

    Attributes:
        request: as it came; its body has not been read.
        caller: who sent it.
    """

    request: Request
    caller: Caller
    _gate: Gate
    _admission: Admission

    def narrow(self, method: str) -> None:
        """Says which rpc the request turns out to be, now that its body was read; judged again as that one.

        Raises:
            Unauthenticated: expired or revoked meanwhile.
            Unavailable: TRUST_STALE.
            InternalError: who may call it was not asked at the head.
        """
        policy, admitted = self._gate.policies.of(method), self._admission.policy
        if policy.access != admitted.access or policy.audit_allowed > admitted.audit_allowed:
            raise InternalError(f"{method} has callers that {admitted.method} has not")
        self._admission.method, self._admission.policy = method, policy
        self._gate.recheck(self._admission, self.caller)


class HttpGate:
    """Admits requests.

    Args:
        gate: decides.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._request_ids = RequestIds()

    async def serve(
        self,
        request: Request,
        method: str,
        *,
        answer: Callable[[HttpCall], Awaitable[Answer]],
        refuse: Callable[[CasemateError], Answer],
    ) -> Answer:
        """The answer to a request that stands for an rpc; whatever goes wrong, `refuse` says how that is told.

        Args:
            request: of which only the head was read.
            method: full name of the rpc.
            answer: serves an admitted request.
            refuse: turns an error into an answer, as the face's protocol has it.
        """
        request_id = self._request_ids.take()
        try:
            response = await self._admitted(request, method, request_id, answer)
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and _is_ended():
                raise
            # Errors outermost: whatever it is, its text stays here, and no request's SystemExit ends the server.
            to_status(error, request_id=request_id)  # logs it, once, as for an rpc
            response = refuse(error if isinstance(error, CasemateError) else InternalError())
        response.headers[REQUEST_ID_HEADER] = request_id
        return response

    async def _admitted(
        self,
        request: Request,
        method: str,
        request_id: str,
        answer: Callable[[HttpCall], Awaitable[Answer]],
    ) -> Answer:
        # Not spelled out where a certificate is enough, since nobody looks at it then.
        metadata = ((name.lower(), value) for name, value in request.headers.items())
        admission = self._gate.at_headers(method, metadata, request_id=request_id)
        code = "CANCELLED"
        try:
            caller = self._gate.at_message(admission, request.connection)
            response = await answer(HttpCall(request, caller, self._gate, admission))
            code = "OK"
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) or not _is_ended():
                code = InternalError.code.value
            if isinstance(error, CasemateError):
                code = error.code.value
            raise
        finally:
            self._gate.finish(admission, code)
        return response


def _is_ended() -> bool:
    """Whether somebody ends the request, and not something that its handler waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
