"""A call that came while the synchronous server had all the calls that it takes.

grpcio refuses such a call by a code alone. Here it is refused as every other: with a request id,
with a word of when to come back, and with an event in the audit, repeats counted. Nothing of it
is judged or read, and it takes no thread and no place.

If this fails: whoever is refused does not know for how long, and nobody why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casemate.gate.adapters.calls import REQUEST_ID_KEY
from casemate.transport.lane_call import LaneCall
from casemate.transport.status import to_status

if TYPE_CHECKING:
    from casemate.gate.core.gate import Gate


class OverflowingCall(LaneCall):
    """One such call, of any method.

    Args:
        gate: notes it.
        request_id: of the call.
        state: grpcio's, of the server.
        event: grpcio's, that brought its headers.
    """

    def __init__(self, gate: Gate, request_id: str, state: Any, event: Any) -> None:  # noqa: ANN401  # private types of grpcio
        super().__init__(state, event)
        self._gate = gate
        self._request_id = request_id

    def begin(self) -> None:
        """Refuses it."""
        event = self._rpc_event
        # Of a registered method the event has the name; of others, the headers.
        method = event.call_details.method.decode("ascii", "replace") or event.tag
        error = self._gate.overflowed(method, request_id=self._request_id)
        status = to_status(error, request_id=self._request_id)
        self.set_code(status.code)
        self.set_details(status.details)
        self.set_trailing_metadata((*status.trailing, (REQUEST_ID_KEY, self._request_id)))
        self.answer(None)

    def arrived(self, raw: bytes | None) -> None:
        """Never: no message is asked for."""
