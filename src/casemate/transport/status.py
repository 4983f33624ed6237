"""Exception to status and back: the one place where an error meets the wire.

What leaves the process is a code, the class's constant text, and details in
`google.rpc` form: reason, request id, violated fields, when to try again. Text
of an exception never leaves: it goes to the log, once, with the request id.

If this fails: a caller reads what an exception says, which may be a path, a
host name or a value of another tenant. Keys do not show: they are `Secret`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from casemate.errors import BY_CODE, BY_REASON, CasemateError, Code, FieldViolation, InternalError, Reason, Unavailable

_LOGGER = logging.getLogger(__name__)

DOMAIN: Final = "casemate"
DETAILS_KEY: Final = "grpc-status-details-bin"

_ID_PLACE = "\x7f" * 16  # as long as the ids of `gate.adapters.calls`; in no constant text
_MAX_DETAILS_BYTES = 4_096  # base64 makes 5.5 KiB of it, within the 8 KiB that clients take by default
_CANCELLED_MESSAGE = "cancelled"
_OUR_FAULT = frozenset({Code.INTERNAL, Code.DATA_LOSS})


@dataclass(frozen=True, slots=True)
class WireStatus(grpc.Status):
    """What is sent: fit for `context.abort_with_status`.

    That call replaces trailing metadata set before it: whoever sends more makes
    a status with `with_trailing`.
    """

    code: grpc.StatusCode
    details: str
    trailing: tuple[tuple[str, str | bytes], ...]

    @property
    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:  # type: ignore[override]  # read-only there
        """`trailing`, by the name that grpcio reads."""
        return self.trailing

    def with_trailing(self, *entries: tuple[str, str | bytes]) -> WireStatus:
        """The same status with further trailing metadata."""
        return WireStatus(self.code, self.details, (*self.trailing, *entries))


def to_status(error: BaseException, *, request_id: str) -> WireStatus:
    """The status for an error, which is logged here and nowhere else.

    One of ours keeps its code, reason and constant text. A failed call to
    another service is ours to answer for: UNAVAILABLE if that service was not
    reached, INTERNAL otherwise. Anything else is INTERNAL.
    """
    if isinstance(error, asyncio.CancelledError):
        return WireStatus(grpc.StatusCode.CANCELLED, _CANCELLED_MESSAGE, ())
    ours = _as_ours(error)
    _log(error, ours, request_id)
    return WireStatus(
        code=grpc.StatusCode[ours.code.value],
        details=ours.public_message,
        trailing=((DETAILS_KEY, _details(ours, request_id)),),
    )


def from_rpc_error(error: grpc.RpcError) -> CasemateError:
    """The error that the server raised, as far as the wire tells: its class, reason, fields and retry time.

    Works for errors of other servers and of grpcio itself: the code alone then
    chooses the class. Details that cannot be read are left out.
    """
    code = _code(error)
    if code is None:
        return InternalError(str(error))
    details = _parse_details(_trailing(error))
    reason = _reason(details.reason) if details.ours else None
    kind = _kind(code, reason)
    text = error.details() or kind.public_message
    if details.request_id:
        text = f"{text} (request {details.request_id})"
    return kind(
        text,
        reason=reason,
        violations=details.violations,
        retry_after=details.retry_after,
    )


def _as_ours(error: BaseException) -> CasemateError:
    if isinstance(error, CasemateError):
        return error
    # The code of a failed call spoke to us about our call; passed on, it would speak to the caller about theirs.
    away = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    if isinstance(error, grpc.RpcError) and _code(error) in away:
        return Unavailable()
    return InternalError()


def _log(error: BaseException, ours: CasemateError, request_id: str) -> None:
    extra = {"request_id": request_id, "code": ours.code.value, "reason": ours.reason.value}
    message = "request %s: %s/%s: %s"
    arguments = (request_id, ours.code.value, ours.reason.value, error)
    if ours.code in _OUR_FAULT or not isinstance(error, CasemateError):
        _LOGGER.error(message, *arguments, exc_info=error, extra=extra)
    elif ours.code is Code.UNAVAILABLE:
        _LOGGER.warning(message, *arguments, extra=extra)
    else:
        _LOGGER.info(message, *arguments, extra=extra)


def _details(error: CasemateError, request_id: str) -> bytes:
    """What goes with a status. In a flood the same is said thousands of times a second, but for the request's id."""
    named, said = request_id.encode(), (error.code, error.reason, error.public_message, error.retry_after)
    if error.violations or len(named) != len(_ID_PLACE):
        return _spelled(*said, request_id=request_id, violations=error.violations)
    before, after = _around_id(*said)
    return b"".join((before, named, after))


