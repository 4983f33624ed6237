"""How a command says who it is and where the services are."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec

import click

from casemate.cli.main import Options
from casemate.cli.profiles import Profiles
from casemate.cli.state import METRICS_PORTS, PORTS, SERVICES, StateDirectory
from casemate.client.session import Endpoints, Session
from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Announcement:
    """What the supervisor that runs on a state directory says of itself."""

    trust_domain: str
    endpoints: Endpoints
    metrics: dict[str, int]
    running: bool

    @classmethod
    def read(cls, state: StateDirectory) -> Announcement:
        """Reads it; the documented ports where no supervisor runs here."""
        if not state.endpoints.is_file():
            endpoints = Endpoints(**{name: f"127.0.0.1:{port}" for name, port in PORTS.items()})
            return cls("casemate.internal", endpoints, dict(METRICS_PORTS), running=False)
        said = json.loads(state.endpoints.read_text())
        endpoints = Endpoints(**{name: f"127.0.0.1:{port}" for name, port in said["grpc"].items()})
        # A supervisor that was killed could not take its announcement back.
        running = Path(f"/proc/{said['supervisor']}").exists() or not Path("/proc/self").exists()
        return cls(said["trust_domain"], endpoints, said["metrics"], running=running)

    @classmethod
    def require(cls, state: StateDirectory) -> Announcement:
        """Reads it.

        Raises:
            ConfigurationError: nothing runs on this state.
        """
        found = cls.read(state)
        if not found.running:
            raise ConfigurationError(f"nothing runs on {state.root}: say `make run` in another terminal first")
        return found


@dataclass(frozen=True, slots=True)
class Place:
    """Where services are, by the profile that was named or else the state directory; and who calls, if that says it."""

    trust_domain: str
    endpoints: Endpoints
    identity: Path | None

    @classmethod
    def of(cls, options: Options) -> Place:
        """Reads it.

        Raises:
            ConfigurationError: there is no such profile.
        """
        if options.profile is not None:
            profile = Profiles(options.profiles).load(options.profile)
            return cls(profile.trust_domain, profile.endpoints, profile.identity)
        said = Announcement.read(StateDirectory(options.state))
        return cls(said.trust_domain, said.endpoints, None)


def with_session(function: Callable[Concatenate[Session, P], None]) -> Callable[..., None]:
    """Gives a command a session as its first argument, and closes it after the command.

    Adds --as, --identity, --trust-domain and the three addresses.
    """

    @functools.wraps(function)
    def run(connection: Connection, /, *arguments: P.args, **others: P.kwargs) -> None:
        function(connection.session(), *arguments, **others)

    return with_connection(run)


class Connection:
    """What the options of a command say of caller and services; a session only once one is asked for."""

    def __init__(self, options: Options, given: Mapping[str, object]) -> None:
        self._options = options
        self._given = given
        self._session: Session | None = None

    @property
    def trust_domain(self) -> str:
        """The domain that was given, or that of the profile or the state directory."""
        return str(self._given["trust_domain"] or Place.of(self._options).trust_domain)

    def session(self) -> Session:
        """The session, the same each time.

        Raises:
            ConfigurationError: it was not said who calls.
        """
        if self._session is None:
            self._session = _open_session(self._options, self._given)
        return self._session

    def close(self) -> None:
        """Closes the session, if there is one."""
        if self._session is not None:
            self._session.close()


def with_connection(function: Callable[Concatenate[Connection, P], None]) -> Callable[..., None]:
    """As `with_session`, for a command that can do without one."""

    @click.pass_obj
    @functools.wraps(function)
    def run(options: Options, /, *arguments: P.args, **others: P.kwargs) -> None:
        connection = Connection(options, {name: others.pop(name) for name in _OPTIONS})
        try:
            function(connection, *arguments, **others)
        finally:
            connection.close()

    command: Callable[..., None] = run
    for option in _OPTIONS.values():
        command = option(command)
    return command


_OPTIONS = {
    "datasets": click.option("--datasets", default=None, help="host:port of datasets."),
    "inference": click.option("--inference", default=None, help="host:port of inference."),
    "auth": click.option("--auth", default=None, help="host:port of auth."),
    "trust_domain": click.option("--trust-domain", default=None, help="SPIFFE trust domain."),
    "identity": click.option(
        "--identity",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Directory with key.pem, cert.pem and ca.pem.",
    ),
    "who": click.option("--as", "who", default=None, metavar="TENANT/NAME", help="A client of the state directory."),
}


def _open_session(options: Options, given: Mapping[str, object]) -> Session:
    """The session that the options of a command describe."""
    place, who, identity = Place.of(options), given["who"], given["identity"]
    if options.profile is not None and who is not None:
        raise ConfigurationError("--as names a client of the state directory, and --profile says who calls: say one")
    identity = identity or place.identity
    if identity is None:
        if not isinstance(who, str) or who.count("/") != 1:
            raise ConfigurationError("say who calls: --as TENANT/NAME, --identity DIRECTORY or casemate --profile NAME")
        identity = StateDirectory(options.state).client_leaf(*who.split("/"))
    endpoints = Endpoints(**{name: str(given[name] or place.endpoints.of(name)) for name in SERVICES})
    return Session(
        source=CertificateSource(Path(str(identity))),
        endpoints=endpoints,
        trust_domain=str(given["trust_domain"] or place.trust_domain),
    )


def tenant_of(session: Session) -> str:
    """The tenant that the session's certificate names."""
    parts = session.source.current.spiffe_id.split("/")
    if len(parts) < 6 or parts[3] != "t":
        raise ConfigurationError("this certificate is a service's; a client's is needed")
    return parts[4]
