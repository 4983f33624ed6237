"""Where our HTTPS faces are reached: mutual TLS 1.3, proven before the port is bound, without session tickets.

asyncio's own TLS listener keeps one context, and lets silent strangers hold as many
connections as they like. Here each handshake uses a context made from the certificate
in force, only so many strangers wait at once, and a holder of a certificate has only
so many connections.

If this fails: strangers take the connections of callers. None is heard without a
certificate, and the gate judges that again on every request.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificatePair, CertificateSource
from casemate.transport.floor import probe_context_floor

_ALPN: Final = ("http/1.1",)
_SHUTDOWN_S: Final = 1.0
_CLOSED_WITHIN: Final = timedelta(seconds=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpsLimits:
    """How much one face takes.

    Attributes:
        handshake: for the whole handshake.
        strangers: connections whose handshake is under way; one more ends the oldest.
        connections: proven connections in all.
        of_one: proven connections with one certificate.
    """

    handshake: timedelta = timedelta(seconds=5)
    strangers: int = 128
    connections: int = 512
    of_one: int = 32


class HttpsServer:
    """Takes connections and hands those that were proven to protocols.

    Args:
        source: the server's certificate, and the roots its clients are judged by.
        address: `host:port`; port 0 picks a free one.
        protocol: makes the protocol of one proven connection.
        limits: how much is taken.
    """

    def __init__(
        self,
        *,
        source: CertificateSource,
        address: str,
        protocol: Callable[[], asyncio.Protocol],
        limits: HttpsLimits | None = None,
    ) -> None:
        self._source = source
        self._address = address
        self._protocol = protocol
        self._limits = limits or HttpsLimits()
        self._context: tuple[CertificatePair, ssl.SSLContext] | None = None
        self._server: asyncio.Server | None = None
        self._strangers: dict[asyncio.Transport, asyncio.Task[None] | None] = {}
        self._proven: Counter[bytes] = Counter()
        self._transports: dict[_Connection, asyncio.Transport] = {}
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self.port = 0

    async def start(self) -> None:
        """Proves the lowest TLS version and begins to listen. The probe blocks for milliseconds.

        Raises:
            ConfigurationError: TLS 1.2 would be answered, or the address cannot be bound.
        """
        probe_context_floor(self._present_context())
        listener = _listener(self._address)
        self._server = await asyncio.get_running_loop().create_server(lambda: _Arrival(self._arrived), sock=listener)
        self.port = int(listener.getsockname()[1])

    def close(self) -> None:
        """Takes no more connections; proven ones go on."""
        if self._server is not None:
            self._server.close()
        for transport in list(self._strangers):
            transport.abort()

    async def wait_closed(self, within: timedelta = _CLOSED_WITHIN) -> None:
        """Waits until proven connections have ended; after `within`, ends them."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                await self._all_gone.wait()
        except TimeoutError:
            for transport in list(self._transports.values()):
                transport.abort()
            await self._all_gone.wait()

    def _present_context(self) -> ssl.SSLContext:
        pair = self._source.current
        if self._context is None or self._context[0] is not pair:
            context = server_context(pair)
            context.set_alpn_protocols(list(_ALPN))
            self._context = (pair, context)
        return self._context[1]

    def _arrived(self, transport: asyncio.Transport) -> None:
        if len(self._strangers) >= self._limits.strangers:
            self._strangers.pop(oldest := next(iter(self._strangers)))
            oldest.abort()
        self._strangers[transport] = None
        self._strangers[transport] = asyncio.get_running_loop().create_task(self._prove(transport))

    async def _prove(self, transport: asyncio.Transport) -> None:
        connection = _Connection(self._protocol, self._gone)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                self._present_context(),
                server_side=True,
                ssl_handshake_timeout=self._limits.handshake.total_seconds(),
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
        except OSError:  # a refused handshake, one that takes too long, a peer that left
            transport.abort()
            return
        finally:
            self._strangers.pop(transport, None)
        if secured is None:
            return
        leaf = _leaf_of(secured)
        if (
            leaf is None
            or self._proven[leaf] >= self._limits.of_one
            or self._proven.total() >= self._limits.connections
        ):
            secured.abort()
            return
        if connection.lost:
            return
        self._proven[leaf] += 1
        self._transports[connection] = secured
        self._all_gone.clear()
        connection.begin(secured, leaf)

    def _gone(self, connection: _Connection) -> None:
        del self._transports[connection]
        self._proven[connection.leaf] -= 1
        if not self._proven[connection.leaf]:
            del self._proven[connection.leaf]
        if not self._transports:
            self._all_gone.set()


class _Arrival(asyncio.Protocol):
    """A connection of which nothing is known; the handshake begins before anything is read."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._arrived(transport)


class _Connection(asyncio.Protocol):
    """A proven connection: passes everything on, and tells when it is gone.

    What comes together with the end of the handshake comes before anybody could be
    told that it ended, so it is kept until `begin`.
    """

    def __init__(self, protocol: Callable[[], asyncio.Protocol], gone: Callable[[_Connection], None]) -> None:
        self._make = protocol
        self._gone = gone
        self._protocol: asyncio.Protocol | None = None
        self._early = bytearray()
        self.leaf = b""
        self.lost = False

    def begin(self, transport: asyncio.Transport, leaf: bytes) -> None:
        self.leaf = leaf
        self._protocol = self._make()
        self._protocol.connection_made(transport)
        if self._early:
            self._protocol.data_received(bytes(self._early))
            self._early.clear()

    def data_received(self, data: bytes) -> None:
        if self._protocol is None:
            self._early += data
        else:
            self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._protocol is None else self._protocol.eof_received()

    def pause_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._protocol is not None:
            self._protocol.connection_lost(error)
            self._gone(self)


def _listener(address: str) -> socket.socket:
    """A bound socket; that of `[::]` takes IPv4 too, as grpcio's does."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, int(port)), family=family, dualstack_ipv6=host == "::")
    except (OSError, ValueError):
        raise ConfigurationError(f"{address} cannot be bound: the port is in use or the address is not ours") from None


def _leaf_of(transport: asyncio.Transport) -> bytes | None:
    connection = transport.get_extra_info("ssl_object")
    encoded = connection.getpeercert(binary_form=True) if connection is not None else None
    return None if encoded is None else hashlib.sha256(encoded).digest()


def server_context(pair: CertificatePair) -> ssl.SSLContext:
    """Mutual TLS 1.3 without session tickets, for one certificate and its roots."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    context.load_verify_locations(cadata=pair.roots_pem.decode("ascii"))
    with _readable(pair.private_key_pem.reveal() + b"\n" + pair.certificate_chain_pem) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def _readable(content: bytes) -> Iterator[Path]:
    """A path to read the content from: `ssl` takes a key from a file only. In memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, content)
            path = Path(f"/proc/self/fd/{descriptor}")
            if os.access(path, os.R_OK):
                yield path
                return
        finally:
            os.close(descriptor)
    with tempfile.NamedTemporaryFile() as scratch:  # mode 0600, gone with the block
        scratch.write(content)
        scratch.flush()
        yield Path(scratch.name)
