"""What both adapters do with one call's bytes and names."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate

REQUEST_ID_KEY: Final = "casemate-request-id"
"""Trailing metadata of every answer, good or bad: what a caller quotes, and the logs know."""

_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


def new_request_id() -> str:
    """An identifier that nobody chose: 64 random bits, in hex. Never taken from the caller."""
    return secrets.token_hex(8)


def parse_request(raw: bytes, deserializer: Callable[[bytes], Any] | None) -> Any:  # noqa: ANN401  # any message
    """The message that these bytes are.

    Raises:
        InvalidRequest: they are none; grpcio alone would answer with the class's name.
    """
    if deserializer is None:
        return raw
    try:
        return deserializer(raw)
    except (DecodeError, ValueError, TypeError) as error:
        raise InvalidRequest("bytes are not the method's message") from error


def authorize_message(gate: Gate, admission: Admission, caller: Caller, message: Any) -> None:  # noqa: ANN401
    """Requires the grant for what this message names, if it is the first or names another resource.

    Raises:
        NotFound: no grant.
        InvalidRequest: the first message names nothing and had to.
    """
    selector = admission.policy.resource
    if selector is None:
        return
    resource = selector.of(message)
    if admission.resource is None or (resource is not None and resource != admission.resource):
        gate.authorize(admission, caller, resource)


def no_message() -> InvalidRequest:
    """The refusal of a call that ended before its one message."""
    return InvalidRequest("no message", violations=(FieldViolation(field="", description="a message must be sent"),))


def auth_context(context: Any) -> Mapping[str, Sequence[bytes]]:  # noqa: ANN401  # either server's context
    """What grpcio knows of the connection; costs 5 µs. Its stubs say one value where it gives a list."""
    known: Mapping[str, Sequence[bytes]] = context.auth_context()
    return known


def status_name(context: Any) -> str:  # noqa: ANN401  # either server's context
    """Name of the status that a handler left in its context; `OK` when it left none."""
    code = context.code()
    if code is None:
        return "OK"
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"
