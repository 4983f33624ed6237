"""A small certificate authority of the transport tests' own."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DOMAIN = "casemate.internal"
_BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class House:
    """A root, and leaves of any shape under it."""

    def __init__(self, name: str = "house") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self._root = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(name))
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=10))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.roots_pem = self._root.public_bytes(Encoding.PEM)

    def leaf(
        self,
        directory: Path,
        *,
        uris: tuple[str, ...],
        dns: tuple[str, ...] = (),
        usages: tuple[x509.ObjectIdentifier, ...] = _BOTH,
        lifetime: timedelta = timedelta(hours=1),
        roots_pem: bytes | None = None,
    ) -> Path:
        """Writes a leaf directory: key first, certificate second, each by rename."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        for each in dns:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(each)))
            except ValueError:
                names.append(x509.DNSName(each))
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name("leaf"))
            .issuer_name(self._root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        leaf = builder.sign(self._key, hashes.SHA256())
        directory.mkdir(parents=True, exist_ok=True)
        put(directory / "ca.pem", roots_pem or self.roots_pem)
        put(directory / "key.pem", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        put(directory / "cert.pem", leaf.public_bytes(Encoding.PEM))
        return directory

    def service(self, directory: Path, name: str, **options) -> Path:
        """A service's leaf."""
        return self.leaf(directory, uris=(f"spiffe://{DOMAIN}/svc/{name}",), dns=(f"{name}.{DOMAIN}",), **options)

    def client(self, directory: Path, tenant: str = "acme", name: str = "alice", **options) -> Path:
        """A client's leaf."""
        options.setdefault("usages", (ExtendedKeyUsageOID.CLIENT_AUTH,))
        return self.leaf(directory, uris=(f"spiffe://{DOMAIN}/t/{tenant}/{name}",), **options)


def put(path: Path, content: bytes) -> None:
    """Writes a file whole, by rename, readable by its owner alone."""
    scratch = path.with_suffix(".new")
    scratch.touch(mode=0o600)
    scratch.write_bytes(content)
    scratch.rename(path)