@lru_cache(maxsize=256)
def _around_id(code: Code, reason: Reason, message: str, retry_after: timedelta | None) -> tuple[bytes, bytes]:
    """The details of an error that violates no field, before and after an id of the usual length."""
    whole = _spelled(code, reason, message, retry_after, request_id=_ID_PLACE)
    before, _, after = whole.partition(_ID_PLACE.encode())
    return before, after


def _spelled(
    code: Code,
    reason: Reason,
    message: str,
    retry_after: timedelta | None,
    *,
    request_id: str,
    violations: tuple[FieldViolation, ...] = (),
) -> bytes:
    rich = status_pb2.Status(code=code_pb2.Code.Value(code.value), message=message)
    rich.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=reason.value, domain=DOMAIN, metadata={"request_id": request_id})
    )
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(retry_after)
        rich.details.add().Pack(retry)
    bad = error_details_pb2.BadRequest()
    for violation in violations:
        bad.field_violations.add(field=violation.field, description=violation.description)
        if rich.ByteSize() + bad.ByteSize() > _MAX_DETAILS_BYTES:
            # The rest would not fit into trailing metadata, and the whole answer would be lost.
            bad.field_violations.pop()
            break
    if bad.field_violations:
        rich.details.add().Pack(bad)
    spelled: bytes = rich.SerializeToString()
    return spelled


@dataclass(slots=True)
class _Details:
    """What a peer's details say. Unverified, like the rest of its answer."""

    ours: bool = False
    reason: str = ""
    request_id: str = ""
    violations: tuple[FieldViolation, ...] = ()
    retry_after: timedelta | None = None


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    # Errors that grpcio raises before a call began have no status.
    return error.code() if hasattr(error, "code") else None


def _trailing(error: grpc.RpcError) -> bytes:
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return b""


def _parse_details(serialized: bytes) -> _Details:
    found = _Details()
    try:
        for packed in status_pb2.Status.FromString(serialized).details:
            _parse_detail(packed, found)
    except (DecodeError, ValueError, OverflowError):
        return _Details()
    return found


def _parse_detail(packed: object, found: _Details) -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if packed.Unpack(info):  # type: ignore[attr-defined]  # google.protobuf.Any
        found.ours = info.domain == DOMAIN
        found.reason = info.reason
        found.request_id = info.metadata.get("request_id", "")
    elif packed.Unpack(bad):  # type: ignore[attr-defined]
        found.violations = tuple(FieldViolation(each.field, each.description) for each in bad.field_violations)
    elif packed.Unpack(retry):  # type: ignore[attr-defined]
        found.retry_after = retry.retry_delay.ToTimedelta()


def _reason(name: str) -> Reason | None:
    return Reason(name) if name in Reason.__members__ else None


def _kind(code: grpc.StatusCode, reason: Reason | None) -> type[CasemateError]:
    if code.name not in Code.__members__:
        return InternalError  # UNKNOWN and CANCELLED: nobody says what happened
    kind = BY_CODE[Code(code.name)]
    narrower = BY_REASON.get(reason) if reason is not None else None
    # The code was judged by every balancer and metric on the way; the reason may only make it narrower.
    return narrower if narrower is not None and issubclass(narrower, kind) else kind
