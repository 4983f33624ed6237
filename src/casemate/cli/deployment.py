"""What containers need before they start: each one's secrets and certificates, in a folder that it alone is given.

One process on no network holds the authority. It makes what is missing, renews every
leaf at half its life, carries each step of a change of roots to whoever holds a leaf,
and never makes a secret twice: a key-encryption key that is gone while the authority
is not is an error, and no new key is put in its place.

If this fails: nothing is renewed, and calls stop when the leaves expire. Whoever
reads the authority's volume can be any client and any service of the deployment.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from casemate.cli.state import SERVICES
from casemate.clock import Clock
from casemate.errors import ConfigurationError
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import (
    CERTIFICATE_FILE,
    ROOTS_FILE,
    IssuedLeaf,
    is_of,
    load_certificate,
    needs_renewal,
    write_leaf,
)
from casemate.pki.names import DatabaseRole, DatabaseServer
from casemate.pki.succession import Succession, give_roots
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import write_file
from casemate.secret import Secret
from casemate.storage.roles import scram_verifier

ROLES = {"auth": ("casemate_auth",), "datasets": ("casemate_datasets", "casemate_datakeys")}
"""Each role owns the database of its name, and its service alone can log in as it."""

OPERATOR = ("casemate", "operator")
OBSERVERS = ("prometheus", "collector")
"""The one reads metrics, the other takes what applications send; each by a name of its own, and without a grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentFolders:
    """Where everything lies in the one process that may see all of it.

    Attributes:
        authority: the authority and the key that seals its key; nobody else's.
        issued: one folder for each service, for `postgres`, for each observer, and for `clients`.
    """

    authority: Path
    issued: Path

    def leaf(self, owner: str, name: str) -> Path:
        """The folder of a leaf: `service`, or `database/<role>`, as its owner finds it."""
        return self.issued / owner / name

    def secret(self, owner: str, name: str) -> Path:
        """The file of a secret."""
        return self.issued / owner / "secrets" / name


