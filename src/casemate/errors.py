"""What can go wrong, as types; free of any transport.

Domain code raises these. `casemate.transport.status` alone turns them into a
status on the wire, and the client turns that status back into them, so a caller
in Python catches the same class that the server raised. A class fixes the status
code and the text that leaves the process; the argument of the constructor is
for the log and never leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import ClassVar


class Reason(StrEnum):
    """Stable, machine-readable reasons: `google.rpc.ErrorInfo.reason`."""

    INVALID_FIELD = "INVALID_FIELD"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    RECORD_INVALID = "RECORD_INVALID"
    MODEL_INVALID = "MODEL_INVALID"
    WEAK_KEY = "WEAK_KEY"
    TOKEN_MISSING = "TOKEN_MISSING"  # noqa: S105  # a reason, not a password
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105
    CERTIFICATE_MISMATCH = "CERTIFICATE_MISMATCH"
    PEER_REFUSED = "PEER_REFUSED"
    CLIENT_UNKNOWN = "CLIENT_UNKNOWN"
    GRANT_INVALID = "GRANT_INVALID"
    INSUFFICIENT_SCOPE = "INSUFFICIENT_SCOPE"
    SCOPE_NOT_GRANTED = "SCOPE_NOT_GRANTED"
    CALLER_NOT_ALLOWED = "CALLER_NOT_ALLOWED"
    SIGNER_UNTRUSTED = "SIGNER_UNTRUSTED"
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    DATASET_UNKNOWN = "DATASET_UNKNOWN"
    MODEL_NOT_READY = "MODEL_NOT_READY"
    MODEL_REFUSED = "MODEL_REFUSED"
    KEY_NOT_ACTIVE = "KEY_NOT_ACTIVE"
    CONCURRENT_UPDATE = "CONCURRENT_UPDATE"
    EQUIVOCATION = "EQUIVOCATION"
    WRONG_OFFSET = "WRONG_OFFSET"
    RATE_LIMITED = "RATE_LIMITED"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    TRUST_STALE = "TRUST_STALE"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    STORED_DATA_UNREADABLE = "STORED_DATA_UNREADABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    STREAM_IDLE = "STREAM_IDLE"
    NOT_SERVED = "NOT_SERVED"
    INTERNAL = "INTERNAL"


class Code(StrEnum):
    """The status codes that we use, by their gRPC names."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    DATA_LOSS = "DATA_LOSS"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that was wrong; both texts go to the caller.

    `description` is constant text of ours: it never repeats what was sent.
    """

    field: str
    description: str


class CasemateError(Exception):
    """Root of all our errors.

    Args:
        detail: what happened, for the log alone.
        reason: one of the class's reasons; the class's default if not given.
        violations: fields to name to the caller.
        retry_after: when trying again may help.
    """

    code: ClassVar[Code] = Code.INTERNAL
    default_reason: ClassVar[Reason] = Reason.INTERNAL
    public_message: ClassVar[str] = "internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        reason: Reason | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(detail or self.public_message)
        self.reason = reason if reason is not None else self.default_reason
        self.violations = violations
        self.retry_after = retry_after


class ConfigurationError(CasemateError):
    """The process cannot start as configured. Names the setting, never its value."""


class InvalidRequest(CasemateError):
    """The request is wrong in itself, whoever sends it."""

    code = Code.INVALID_ARGUMENT
    default_reason = Reason.INVALID_FIELD
    public_message = "the request is not valid"


class SignatureInvalid(InvalidRequest):
    """A signature does not verify, or is not there."""

    default_reason = Reason.SIGNATURE_INVALID
    public_message = "the signature does not verify"


class DigestMismatch(InvalidRequest):
    """Bytes are not those that were signed."""

    default_reason = Reason.DIGEST_MISMATCH
    public_message = "the bytes are not those that were signed"


class Unauthenticated(CasemateError):
    """Who calls is not proven."""

    code = Code.UNAUTHENTICATED
    default_reason = Reason.TOKEN_INVALID
    public_message = "authentication failed"


class PermissionDenied(CasemateError):
    """Who calls is proven and may not do this."""

    code = Code.PERMISSION_DENIED
    default_reason = Reason.INSUFFICIENT_SCOPE
    public_message = "not allowed"


class NotFound(CasemateError):
    """There is no such thing, or it is not the caller's to know."""

    code = Code.NOT_FOUND
    default_reason = Reason.RESOURCE_NOT_FOUND
    public_message = "not found"


class AlreadyExists(CasemateError):
    """The name or number is taken."""

    code = Code.ALREADY_EXISTS
    default_reason = Reason.ALREADY_EXISTS
    public_message = "already exists"


class FailedPrecondition(CasemateError):
    """The state of the system does not allow it now; trying again alone will not help."""

    code = Code.FAILED_PRECONDITION
    default_reason = Reason.MODEL_NOT_READY
    public_message = "not possible in the present state"


class Conflict(CasemateError):
    """Somebody else was first, or the same place holds other bytes."""

    code = Code.ABORTED
    default_reason = Reason.CONCURRENT_UPDATE
    public_message = "conflicts with another change"


class OutOfRange(CasemateError):
    """The offset or index is not the one that is wanted."""

    code = Code.OUT_OF_RANGE
    default_reason = Reason.WRONG_OFFSET
    public_message = "out of range"


class Exhausted(CasemateError):
    """Too much, or too fast."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = Reason.RATE_LIMITED
    public_message = "too many or too large requests"


class Unavailable(CasemateError):
    """Something that we depend on is not there: a database, a key service, the trust feed."""

    code = Code.UNAVAILABLE
    default_reason = Reason.DEPENDENCY_UNAVAILABLE
    public_message = "temporarily unavailable"


class StoredDataUnreadable(CasemateError):
    """Stored bytes fail their integrity check. Page someone."""

    code = Code.DATA_LOSS
    default_reason = Reason.STORED_DATA_UNREADABLE
    public_message = "stored data is not readable"


class DeadlineExceeded(CasemateError):
    """The caller's deadline passed before the work was done."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = Reason.DEADLINE_EXCEEDED
    public_message = "deadline exceeded"


class NotServed(CasemateError):
    """The method exists in the protocol and is refused here on purpose."""

    code = Code.UNIMPLEMENTED
    default_reason = Reason.NOT_SERVED
    public_message = "not served here"


class InternalError(CasemateError):
    """A fault of ours, as a client sees it."""


BY_CODE: dict[Code, type[CasemateError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Conflict,
        OutOfRange,
        Exhausted,
        Unavailable,
        StoredDataUnreadable,
        DeadlineExceeded,
        NotServed,
        InternalError,
    )
}
"""The class that a client raises for a code; the reason may choose a narrower one."""

BY_REASON: dict[Reason, type[CasemateError]] = {
    Reason.SIGNATURE_INVALID: SignatureInvalid,
    Reason.DIGEST_MISMATCH: DigestMismatch,
}
"""Narrower classes, chosen by reason."""
