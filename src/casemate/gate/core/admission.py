"""One call on its way through the gate: what has been found out so far."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.method_policy import MethodPolicy
    from casemate.gate.core.peer import Peer, PeerCertificate
    from casemate.gate.core.quota import Lease
    from casemate.gate.core.trust import TrustSnapshot
    from casemate.gate.core.verifier import VerifiedToken


class Admission:
    """The state of one call between the gate's steps; made by `Gate.at_headers`.

    Not a proof: handlers see a `Caller`. A place among the running calls is given
    back when the call is finished, and at the latest when this object goes: a
    server may drop a call after its headers without telling anybody.

    A server whose calls wait in line may prove the peer before that: the outcome is
    kept here as `caller` or `refusal` until the call's turn has come.
    """

    __slots__ = (
        "caller",
        "denied",
        "judged_by",
        "lease",
        "method",
        "peer",
        "policy",
        "refusal",
        "refused_certificate",
        "request_id",
        "resource",
        "served",
        "started",
        "token",
    )

    def __init__(self, request_id: str, method: str, policy: MethodPolicy, served: bool, started: float) -> None:  # noqa: FBT001  # by place: every call makes one
        self.lease: Lease | None = None  # first, for `__del__`
        self.judged_by: TrustSnapshot | None = None
        self.request_id = request_id
        self.method = method
        self.policy = policy
        self.served = served
        self.token: VerifiedToken | None = None
        self.peer: Peer | None = None
        self.resource: str | None = None
        self.denied = False
        self.refused_certificate: PeerCertificate | None = None
        self.caller: Caller | None = None
        self.refusal: BaseException | None = None
        self.started = started

    def release(self) -> None:
        """Gives the place among the running calls back; again has no effect."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()

    def __del__(self) -> None:
        if self.lease is not None:
            self.lease.release()
