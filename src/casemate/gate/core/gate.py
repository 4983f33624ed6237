"""The decision, step by step, in the order that lets nothing unproven cost much.

At headers: token, expiry, revocation, scope. With the connection, before any of the
body is read: peer, binding, and then, of the share of who is proven, a place among the
running calls and the rate. After parsing: the grant for the resource that the request
names. All on every call.

If this fails: whoever gets past it reaches a handler with a `Caller` that is not
theirs. Handlers look names up inside the caller's tenant only, and data stays
sealed under keys that no caller holds.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

from casemate.errors import (
    CasemateError,
    Code,
    Exhausted,
    NotFound,
    NotServed,
    PermissionDenied,
    Reason,
    Unauthenticated,
)
from casemate.gate.core.admission import Admission
from casemate.gate.core.audit_events import event_of
from casemate.gate.core.bearer import bearer_token
from casemate.gate.core.cache import token_key
from casemate.gate.core.caller import Caller, spiffe_path
from casemate.gate.core.method_policy import MethodPolicy, PeerAccess, TokenAccess
from casemate.gate.core.quota import LocalQuota, Shares

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from casemate.clock import Clock
    from casemate.gate.core.audit import AuditSink
    from casemate.gate.core.cache import TokenCache
    from casemate.gate.core.peer import Peer, PeerVerifier
    from casemate.gate.core.policy import PolicyTable
    from casemate.gate.core.quota import Quota
    from casemate.gate.core.trust import TrustSnapshot, TrustState
    from casemate.gate.core.verifier import TokenVerifier, VerifiedToken

MAX_RESOURCE: Final = 512
"""Bytes of a resource's path. What patterns mean is kept by path, so a longer one would be a caller's way to memory."""
WATCHES: Final = Shares(caller_concurrency=256, tenant_concurrency=256)
"""Of methods that are `unwrapped`: they take no place of calls that work, but a server has only so many of both."""
FULL_FOR: Final = timedelta(seconds=1)
"""After which a caller is told to come back to a server that had all the calls it takes."""
UNJUDGED_S: Final = 0.05
"""Seconds after its headers for which a call's rights hold as judged, if no news came."""
_UNKNOWN: Final = MethodPolicy(method="unknown", access=TokenAccess(None))
_DENIALS: Final = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.RESOURCE_EXHAUSTED})
"""Statuses of handlers that are written down as denials, whatever their method: to be slowed down is one, and an
overload looks the same. Repeats are counted, and take none of the room that is kept for what is allowed."""
_NO_SCOPES: Final[frozenset[str]] = frozenset()


class GateObserver(Protocol):
    """Counts what the gate does; returns at once and never raises."""

    def denied(self, reason: str) -> None:
        """One call was refused for this reason."""
        ...

    def finished(self, method: str, code: str) -> None:
        """One call that was admitted ended with this status."""
        ...


class _Unobserved:
    def denied(self, reason: str) -> None:
        """Counts nothing."""

    def finished(self, method: str, code: str) -> None:
        """Counts nothing."""


