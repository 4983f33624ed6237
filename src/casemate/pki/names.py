"""Who a certificate speaks for: the SPIFFE IDs of clients and services.

If this fails: a name is read as another tenant's. The token is bound to the
certificate's thumbprint all the same, and names its tenant itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from casemate.errors import ConfigurationError

_LABEL = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,62}")
# RFC 1123 labels in lower case: the domain is a DNS suffix as well as a SPIFFE trust domain.
_TRUST_DOMAIN = re.compile(r"(?=.{1,190}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def parse_trust_domain(text: str) -> str:
    """`text`, when it can be a trust domain: a DNS name in lower case.

    Raises:
        ConfigurationError: it cannot.
    """
    if not _TRUST_DOMAIN.fullmatch(text):
        raise ConfigurationError(f"not a trust domain: {text!r}")
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientName:
    """A client of a tenant: `spiffe://<domain>/t/<tenant>/<name>`.

    Raises:
        ConfigurationError: a part is not a name (`[a-z][a-z0-9-]{0,62}`).
    """

    tenant: str
    name: str

    def __post_init__(self) -> None:
        _require_label("tenant", self.tenant)
        _require_label("client", self.name)

    def spiffe_id(self, trust_domain: str) -> str:
        """The one URI in the client's certificate."""
        return f"spiffe://{trust_domain}/t/{self.tenant}/{self.name}"

    def dns_names(self, trust_domain: str) -> tuple[str, ...]:  # noqa: ARG002  # services do have some
        """None: a client must not be able to stand in for a server."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceName:
    """A service: `spiffe://<domain>/svc/<service>`, and `<service>.<domain>` in DNS.

    Raises:
        ConfigurationError: the name is not one (`[a-z][a-z0-9-]{0,62}`).
    """

    service: str

    def __post_init__(self) -> None:
        _require_label("service", self.service)

    def spiffe_id(self, trust_domain: str) -> str:
        """The one URI in the service's certificate."""
        return f"spiffe://{trust_domain}/svc/{self.service}"

    def dns_names(self, trust_domain: str) -> tuple[str, ...]:
        """The one name that channels verify."""
        return (f"{self.service}.{trust_domain}",)


LeafName = ClientName | ServiceName


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseServer:
    """PostgreSQL itself: `<host>.<domain>` in DNS, and no SPIFFE ID.

    Raises:
        ConfigurationError: the host is not a label (`[a-z][a-z0-9-]{0,62}`).
    """

    host: str

    def __post_init__(self) -> None:
        _require_label("database host", self.host)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseRole:
    """A role of PostgreSQL, as its client certificate's common name says it.

    Raises:
        ConfigurationError: not a role's name (`[a-z][a-z0-9_]{0,62}`).
    """

    role: str

    def __post_init__(self) -> None:
        if not _ROLE.fullmatch(self.role):
            raise ConfigurationError(f"not a database role (a-z, 0-9, underscore; a letter first): {self.role!r}")


DatabaseLeafName = DatabaseServer | DatabaseRole


def parse_spiffe_id(spiffe_id: str, *, trust_domain: str) -> LeafName:
    """Whom a SPIFFE ID of ours names.

    Raises:
        ConfigurationError: it is of another domain or of no form that we issue.
    """
    prefix = f"spiffe://{trust_domain}/"
    parts = spiffe_id.removeprefix(prefix).split("/") if spiffe_id.startswith(prefix) else []
    match parts:
        case ["t", tenant, name]:
            return ClientName(tenant=tenant, name=name)
        case ["svc", service]:
            return ServiceName(service=service)
        case _:
            raise ConfigurationError(f"not a name that this authority issues: {spiffe_id!r}")


def _require_label(what: str, text: str) -> None:
    if not _LABEL.fullmatch(text):
        raise ConfigurationError(f"not a {what} name (a-z, 0-9, hyphen; a letter first; at most 63): {text!r}")
