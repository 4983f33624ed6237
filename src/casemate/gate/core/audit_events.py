"""The event of a decision, from what was found out of its call so far.

If this fails: the audit names nobody, or somebody else. No right depends on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.gate.core.audit import AuditEvent

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.gate.core.admission import Admission


def event_of(
    admission: Admission, clock: Clock, *, reason: str | None = None, outcome: str | None = None
) -> AuditEvent:
    """A denial if there is a reason, else the end of an allowed call.

    A peer that was refused is named by its certificate all the same: TLS has proven its key and its root.
    """
    token, peer = admission.token, admission.peer
    shown = peer if peer is not None else admission.refused_certificate
    return AuditEvent(
        at=clock.now(),
        request_id=admission.request_id,
        method=admission.method,
        decision="allowed" if reason is None else "denied",
        reason=reason,
        outcome=outcome,
        tenant=token.tenant if token is not None else None,
        client_id=token.client_id if token is not None else None,
        subject=token.subject if token is not None else None,
        token_id=token.token_id if token is not None else None,
        spiffe_id=shown.spiffe_id if shown is not None else None,
        resource=admission.resource,
        certificate_thumbprint=shown.thumbprint if shown is not None else None,
        tls_version=peer.tls_version if peer is not None else None,
        key_exchange_group=peer.group if peer is not None else None,
        latency_us=round((clock.monotonic() - admission.started) * 1e6),
    )
