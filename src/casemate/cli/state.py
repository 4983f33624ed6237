"""Where a cluster on one machine keeps its keys, data and logs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from casemate.secret import Secret

SERVICES = ("auth", "inference", "datasets")
"""The three services, in the order in which they are announced."""

PORTS = {"auth": 7401, "inference": 7402, "datasets": 7403}
HTTP_PORTS = {"auth": 7404}
METRICS_PORTS = {"auth": 7411, "inference": 7412, "datasets": 7413}


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Names every path below one folder; makes none of them by itself.

    The folder holds private keys: it is created with mode 0700.
    """

    root: Path

    def create(self) -> None:
        """Creates the folder and its parts where they are missing."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in ("kek", "secrets", "log", "audit", "repository", "signers"):
            (self.root / part).mkdir(mode=0o700, exist_ok=True)

    @property
    def authority(self) -> Path:
        """The certificate authority: its certificate, and its key sealed."""
        return self.root / "pki" / "ca"

    def service_leaf(self, service: str) -> Path:
        """The certificate and key of a service."""
        return self.root / "pki" / "leaves" / "svc" / service

    def client_leaf(self, tenant: str, name: str) -> Path:
        """The certificate and key of a client."""
        return self.root / "pki" / "leaves" / "t" / tenant / name

    def kek(self, owner: str) -> Path:
        """The key-encryption key ring of `pki` or of a service."""
        return self.root / "kek" / f"{owner}.json"

    @property
    def postgres(self) -> Path:
        """The embedded database."""
        return self.root / "postgres"

    @property
    def repository(self) -> Path:
        """The sealed models."""
        return self.root / "repository"

    def log(self, service: str) -> Path:
        """The log of a child process."""
        return self.root / "log" / f"{service}.log"

    def audit(self, service: str) -> Path:
        """The audit trail of a service."""
        return self.root / "audit" / f"{service}.jsonl"

    def audits(self) -> tuple[Path, ...]:
        """All audit trails: each of several workers has one of its own, and other teams' services may have theirs."""
        return tuple(sorted(self.audit("auth").parent.glob("*.jsonl")))

    def signer(self, name: str) -> Path:
        """The private key of a signer of the story."""
        return self.root / "signers" / f"{name}.pem"

    @property
    def lock(self) -> Path:
        """Held by the one supervisor that runs on this state."""
        return self.root / "up.lock"

    @property
    def unfinished_restore(self) -> Path:
        """There while a restore is not complete: nothing may be served from what is here."""
        return self.root / "restore.unfinished"

    @property
    def audiences(self) -> Path:
        """Other teams' services that auth is told of at every start."""
        return self.root / "audiences"

    @property
    def endpoints(self) -> Path:
        """What the running supervisor listens on."""
        return self.root / "endpoints.json"

    def password_file(self, name: str) -> Path:
        """The file that holds a database password."""
        return self.root / "secrets" / name

    def password(self, name: str) -> Secret[str]:
        """Loads a password, or makes one of 256 bits on first use."""
        path = self.password_file(name)
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(32))
        return Secret(path.read_text())
