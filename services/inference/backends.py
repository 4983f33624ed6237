"""The upstream back ends that the operator allows, from one TOML file.

    [triton]
    address = "triton.models.svc:8001"
    transport = "mtls"      # the server proves the name triton.<trust domain>
    tenants = ["acme"]      # whose models may name it
    timeout = "5s"

    [sidecar]
    address = "unix:/run/mlserver.sock"
    transport = "local"     # plaintext, on this machine alone
    tenants = ["acme", "globex"]

A model names a back end of this file, never an address.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, cast

from casemate.errors import ConfigurationError
from casemate.settings import address, duration
from casemate.transport.channel import RotatingChannel
from casemate.transport.local_channel import local_channel, require_local
from services.inference.names import is_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import grpc

    from casemate.transport.certificates import CertificateSource

_MEMBERS = frozenset({"address", "transport", "tenants", "timeout"})
_TRANSPORTS = ("mtls", "local")
_DEFAULT_TIMEOUT = "10s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One server of the Open Inference Protocol behind our door.

    Attributes:
        name: what models call it; over mutual TLS, also the first label of the name that it must prove.
        address: `host:port`, or `unix:/path` when local.
        transport: mutual TLS, or plaintext on this machine.
        tenants: whose models may name it.
        timeout: of each call.
    """

    name: str
    address: str
    transport: Literal["mtls", "local"]
    tenants: frozenset[str]
    timeout: timedelta


def read_backends(file: Path | None) -> Mapping[str, Backend]:
    """The back ends of a file, by name; none without a file.

    Raises:
        ConfigurationError: the file is not exactly what it may be.
    """
    if file is None:
        return {}
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML's and Unicode's errors are ValueErrors
        raise ConfigurationError(f"{file}: {error}") from error
    return {name: _backend(f"{file}: [{name}]", name, table) for name, table in tables.items()}


def _backend(where: str, name: str, table: object) -> Backend:
    if not is_name(name) or not isinstance(table, dict) or not set(table) <= _MEMBERS:
        raise ConfigurationError(f"{where}: a back end is a table of {', '.join(sorted(_MEMBERS))}")
    tenants, transport = table.get("tenants"), table.get("transport")
    if not isinstance(tenants, list) or not tenants or not all(isinstance(tenant, str) for tenant in tenants):
        raise ConfigurationError(f"{where}: tenants must list whose models may name it")
    if transport not in _TRANSPORTS:
        raise ConfigurationError(f"{where}: transport must be {' or '.join(_TRANSPORTS)}")
    try:
        timeout = duration(str(table.get("timeout", _DEFAULT_TIMEOUT)))
        target = str(table.get("address", ""))
        target = require_local(target) if transport == "local" else address(target)
    except (ValueError, ConfigurationError) as error:
        raise ConfigurationError(f"{where}: {error}") from error
    return Backend(
        name=name,
        address=target,
        transport=cast("Literal['mtls', 'local']", transport),
        tenants=frozenset(cast("list[str]", tenants)),
        timeout=timeout,
    )


class Backends:
    """Channels to the back ends, one each; gRPC connects at the first call.

    Args:
        known: what the operator allows.
        source: our own certificate, and the roots that a back end over mutual TLS is judged by.
        max_message_bytes: the largest message, either way.
    """

    def __init__(self, known: Mapping[str, Backend], *, source: CertificateSource, max_message_bytes: int) -> None:
        self._known = known
        self._channels: dict[str, grpc.Channel] = {
            name: self._open(backend, source, max_message_bytes) for name, backend in known.items()
        }

    def find(self, name: str, *, tenant: str) -> tuple[Backend, grpc.Channel] | None:
        """A back end that a model of `tenant` may name, and the channel to it."""
        backend = self._known.get(name)
        if backend is None or tenant not in backend.tenants:
            return None
        return backend, self._channels[name]

    def close(self) -> None:
        """Ends all calls."""
        for channel in self._channels.values():
            channel.close()

    @staticmethod
    def _open(backend: Backend, source: CertificateSource, max_message_bytes: int) -> grpc.Channel:
        if backend.transport == "local":
            return local_channel(backend.address, max_message_bytes=max_message_bytes)
        return RotatingChannel(
            target=backend.address,
            service_name=backend.name,
            source=source,
            max_message_bytes=max_message_bytes,
        )
