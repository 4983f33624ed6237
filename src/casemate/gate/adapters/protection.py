"""The gate in front of a service that is not ours: everything that it needs, put together.

A process raises the TLS floor first (`casemate.transport.floor.raise_floor`), before
anything imports grpc; if it did not, making a server here refuses and names the
variable to export.

If this fails: see `core.gate`; nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.foreign import FOREIGN
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import MethodPolicy, PolicyTable
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.registry import RegisteredService, methods_of, registered
from casemate.transport.server import AioServer, SyncServer, build_aio_server, build_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from google.protobuf.descriptor import ServiceDescriptor

__all__ = ["Protection", "registered"]

_PLACES = 128
_FEWEST_THREADS = 4
_OUR_KINDS = ("dataset", "model")


class Protection:
    """A gate, the trust feed that it judges by, and servers that stand behind it. Close it, or use it in `with`.

    Args:
        identity: directory with the service's `key.pem`, `cert.pem` and `ca.pem`, watched for renewal.
        auth: `host:port` of Casemate's auth.
        audience: that tokens must be for: the service's name.
        services: descriptors of the services that carry our policy option.
        policies: of methods whose protos cannot carry it; health and reflection have theirs.
        audit_file: where decisions are written, denials always and allowed calls of methods with
            `audit_allowed`. None keeps nothing.
        unsafe_without_audit: go on without an audit file although methods ask for one.
        shares: what one caller, tenant and resource may have.
        post_quantum: refuse peers whose key exchange a quantum computer could open later.
    """

    def __init__(
        self,
        *,
        identity: Path,
        auth: str,
        audience: str,
        services: Iterable[ServiceDescriptor] = (),
        policies: Iterable[MethodPolicy] = (),
        audit_file: Path | None = None,
        unsafe_without_audit: bool = False,
        shares: Shares | None = None,
        post_quantum: bool = False,
    ) -> None:
        clock = SystemClock()
        table = PolicyTable.from_descriptors(services, {**FOREIGN, **{policy.method: policy for policy in policies}})
        self._audience = audience
        self._audited_or_waived = audit_file is not None or unsafe_without_audit
        self._source = CertificateSource(identity)
        domain = self._source.current.spiffe_id.split("/")[2]
        trust = TrustState()
        self._audit = AuditFile(audit_file) if audit_file is not None else None
        self._interceptors: list[GateInterceptor] = []
        self.gate = Gate(
            policies=table,
            verifier=TokenVerifier(issuer=f"https://auth.{domain}", audience=audience),
            cache=TokenCache(),
            trust=trust,
            peers=PeerVerifier(trust_domain=domain, post_quantum=post_quantum),
            quota=LocalQuota(clock=clock, shares=shares or Shares(places=_PLACES)),
            audit=self._audit or NoAudit(),
            clock=clock,
        )
        self._channel = RotatingChannel(target=auth, service_name="auth", source=self._source)
        self._feed = TrustFeed(self._channel, trust, clock)
        self._source.start()
        self._feed.start()

    def server(self, services: Sequence[RegisteredService], *, address: str, threads: int = 16) -> SyncServer:
        """A bound synchronous server of `services`, each call of which passes the gate first.

        Args:
            services: what it serves.
            address: `host:port`; port 0 takes a free one.
            threads: handlers that run at once, four or more. Streams hold at most three quarters of them,
                and never the last two, so that single calls go on whoever streams.

        Raises:
            ConfigurationError: too few threads, a method has no policy, asks for a grant that cannot be made
                or is to be audited without a file, grpc was imported before the TLS floor was raised, or the
                address cannot be bound.
        """
        self._require_policies(services)
        if threads < _FEWEST_THREADS:
            raise ConfigurationError(f"threads: {_FEWEST_THREADS} or more, or streams would hold up single calls")
        interceptor = GateInterceptor(self.gate, streams=min(threads * 3 // 4, threads - 2))
        self._interceptors.append(interceptor)
        return build_server(
            source=self._source, services=services, interceptors=[interceptor], address=address, threads=threads
        )

    def aio_server(self, services: Sequence[RegisteredService], *, address: str) -> AioServer:
        """Likewise a server of `grpc.aio`, whose handlers are coroutines; call it inside its event loop.

        Raises:
            ConfigurationError: as for `server`.
        """
        self._require_policies(services)
        return build_aio_server(
            source=self._source, services=services, interceptors=[AioGateInterceptor(self.gate)], address=address
        )

    def _require_policies(self, services: Sequence[RegisteredService]) -> None:
        methods = methods_of(services)
        self.gate.policies.require(methods)
        audited = sorted(method for method in methods if self.gate.policies.of(method).audit_allowed)
        if audited and not self._audited_or_waived:
            raise ConfigurationError(f"audit_file is not set, and these are to be audited: {', '.join(audited)}")
        kinds = {self._audience, *_OUR_KINDS}
        odd = [
            f"{method}: the resource is a {selector.type!r}"
            for method in sorted(methods)
            if (selector := self.gate.policies.of(method).resource) is not None and selector.type not in kinds
        ]
        if odd:
            raise ConfigurationError(f"{'; '.join(odd)}: auth makes grants on {self._audience}/NAME")

    def close(self) -> None:
        """Ends the feed and the watchers of running calls, and writes what is left of the audit."""
        self._feed.close()
        self._channel.close()
        for interceptor in self._interceptors:
            interceptor.close()
        self._source.close()
        if self._audit is not None:
            self._audit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
