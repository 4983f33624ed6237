"""What is written down about decisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One decision of the gate. Holds names and identifiers, never a token or a payload.

    Attributes:
        at: when it was decided.
        request_id: of the call; the caller has it too.
        method: full method name as called.
        decision: `denied`, or `allowed` for methods whose policy asks for it.
        reason: why it was denied; more precise than what the caller is told.
        outcome: name of the status of an allowed call.
        tenant: of the token, when that was verified.
        client_id: likewise.
        subject: likewise.
        token_id: likewise, the `jti`.
        spiffe_id: of the certificate, when that was verified.
        resource: path of the resource, when the call got that far.
        certificate_thumbprint: of the leaf, when that was verified.
        tls_version: likewise.
        key_exchange_group: the TLS group, to see which peers are post-quantum.
        latency_us: microseconds from the headers of the call to this event.
    """

    at: datetime
    request_id: str
    method: str
    decision: Literal["allowed", "denied"]
    reason: str | None = None
    outcome: str | None = None
    tenant: str | None = None
    client_id: str | None = None
    subject: str | None = None
    token_id: str | None = None
    spiffe_id: str | None = None
    resource: str | None = None
    certificate_thumbprint: str | None = None
    tls_version: str | None = None
    key_exchange_group: str | None = None
    latency_us: int | None = None


class AuditSink(Protocol):
    """Takes events. Implementations return at once and never lose count of what they drop."""

    def record(self, event: AuditEvent) -> None:
        """Takes one event. Never raises."""
        ...

    def require_writable(self, *, may_wait: bool = False) -> None:
        """Refuses when an event of an allowed call could not be written now.

        The gate asks before it lets a call on whose policy wants it audited: what
        nobody could trace is not done.

        Args:
            may_wait: the call only takes rights away. It goes on while the sink is down, as long as
                there is room to keep its event, which the sink tells the log at once.

        Raises:
            Unavailable: the sink is down, or its reserved room is taken.
        """
        ...


class NoAudit:
    """Drops everything: for tests and for programs that keep no audit."""

    def record(self, event: AuditEvent) -> None:
        """Drops the event."""

    def require_writable(self, *, may_wait: bool = False) -> None:
        """Has always room."""
