"""Channels that never leave the machine: to a sidecar on a loopback address or a Unix socket.

They carry plaintext. gRPC's local credentials look at the connected socket
itself and refuse any peer that is not on this machine; names are not resolved
here at all, so nothing that changes DNS or /etc/hosts can move the target.

If this fails: plaintext requests, without tokens, leave the machine.
"""

from __future__ import annotations

import ipaddress
from typing import Final

import grpc

from casemate.errors import ConfigurationError
from casemate.transport.options import CHANNEL_OPTIONS, DEFAULT_MAX_MESSAGE_BYTES, message_options

_UNIX: Final = "unix:"


def local_channel(target: str, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> grpc.Channel:
    """A plaintext channel to a server on this machine.

    Args:
        target: `unix:/absolute/path`, or a literal loopback address and port: `127.0.0.1:8001`, `[::1]:8001`.
        max_message_bytes: the largest message, either way.

    Raises:
        ConfigurationError: the target is neither.
    """
    require_local(target)
    kind = grpc.LocalConnectionType.UDS if target.startswith(_UNIX) else grpc.LocalConnectionType.LOCAL_TCP
    return grpc.secure_channel(
        target,
        grpc.local_channel_credentials(kind),
        options=(*CHANNEL_OPTIONS, *message_options(max_message_bytes)),
    )


def require_local(target: str) -> str:
    """Returns the target when `local_channel` takes it.

    Raises:
        ConfigurationError: it is not on this machine, or may not stay there.
    """
    if target.startswith(_UNIX):
        if not target.startswith(f"{_UNIX}/"):
            raise ConfigurationError(f"{target!r}: a Unix socket is named by its absolute path")
        return target
    host, _, port = target.rpartition(":")
    if not is_loopback(host) or not (port.isascii() and port.isdigit()):
        raise ConfigurationError(f"{target!r}: plaintext goes to a literal loopback address or a Unix socket alone")
    return target


def is_loopback(host: str) -> bool:
    """Whether a host is a literal loopback address, an IPv6 one in brackets or bare. Names are not resolved."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
