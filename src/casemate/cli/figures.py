"""Reads the metrics of a service, as Prometheus does: over TLS 1.3, with a certificate, by its own name."""

from __future__ import annotations

import http.client
import socket
import ssl
from pathlib import Path

from casemate.errors import Unavailable

TIMEOUT_SECONDS = 5.0


class _Loopback(http.client.HTTPSConnection):
    """Dials loopback, and verifies the service's own name."""

    def __init__(self, name: str, port: int, context: ssl.SSLContext) -> None:
        super().__init__(name, port, context=context, timeout=TIMEOUT_SECONDS)
        self._context_of_call = context

    def connect(self) -> None:
        """Connects and proves the peer."""
        plain = socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS)
        self.sock = self._context_of_call.wrap_socket(plain, server_hostname=self.host)


def read_metrics(port: int, *, name: str, identity: Path) -> dict[str, float]:
    """Every figure without labels that the service on this port of loopback has.

    Args:
        port: of its metrics.
        name: its own name, which its certificate has to bear.
        identity: folder of a certificate that may read them: an operator's or a service's.

    Raises:
        Unavailable: it does not answer, or not to this certificate.
    """
    context = ssl.create_default_context(cafile=str(identity / "ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    connection = _Loopback(name, port, context)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
    except OSError as error:
        raise Unavailable(f"metrics on port {port}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Unavailable(f"metrics on port {port}: status {answer.status}")
    lines = (line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#" and "{" not in line)
    return {figure: float(value) for figure, _, value in lines}
