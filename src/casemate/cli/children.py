"""How the services are run from a checkout: their command lines and environments."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import casemate
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.supervisor import ChildCommand
from casemate.errors import ConfigurationError
from casemate.settings import DatabaseSettings
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

DATABASES = {"auth": ("casemate_auth",), "datasets": ("casemate_datasets", "casemate_datakeys"), "inference": ()}
"""Each database has one role, of the same name, that can reach no other."""

KEPT = ("PATH", "LANG", "LC_ALL", "HOME")
"""All that a child gets of the caller's environment."""


def find_checkout() -> Path:
    """The checkout that this installation runs from.

    Raises:
        ConfigurationError: this is an installed library, without the services.
    """
    root = Path(casemate.__file__).resolve().parents[2]
    if not (root / "services" / "auth" / "__main__.py").is_file():
        raise ConfigurationError("`up` and `demo` run from a checkout of Casemate: clone it and say `make run`")
    return root


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """Knows everything that a service has to be told.

    Attributes:
        state: keys, data and logs.
        ports: where to listen.
        trust_domain: the SPIFFE trust domain.
        checkout: where the services are.
        databases: by name, as they were made.
        audiences: other teams' services and their scopes, as auth's setting has them.
        inference_workers: processes of inference, on its one port.
    """

    state: StateDirectory
    ports: Ports
    trust_domain: str
    checkout: Path
    databases: Mapping[str, DatabaseSettings]
    audiences: str = ""
    inference_workers: int = 1

    def service(self, name: str, *arguments: str) -> ChildCommand:
        """The command that runs a service, or with arguments does one thing as it."""
        return ChildCommand(
            name=name,
            arguments=(sys.executable, "-m", f"services.{name}", *arguments),
            environment=self._environment(name),
            directory=self.checkout,
            log=self.state.log(name),
        )

    def _environment(self, service: str) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}  # noqa: TID251  # as a shell would
        prefix = f"CASEMATE_{service.upper()}"
        values = {
            CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
            "PYTHONPATH": str(self.checkout),
            "PYTHONUNBUFFERED": "1",
            "CASEMATE_TRUST_DOMAIN": self.trust_domain,
            f"{prefix}_LISTEN": f"127.0.0.1:{self.ports.grpc[service]}",
            f"{prefix}_METRICS_LISTEN": f"127.0.0.1:{self.ports.metrics[service]}",
            f"{prefix}_IDENTITY_DIR": str(self.state.service_leaf(service)),
            f"{prefix}_KEK_FILE": str(self.state.kek(service)),
            f"{prefix}_AUDIT_FILE": str(self.state.audit(service)),
        }
        if service in self.ports.http:
            values[f"{prefix}_HTTP_LISTEN"] = f"127.0.0.1:{self.ports.http[service]}"
        if service == "auth" and self.audiences:
            values[f"{prefix}_AUDIENCES"] = self.audiences
        if service != "auth":
            values[f"{prefix}_AUTH_ADDRESS"] = f"127.0.0.1:{self.ports.grpc['auth']}"
        if service != "datasets":
            values[f"{prefix}_DATASETS_ADDRESS"] = f"127.0.0.1:{self.ports.grpc['datasets']}"
        if service == "inference":
            values[f"{prefix}_REPOSITORY_DIR"] = str(self.state.repository)
            values[f"{prefix}_WORKERS"] = str(self.inference_workers)
        for name in DATABASES[service]:
            database = "DATAKEYS_DATABASE" if name == "casemate_datakeys" else "DATABASE"
            values.update(self._database_environment(f"{prefix}_{database}", name))
        return {**kept, **values}

    def _database_environment(self, prefix: str, name: str) -> Iterator[tuple[str, str]]:
        settings = self.databases[name]
        yield f"{prefix}_HOST", settings.host
        yield f"{prefix}_PORT", str(settings.port)
        yield f"{prefix}_NAME", settings.name
        yield f"{prefix}_USER", settings.user
        yield f"{prefix}_PASSWORD_FILE", str(self.state.password_file(name))
