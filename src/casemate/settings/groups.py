"""Groups of settings that more than one component has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from casemate.errors import ConfigurationError
from casemate.secret import Secret
from casemate.settings import parsers
from casemate.settings.declaration import setting


@dataclass(frozen=True, slots=True)
class ListenSettings:
    """Where a service listens: its rpcs and its metrics, each as `host:port`."""

    address: str = setting(
        "LISTEN",
        parse=parsers.address,
        default="127.0.0.1:7401",
        per_component={"inference": "127.0.0.1:7402", "datasets": "127.0.0.1:7403"},
        help="host:port of the service's rpcs",
    )
    metrics_address: str = setting(
        "METRICS_LISTEN",
        parse=parsers.address,
        default="127.0.0.1:7411",
        per_component={"inference": "127.0.0.1:7412", "datasets": "127.0.0.1:7413"},
        help="host:port of the service's metrics",
    )


@dataclass(frozen=True, slots=True)
class IdentitySettings:
    """Who a service is: the folder of its `key.pem`, `cert.pem`, `ca.pem`, and the domain all names end in."""

    directory: Path = setting("IDENTITY_DIR", parse=parsers.path, help="folder with key.pem, cert.pem and ca.pem")
    trust_domain: str = setting(
        "TRUST_DOMAIN", parse=parsers.trust_domain, default="casemate.internal", shared=True, help="SPIFFE trust domain"
    )


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """How old news from the trust feed may be before ordinary methods refuse, and what peers must have agreed on."""

    staleness: timedelta = setting(
        "TRUST_STALENESS",
        parse=parsers.duration,
        default=timedelta(seconds=300),
        shared=True,
        help="longest silence of the trust feed before calls are refused",
    )
    post_quantum: bool = setting(
        "TRUST_POST_QUANTUM",
        parse=parsers.boolean,
        default=False,
        shared=True,
        help="true: refuse every call on a connection whose key exchange a quantum computer could open later",
    )


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """One database of one service, and the only two ways to reach it.

    A host that begins with "/" is the folder of a Unix socket, where SCRAM
    protects the login and the kernel the bytes. Any other host is reached by TLS 1.3
    with its name verified and a client certificate shown, so all three files are
    needed. There is no third way.

    Raises:
        ConfigurationError: the fields are of neither kind.
    """

    host: str = setting("DATABASE_HOST", parse=parsers.text, help="host name, or the folder of a Unix socket")
    port: int = setting(
        "DATABASE_PORT", parse=parsers.port, default=5432, help="TCP port, or the number in the socket's name"
    )
    name: str = setting("DATABASE_NAME", parse=parsers.text, help="name of the database")
    user: str = setting("DATABASE_USER", parse=parsers.text, help="role to log in as")
    password: Secret[str] = setting(
        "DATABASE_PASSWORD",
        parse=parsers.secret,
        default=Secret(""),
        help="password of that role; needed on a Unix socket",
    )
    ca_file: Path | None = setting("DATABASE_CA_FILE", parse=parsers.path, default=None, help="PEM roots of the server")
    cert_file: Path | None = setting(
        "DATABASE_CERT_FILE", parse=parsers.path, default=None, help="PEM client certificate"
    )
    key_file: Path | None = setting(
        "DATABASE_KEY_FILE", parse=parsers.path, default=None, help="PEM key of that certificate"
    )

    def __post_init__(self) -> None:
        files = {"CA_FILE": self.ca_file, "CERT_FILE": self.cert_file, "KEY_FILE": self.key_file}
        if self.host.startswith("/"):
            surplus = [name for name, value in files.items() if value is not None]
            if surplus:
                raise ConfigurationError(f"{', '.join(surplus)}: a Unix socket has no TLS; unset, or give a host name")
            if not self.password.reveal():
                raise ConfigurationError("PASSWORD: needed on a Unix socket")
            return
        missing = [name for name, value in files.items() if value is None]
        if missing:
            raise ConfigurationError(
                f"{', '.join(missing)}: needed; over TCP a database is reached by TLS 1.3 with both sides verified"
            )

    @property
    def is_local(self) -> bool:
        """Whether the database is reached by a Unix socket of this machine."""
        return self.host.startswith("/")
