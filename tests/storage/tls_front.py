"""A TLS face before the embedded server, whose own programs are built without TLS.

It speaks the start of PostgreSQL's protocol (SSLRequest, `S` or `N`) and then
passes bytes to the Unix socket, so that the client meets real TLS and a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SSL_REQUEST = bytes.fromhex("00000008 04d2162f")


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA of one test, and the files it has written."""

    folder: Path
    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    ca_file: Path

    @classmethod
    def create(cls, folder: Path) -> Authority:
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        certificate = _builder(name, name, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)  # noqa: FBT003  # its signature
        signed = certificate.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        ca_file = folder / "ca.pem"
        ca_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return cls(folder, name, key, ca_file)

    def issue(self, dns_name: str) -> tuple[Path, Path]:
        """Certificate and key files of a leaf with that one name."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, dns_name)])
        names = x509.SubjectAlternativeName([x509.DNSName(dns_name)])
        signed = _builder(name, self.name, key).add_extension(names, critical=False).sign(self.key, hashes.SHA256())
        cert_file, key_file = self.folder / f"{dns_name}.pem", self.folder / f"{dns_name}.key"
        cert_file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_file, key_file


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
    )


def server_context(authority: Authority, *, dns_name: str = "localhost") -> ssl.SSLContext:
    """As PostgreSQL with `clientcert=verify-full`: it wants a client certificate of the same CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue(dns_name))
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def tls_front(socket: Path, context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """The port of a front for the server on `socket`; without a context it refuses TLS."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            assert await reader.readexactly(8) == SSL_REQUEST
            writer.write(b"N" if context is None else b"S")
            if context is not None:
                await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_unix_connection(socket)
            await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, "localhost", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.gather(*tasks)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(65536):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()
