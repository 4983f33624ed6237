"""Where a cluster on one machine listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from casemate.cli.state import HTTP_PORTS, METRICS_PORTS, PORTS
from casemate.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services listen, on loopback."""

    grpc: Mapping[str, int]
    http: Mapping[str, int]
    metrics: Mapping[str, int]

    @classmethod
    def fixed(cls) -> Ports:
        """The documented ports."""
        return cls(PORTS, HTTP_PORTS, METRICS_PORTS)

    @classmethod
    def free(cls) -> Ports:
        """Ports that nobody uses at this moment."""
        with contextlib.ExitStack() as held:

            def free() -> int:
                listener = held.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                return int(listener.getsockname()[1])

            return cls(*({name: free() for name in documented} for documented in (PORTS, HTTP_PORTS, METRICS_PORTS)))

    def all(self) -> tuple[int, ...]:
        """Every port that something listens on."""
        return (*self.grpc.values(), *self.http.values(), *self.metrics.values())

    def require_free(self) -> None:
        """Refuses to start beside somebody who listens already.

        Raises:
            ConfigurationError: names the ports in use, all at once.
        """
        taken = [str(port) for port in self.all() if _in_use(port)]
        if taken:
            raise ConfigurationError(f"in use by another process: port {', '.join(taken)}; stop it and start again")


def _in_use(port: int) -> bool:
    with socket.socket() as listener:
        # As the services bind: without this, connections of a predecessor that are in TIME_WAIT
        # would look like a listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
