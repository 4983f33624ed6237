"""Certificates of a cluster on one machine: its authority, and every leaf below it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from casemate.cli.state import SERVICES, StateDirectory
from casemate.clock import Clock, SystemClock
from casemate.errors import ConfigurationError
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import needs_renewal, write_leaf
from casemate.pki.names import ServiceName
from casemate.pki.succession import give_roots
from casemate.sealing.local import LocalKeyRing
from casemate.transport.certificates import CertificateSource

OPERATOR = ("casemate", "operator")
SERVICE_PREFIX = "svc"
"""What the path of a service's SPIFFE ID begins with, where a client's has its tenant."""


class Certificates:
    """Issues what is missing, and renews what is past half its life."""

    def __init__(
        self, state: StateDirectory, authority: CertificateAuthority, *, clock: Clock, report: Callable[[str], None]
    ) -> None:
        self._state = state
        self._authority = authority
        self._clock = clock
        self._report = report

    @classmethod
    def open(
        cls,
        state: StateDirectory,
        *,
        trust_domain: str,
        report: Callable[[str], None],
        clock: Clock | None = None,
    ) -> Certificates:
        """Loads the authority and the key rings of `state`; makes them on first use.

        Raises:
            ConfigurationError: a key ring is gone while what it sealed is still there.
        """
        clock = clock or SystemClock()
        first = not state.authority.exists()
        for owner in ("pki", *SERVICES):
            if not state.kek(owner).exists():
                if not first:
                    raise ConfigurationError(
                        f"{state.kek(owner)} is gone: what it sealed cannot be opened without it. Restore it, "
                        f"or move {state.root} away to begin anew"
                    )
                LocalKeyRing.create(state.kek(owner))
        ring = LocalKeyRing.load(state.kek("pki"))
        if first:
            authority = CertificateAuthority.create(
                state.authority, trust_domain=trust_domain, key_encryption=ring, clock=clock
            )
        else:
            authority = CertificateAuthority.load(
                state.authority, trust_domain=trust_domain, key_encryption=ring, clock=clock
            )
        return cls(state, authority, clock=clock, report=report)

    def renew_due(self) -> None:
        """Writes every leaf that is missing, expired or past half its life."""
        for directory, issue in self._leaves():
            if needs_renewal(directory, self._clock):
                known = (directory / "cert.pem").exists()
                issue()
                if known:
                    self._report(f"certificate renewed: {directory.relative_to(self._state.root)}")

    def reissue_all(self) -> None:
        """Writes every leaf anew, due or not: for a drill, and after a key was exposed."""
        for _, issue in self._leaves():
            issue()

    def give_roots(self) -> None:
        """Has every holder of a leaf trust the roots of this moment; certificates stay as they are."""
        for directory, _ in self._leaves():
            if (directory / "cert.pem").exists():
                give_roots(directory, self._authority.ca_pem)

    def require_client(self, tenant: str, name: str, *, anew: bool = False) -> CertificateSource:
        """The identity of a client, issued now if it has none that is good, or if it is to have another."""
        directory = self._state.client_leaf(tenant, name)
        if anew or needs_renewal(directory, self._clock):
            self._issue_client(tenant, name)
        return CertificateSource(directory)

    def require_service(self, service: str, *, anew: bool = False) -> CertificateSource:
        """Likewise of a service, ours or another team's.

        Raises:
            ConfigurationError: the name is not one.
        """
        directory = self._state.service_leaf(ServiceName(service=service).service)
        if anew or needs_renewal(directory, self._clock):
            self._issue_service(service)
        return CertificateSource(directory)

    def operator_source(self) -> CertificateSource:
        """The identity of the first operator."""
        return self.require_client(*OPERATOR)

    def _leaves(self) -> Iterator[tuple[Path, Callable[[], None]]]:
        others = {directory.name for directory in (self._state.root / "pki" / "leaves" / SERVICE_PREFIX).glob("*")}
        for service in (*SERVICES, *sorted(others - set(SERVICES))):
            yield self._state.service_leaf(service), lambda service=service: self._issue_service(service)  # type: ignore[misc]
        known = set((self._state.root / "pki" / "leaves" / "t").glob("*/*")) | {self._state.client_leaf(*OPERATOR)}
        for directory in sorted(known):
            tenant, name = directory.parent.name, directory.name
            yield directory, lambda tenant=tenant, name=name: self._issue_client(tenant, name)  # type: ignore[misc]

    def _issue_service(self, service: str) -> None:
        write_leaf(self._authority.issue_service(service=service), self._state.service_leaf(service))

    def _issue_client(self, tenant: str, name: str) -> None:
        write_leaf(self._authority.issue_client(tenant=tenant, name=name), self._state.client_leaf(tenant, name))