class Gate:
    """Decides about every call of one server. Pure: no network, no files; safe in threads."""

    def __init__(
        self,
        *,
        policies: PolicyTable,
        verifier: TokenVerifier,
        cache: TokenCache,
        trust: TrustState,
        peers: PeerVerifier,
        quota: Quota,
        audit: AuditSink,
        clock: Clock,
        observer: GateObserver | None = None,
    ) -> None:
        self.policies = policies
        self.trust = trust
        self.clock = clock
        self._verifier = verifier
        self._cache = cache
        self._peers = peers
        self._quota = quota
        self._watches = LocalQuota(clock=clock, shares=WATCHES)
        self._audit = audit
        self._observer = observer if observer is not None else _Unobserved()

    def at_headers(
        self, method: str, metadata: Iterable[tuple[str, str | bytes]], *, request_id: str, served: bool = True
    ) -> Admission:
        """Admits a call by its headers, before any of its body is looked at.

        Args:
            method: full method name.
            metadata: all of the call's metadata.
            request_id: identifier of this call.
            served: whether a handler exists. If not, the caller must prove who it is all
                the same, so that strangers do not learn which methods exist.

        Raises:
            Unauthenticated: no token, or one that does not verify, expired or is revoked.
            PermissionDenied: INSUFFICIENT_SCOPE.
            Unavailable: TRUST_STALE, or the method is audited and the audit cannot be written.
        """
        policy = self.policies.find(method) if served else None
        admission = Admission(request_id, method, policy or _UNKNOWN, policy is not None, self.clock.monotonic())
        admission.judged_by = self.trust.current  # before anything is judged by it, so that no news falls between
        try:
            self._admit(admission, metadata)
        except CasemateError as error:
            raise self._deny(admission, error) from None
        return admission

    def at_message(self, admission: Admission, auth_context: Mapping[str, Sequence[bytes]]) -> Caller:
        """Proves the peer, and that the token is its own; only then is anything taken of its owner's share.

        Needs no message: call it as early as possible.

        Args:
            admission: from `at_headers`.
            auth_context: what the transport knows of the connection.

        Raises:
            Unauthenticated: PEER_REFUSED, CERTIFICATE_MISMATCH.
            PermissionDenied: CALLER_NOT_ALLOWED.
            Exhausted: the caller has all of its share running, or is too fast.
            NotServed: the caller is proven, and there is no such method.
        """
        try:
            return self._bind(admission, auth_context)
        except CasemateError as error:
            admission.release()  # now, and not when its peer has read why
            if admission.peer is None:
                admission.refused_certificate = self._peers.certificate_of(auth_context)
            raise self._deny(admission, error) from None

    def authorize(self, admission: Admission, caller: Caller, resource: str | None) -> None:
        """Requires a grant of the method's verb on the resource that a request names.

        Also for later messages of a stream that name another one.

        Raises:
            NotFound: no grant. A resource that does not exist looks the same.
            InvalidRequest: the request had to name a resource and did not.
            Exhausted: too many calls on this resource.
        """
        selector = admission.policy.resource
        if selector is None:
            return
        if resource is None:
            if selector.optional:
                return
            raise self._deny(admission, selector.missing())
        if len(resource) > MAX_RESOURCE or (not resource.isascii() and len(resource.encode()) > MAX_RESOURCE):
            raise self._deny(admission, selector.too_long(MAX_RESOURCE))
        admission.resource = resource
        try:
            self._require_grant(admission, caller, resource)
            self._quota.spend_on(tenant=caller.tenant or "", resource=resource)
        except NotFound as error:
            raise self._deny(admission, error, reason="GRANT_MISSING") from None
        except CasemateError as error:
            raise self._deny(admission, error) from None

    def before_handler(self, admission: Admission, caller: Caller) -> None:
        """Judges a single call again when it waited for its body or its turn, or when there was news meanwhile.

        A right that ended while a call waited is then gone before its handler runs. Costs one
        comparison and one look at the clock where nothing happened.

        Raises:
            Unauthenticated: expired or revoked meanwhile.
            NotFound: the grant is gone.
            Unavailable: TRUST_STALE.
        """
        waited_s = self.clock.monotonic() - admission.started
        if self.trust.current is not admission.judged_by or waited_s > UNJUDGED_S:
            self.recheck(admission, caller)

    def overflowed(self, method: str, *, request_id: str) -> Exhausted:
        """Notes that a call came while its server had all that it takes; gives what to refuse it by.

        Nothing of it is judged: there is no room to. Audited as SERVER_FULL; repeats are counted, as of any denial.
        """
        policy = self.policies.find(method)
        admission = Admission(request_id, method, policy or _UNKNOWN, policy is not None, self.clock.monotonic())
        error = Exhausted("the server has all the calls that it takes", retry_after=FULL_FOR)
        self._deny(admission, error, reason="SERVER_FULL")
        return error

    def refused(self, admission: Admission, error: CasemateError) -> None:
        """Notes that an adapter refused an admitted call before its handler: told once, as the gate's own are."""
        self._deny(admission, error)

    def recheck(self, admission: Admission, caller: Caller) -> None:
        """Judges a running stream again: dates, revocations, key, grant and freshness as they are now.

        Raises:
            Unauthenticated: expired or revoked meanwhile.
            NotFound: the grant is gone.
            Unavailable: TRUST_STALE.
        """
        try:
            self._judge_again(admission, caller)
        except NotFound as error:
            raise self._deny(admission, error, reason="GRANT_MISSING") from None
        except CasemateError as error:
            raise self._deny(admission, error) from None

    def finish(self, admission: Admission, code: str, *, taken: bool = False) -> None:
        """Notes the end of an admitted call. Call it once, whatever happened; code is the status's name.

        `taken` says that messages of a client's stream went to the handler: some of it may have been done.
        """
        lease, admission.lease = admission.lease, None
        if lease is not None:
            lease.release()
        self._observer.finished(admission.method if admission.served else "unknown", code)
        if taken and admission.policy.audit_allowed:
            # In the room that is kept for it, whatever became of the rest: what was done is no repeat of anything.
            self._audit.record(event_of(admission, self.clock, outcome=code))
        elif admission.denied:
            return
        elif code in _DENIALS:
            self._audit.record(event_of(admission, self.clock, reason=code))
        elif admission.policy.audit_allowed:
            self._audit.record(event_of(admission, self.clock, outcome=code))

    def _admit(self, admission: Admission, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        policy, state, monotonic = admission.policy, self.trust, admission.started
        access = policy.access
        if isinstance(access, PeerAccess):
            if policy.needs_trust:
                state.require_fresh_at(policy, monotonic)
            return
        text = bearer_token(metadata)
        if policy.needs_trust:
            state.require_fresh_at(policy, monotonic)
        # The epoch before the keys: should news come between the two, what the old keys verified is kept under
        # the old epoch, and is verified again. The other way round it would outlive its key.
        key_epoch = state.key_epoch
        trust, now = state.current, self.clock.now()
        key = token_key(text)
        token = self._cache.trusted(key, now=now, monotonic=monotonic, key_epoch=key_epoch)
        if token is None:
            token = self._verified(text, key, now=now, monotonic=monotonic, key_epoch=key_epoch, trust=trust)
        admission.token = token
        trust.revocations.check_token(token, now)
        if access.scope is not None and access.scope not in token.scopes:
            raise PermissionDenied(f"{admission.method} needs scope {access.scope}")
        if policy.audit_allowed:
            self._audit.require_writable(may_wait=policy.only_revokes)

    def _verified(
        self, text: str, key: bytes, *, now: datetime, monotonic: float, key_epoch: int, trust: TrustSnapshot
    ) -> VerifiedToken:
        return self._cache.resolve(
            key,
            now=now,
            monotonic=monotonic,
            key_epoch=key_epoch,
            verify=lambda: self._verifier.verify(text, keys=trust.keys, now=now),
        )

    def _bind(self, admission: Admission, auth_context: Mapping[str, Sequence[bytes]]) -> Caller:
        trust, now = self.trust.current, self.clock.now()
        peer = admission.peer = self._peers.verify(auth_context, now=now, trust=trust)
        token = admission.token
        if token is None:
            return self._bind_peer(admission, peer)
        if token.certificate_thumbprint != peer.thumbprint:
            raise Unauthenticated("token is bound to another certificate", reason=Reason.CERTIFICATE_MISMATCH)
        admission.lease = self._quota.enter(tenant=token.tenant, caller=token.client_id)
        self._quota.spend(tenant=token.tenant, caller=token.client_id)
        if not admission.served:
            raise NotServed(f"no method {admission.method}")
        return Caller(
            tenant=token.tenant,
            client_id=token.client_id,
            subject=token.subject,
            spiffe_id=peer.spiffe_id,
            scopes=token.scopes,
            token_id=token.token_id,
            certificate_thumbprint=peer.thumbprint,
            expires_at=token.expires_at if token.expires_at < peer.not_after else peer.not_after,
            request_id=admission.request_id,
        )

    def _bind_peer(self, admission: Admission, peer: Peer) -> Caller:
        caller = Caller(
            tenant=None,
            client_id=None,
            subject=None,
            spiffe_id=peer.spiffe_id,
            scopes=_NO_SCOPES,
            token_id=None,
            certificate_thumbprint=peer.thumbprint,
            expires_at=peer.not_after,
            request_id=admission.request_id,
        )
        access = admission.policy.access
        if isinstance(access, TokenAccess):
            raise Unauthenticated("no token was verified", reason=Reason.TOKEN_MISSING)
        if access.services and caller.service not in access.services:
            raise PermissionDenied("not one of the services that may", reason=Reason.CALLER_NOT_ALLOWED)
        if admission.policy.audit_allowed:
            self._audit.require_writable(may_wait=admission.policy.only_revokes)
        quota = self._watches if admission.policy.unwrapped else self._quota
        admission.lease = quota.enter(tenant=_peer_share(peer), caller=peer.spiffe_id)
        quota.spend(tenant=_peer_share(peer), caller=peer.spiffe_id)
        return caller

    def _require_grant(self, admission: Admission, caller: Caller, resource: str) -> None:
        policy = admission.policy
        access, selector = policy.access, policy.resource
        if not isinstance(access, TokenAccess) or access.verb is None or caller.tenant is None:
            raise NotFound("a resource without a verb, or a caller without a tenant")
        self.trust.current.grants.authorize(
            tenant=caller.tenant,
            caller_path=caller.path,
            verb=access.verb,
            resource=resource,
            whole=selector.whole(resource) if selector is not None and selector.version is not None else None,
            now=self.clock.now(),
        )

    def _judge_again(self, admission: Admission, caller: Caller) -> None:
        now, trust, token = self.clock.now(), self.trust.current, admission.token
        if now >= caller.expires_at:
            raise Unauthenticated("token or certificate has expired", reason=Reason.TOKEN_EXPIRED)
        trust.revocations.check_peer(caller.spiffe_id, caller.certificate_thumbprint, now)
        if token is not None:
            if now < token.valid_from:
                raise Unauthenticated("token is not valid yet")  # the wall clock was set back
            trust.revocations.check_token(token, now)
            if token.kid not in trust.keys:
                raise Unauthenticated("the key of the token is gone", reason=Reason.TOKEN_REVOKED)
        if admission.policy.needs_trust:
            self.trust.require_fresh(admission.policy, self.clock)
        if admission.resource is not None:
            self._require_grant(admission, caller, admission.resource)

    def _deny(self, admission: Admission, error: CasemateError, *, reason: str | None = None) -> CasemateError:
        if admission.denied:
            return error  # a stream can be found wanting twice, by its timer and by a message
        admission.denied = True
        reason = reason or error.reason.value
        self._observer.denied(reason)
        self._audit.record(event_of(admission, self.clock, reason=reason))
        return error


def _peer_share(peer: Peer) -> str:
    """Whose share a peer without a token takes: its tenant's by name, or its service's own."""
    kind, name = spiffe_path(peer.spiffe_id).split("/")[:2]
    return name if kind == "t" else f"svc/{name}"