class Deployment:
    """Makes and renews. Made by `open`."""

    def __init__(
        self,
        folders: DeploymentFolders,
        succession: Succession,
        *,
        lifetime: timedelta,
        clock: Clock,
        report: Callable[[str], None],
    ) -> None:
        self._folders = folders
        self._succession = succession
        self._authority = succession.authority()
        self._lifetime = lifetime
        self._clock = clock
        self._report = report

    @classmethod
    def open(
        cls,
        folders: DeploymentFolders,
        *,
        trust_domain: str,
        lifetime: timedelta,
        clock: Clock,
        report: Callable[[str], None],
        create: bool = False,
    ) -> Deployment:
        """Loads the authority; with `create`, at the first start makes it, and every secret with it.

        The authority is made last: while it is missing, the first start is not over. One process
        alone may create.

        Raises:
            ConfigurationError: there is no authority yet, a secret is gone, or the authority is
                of another trust domain.
        """
        ring_file, ca = folders.authority / "kek.json", folders.authority / "ca"
        first = not (ca / CERTIFICATE_FILE).exists()
        if first and not create:
            raise ConfigurationError(f"there is no authority in {ca} yet")
        _make_secrets(folders, first=first)
        if not ring_file.exists():
            if not first:
                raise ConfigurationError(f"{ring_file} is gone: the authority's key cannot be opened without it")
            LocalKeyRing.create(ring_file)
        ring = LocalKeyRing.load(ring_file)
        if first:
            CertificateAuthority.create(ca, trust_domain=trust_domain, key_encryption=ring, clock=clock)
        succession = Succession(directory=ca, trust_domain=trust_domain, key_encryption=ring, clock=clock)
        return cls(folders, succession, lifetime=lifetime, clock=clock, report=report)

    def renew_due(self) -> int:
        """Writes every leaf that is missing, broken, past half its life or of another root; gives their number.

        The authority is read again first: another process may have taken a step of a change of
        roots. Whoever's leaf is not due is given the roots of this moment.

        Raises:
            ConfigurationError: a step is being taken at this moment, or the folders cannot be written.
        """
        self._authority = self._succession.authority()
        renewed = 0
        for folder, issue in self._leaves():
            name = folder.relative_to(self._folders.issued)
            if needs_renewal(folder, self._clock) or not is_of(folder, self._authority.certificate):
                write_leaf(issue(), folder)
                self._report(f"issued {name}")
                renewed += 1
            elif (folder / ROOTS_FILE).read_bytes() != self._authority.ca_pem:
                give_roots(folder, self._authority.ca_pem)
                self._report(f"roots given to {name}")
        return renewed

    @property
    def root_step(self) -> str:
        """How far a change of roots is."""
        return self._succession.step.value

    def prepare_root(self) -> None:
        """Makes the next root. Who keeps this deployment gives it to every holder, by the next look.

        Raises:
            ConfigurationError: a change is under way.
        """
        self._succession.prepare()

    def switch_root(self) -> None:
        """Has the next root issue. Who keeps this deployment issues every leaf anew, by the next look.

        Raises:
            ConfigurationError: none is prepared, or somebody was not given it yet; names them.
        """
        self._require_all("does not trust the next root yet", self._has_roots)
        self._succession.switch()

    def finish_root(self) -> None:
        """Has the old root trusted no more, from the next look on.

        Raises:
            ConfigurationError: nothing was switched, or a leaf is still of the old root; names them.
        """
        present = self._succession.authority().certificate
        self._require_all("has no leaf of the new root yet", lambda folder: is_of(folder, present))
        self._succession.finish()

    def _has_roots(self, folder: Path) -> bool:
        return (folder / ROOTS_FILE).read_bytes() == self._authority.ca_pem

    def _require_all(self, otherwise: str, holds: Callable[[Path], bool]) -> None:
        behind = [str(folder.relative_to(self._folders.issued)) for folder, _ in self._leaves() if not holds(folder)]
        if behind:
            raise ConfigurationError(f"{', '.join(behind)} {otherwise}: wait for the next look of `casemate pki keep`")

    def require_healthy(self) -> None:
        """Returns if every leaf is there and will not end soon.

        Raises:
            ConfigurationError: names those that are past three quarters of their life, or missing.
        """
        due = [str(folder.relative_to(self._folders.issued)) for folder, _ in self._leaves() if self._is_late(folder)]
        if due:
            raise ConfigurationError(f"not renewed: {', '.join(due)}")

    def issue_client(self, tenant: str, name: str) -> Path:
        """The folder of a client's leaf, issued now if there is none that is good; renewed from then on."""
        folder = self._folders.issued / "clients" / tenant / name
        if needs_renewal(folder, self._clock):
            write_leaf(self._authority.issue_client(tenant=tenant, name=name, lifetime=self._lifetime), folder)
        return folder

    def _is_late(self, folder: Path) -> bool:
        try:
            certificate = load_certificate(folder / CERTIFICATE_FILE)
        except ConfigurationError:
            return True
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return self._clock.now() >= start + (end - start) * 3 / 4

    def _leaves(self) -> Iterator[tuple[Path, Callable[[], IssuedLeaf]]]:
        for service in (*SERVICES, *OBSERVERS):
            yield self._folders.leaf(service, "service"), lambda service=service: self._service(service)  # type: ignore[misc]
        for service, roles in ROLES.items():
            for role in roles:
                yield self._folders.leaf(service, f"database/{role}"), lambda role=role: self._role(role)  # type: ignore[misc]
        yield self._folders.leaf("postgres", "server"), self._database_server
        clients = self._folders.issued / "clients"
        known = {path.parent for path in clients.glob("*/*/cert.pem")} | {clients.joinpath(*OPERATOR)}
        for folder in sorted(known):
            yield folder, lambda folder=folder: self._client(folder)  # type: ignore[misc]

    def _service(self, service: str) -> IssuedLeaf:
        return self._authority.issue_service(service=service, lifetime=self._lifetime)

    def _role(self, role: str) -> IssuedLeaf:
        return self._authority.issue_database(DatabaseRole(role=role), lifetime=self._lifetime)

    def _database_server(self) -> IssuedLeaf:
        return self._authority.issue_database(DatabaseServer(host="postgres"), lifetime=self._lifetime)

    def _client(self, folder: Path) -> IssuedLeaf:
        return self._authority.issue_client(tenant=folder.parent.name, name=folder.name, lifetime=self._lifetime)


def _make_secrets(folders: DeploymentFolders, *, first: bool) -> None:
    """Key-encryption keys and passwords; PostgreSQL gets verifiers, which log nobody in."""
    for service in SERVICES:
        ring = folders.secret(service, "kek.json")
        if not ring.exists():
            _require_first(ring, first=first)
            LocalKeyRing.create(ring)
    for service, roles in ROLES.items():
        for role in roles:
            password = folders.secret(service, role)
            if not password.exists():
                _require_first(password, first=first)
                write_file(password, secrets.token_urlsafe(32).encode())
            verifier = folders.secret("postgres", role)
            if not verifier.exists():
                write_file(verifier, scram_verifier(Secret(password.read_text())).reveal().encode())


def _require_first(path: Path, *, first: bool) -> None:
    if not first:
        raise ConfigurationError(
            f"{path} is gone: what it protected cannot be opened without it. Restore it, or remove every volume"
        )
