"""What both adapters do with one call's bytes and names."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.message import DecodeError

from casemate.errors import FieldViolation, InvalidRequest

try:
    # Private, and without types: see `auth_context`.
    from grpc._cython.cygrpc import auth_context as _known_of  # type: ignore[import-not-found]
except ImportError:
    _known_of = None

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casemate.gate.core.admission import Admission
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.gate import Gate

REQUEST_ID_KEY: Final = "casemate-request-id"
"""Trailing metadata of every answer, good or bad: what a caller quotes, and the logs know."""

_NOTHING: Final[dict[bytes, list[bytes]]] = {}
_ID_BYTES: Final = 8
_IDS_AT_ONCE: Final = 256
_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}


class RequestIds:
    """Identifiers that nobody chose: 64 random bits each, in hex. Never taken from a caller. Safe in threads.

    Asking the kernel for bits lets another thread go first, which costs a call more
    than all of this, so they are fetched for many calls at once.
    """

    def __init__(self) -> None:
        self._left: list[str] = []

    def take(self) -> str:
        """The next one."""
        try:
            return self._left.pop()
        except IndexError:
            drawn = secrets.token_hex(_ID_BYTES * _IDS_AT_ONCE)
            digits = 2 * _ID_BYTES
            self._left.extend(drawn[at : at + digits] for at in range(digits, len(drawn), digits))
            return drawn[:digits]


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


def proven_caller(gate: Gate, admission: Admission, context: Any) -> Caller:  # noqa: ANN401  # either server's context
    """The caller, as it was proven while its call waited in line, or else now.

    Raises:
        CasemateError: as `Gate.at_message`.
    """
    refusal, admission.refusal = admission.refusal, None
    if refusal is not None:
        raise refusal
    return admission.caller or gate.at_message(admission, auth_context(context))


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
    """What grpcio knows of the connection, as far as `PeerVerifier` asks for it.

    The public method makes text of a dozen names that nobody asks for, on every call;
    beneath it lies the same answer by bytes, for half the time. Where a release of
    grpcio has it no more, the public one serves.
    """
    known = connection_of(getattr(context, "_rpc_event", None))
    if known is None:
        known = context.auth_context()
    return known


def connection_of(event: Any) -> Mapping[str, Sequence[bytes]] | None:  # noqa: ANN401  # grpcio's own, without a type
    """Likewise, of what the synchronous server knows a call by; None where a release of grpcio does not tell."""
    call = getattr(event, "call", None)
    if call is None or _known_of is None:
        return None
    found = _known_of(call) or _NOTHING
    # A value that is missing is an empty one: the verifier refuses it.
    return {
        "ssl_tls_version": found.get(b"ssl_tls_version", ()),
        "x509_pem_cert": found.get(b"x509_pem_cert", ()),
        "ssl_negotiated_key_exchange_group": found.get(b"ssl_negotiated_key_exchange_group", ()),
    }


def status_name(context: Any) -> str:  # noqa: ANN401  # either server's context
    """Name of the status that a handler left in its context; `OK` when it left none."""
    code = context.code()
    if code is None:
        return "OK"
    if isinstance(code, grpc.StatusCode):
        return code.name
    return _NAMES.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"
