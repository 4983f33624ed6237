"""The certificate authority: one sealed P-256 key, and the leaves that it signs.

If this fails: whoever gets the CA's key can be any client and any service, until
each service is given another root. The key rests sealed under `kek/pki.json`,
which lies apart, and no service's process ever loads it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from casemate.clock import Clock
from casemate.errors import ConfigurationError, StoredDataUnreadable
from casemate.pki.leaves import CERTIFICATE_FILE, IssuedLeaf, load_certificate, spiffe_id_of, write_leaf
from casemate.pki.names import (
    ClientName,
    DatabaseLeafName,
    LeafName,
    ServiceName,
    parse_spiffe_id,
    parse_trust_domain,
)
from casemate.pki.profiles import LEAF_LIFETIME, build_authority, build_database_leaf, build_leaf
from casemate.sealing.keys import KeyContext
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import read_private, write_file
from casemate.secret import Secret

SEALED_KEY_FILE = "key.sealed"
NEXT = "next"
"""Folder of the root that comes next, below that of the present one; see `succession`."""
RETIRED_FILE = "retired.pem"
"""The root before, for as long as leaves of it are about."""


class _Signing(TypedDict):
    """What every leaf is signed with."""

    trust_domain: str
    public_key: CertificatePublicKeyTypes
    issuer: x509.Certificate
    issuer_key: ec.EllipticCurvePrivateKey
    now: datetime
    lifetime: timedelta


class CertificateAuthority:
    """Issues leaves for one trust domain. Made by `create` or `load`."""

    __slots__ = ("_also_trusted", "_certificate", "_clock", "_key", "_trust_domain")

    def __init__(
        self,
        *,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        trust_domain: str,
        clock: Clock,
        also_trusted: bytes = b"",
    ) -> None:
        self._certificate = certificate
        self._also_trusted = also_trusted
        self._key = key
        self._trust_domain = trust_domain
        self._clock = clock

    @classmethod
    def create(
        cls, directory: Path, *, trust_domain: str, key_encryption: LocalKeyRing, clock: Clock
    ) -> CertificateAuthority:
        """A new authority, written to `directory`: the sealed key first, then `cert.pem`.

        Raises:
            ConfigurationError: there is an authority already, or the name is no trust domain.
        """
        parse_trust_domain(trust_domain)
        if (directory / CERTIFICATE_FILE).exists():
            raise ConfigurationError(f"there is a certificate authority already in {directory}")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = build_authority(key=key, trust_domain=trust_domain, now=clock.now())
        plain = Secret(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
        # A key without a certificate is what a crash in between leaves; it signed nothing, so it may be replaced.
        write_file(directory / SEALED_KEY_FILE, key_encryption.seal_secret(plain, _context(trust_domain)))
        write_file(directory / CERTIFICATE_FILE, _pem(certificate), mode=0o644, replace=False)
        return cls(certificate=certificate, key=key, trust_domain=trust_domain, clock=clock)

    @classmethod
    def load(
        cls, directory: Path, *, trust_domain: str, key_encryption: LocalKeyRing, clock: Clock
    ) -> CertificateAuthority:
        """The authority in `directory`.

        Raises:
            ConfigurationError: there is none, it is of another trust domain, it
                has expired, or its key is readable by others, sealed under
                another key ring, or not the certificate's.
        """
        certificate = load_certificate(directory / CERTIFICATE_FILE)
        if spiffe_id_of(certificate) != f"spiffe://{parse_trust_domain(trust_domain)}":
            raise ConfigurationError(f"the authority in {directory} is of another trust domain than {trust_domain}")
        if certificate.not_valid_after_utc <= clock.now():
            raise ConfigurationError(f"the authority in {directory} expired at {certificate.not_valid_after_utc}")
        sealed = read_private(directory / SEALED_KEY_FILE, what="the sealed key of the certificate authority")
        try:
            plain = key_encryption.open_secret(sealed, _context(trust_domain))
        except StoredDataUnreadable as error:
            raise ConfigurationError(
                f"the authority's key in {directory} does not open under this key-encryption key"
            ) from error
        key = load_der_private_key(plain.reveal(), password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigurationError(f"the authority's key and certificate in {directory} do not belong together")
        return cls(
            certificate=certificate,
            key=key,
            trust_domain=trust_domain,
            clock=clock,
            also_trusted=also_trusted(directory),
        )

    @property
    def certificate(self) -> x509.Certificate:
        """The root that peers trust."""
        return self._certificate

    @property
    def ca_pem(self) -> bytes:
        """The roots that leaves are given to trust, in PEM: this one first, then those of a change of roots."""
        return _pem(self._certificate) + self._also_trusted

    @property
    def trust_domain(self) -> str:
        """The domain whose names it issues."""
        return self._trust_domain

    def issue_client(
        self,
        *,
        tenant: str,
        name: str,
        public_key: CertificatePublicKeyTypes | None = None,
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> IssuedLeaf:
        """A client's leaf. Without a public key, a P-256 key is made and returned with it.

        Raises:
            ConfigurationError: a part is not a name, or the authority has expired.
        """
        return self._issue(ClientName(tenant=tenant, name=name), public_key, lifetime)

    def issue_service(
        self,
        *,
        service: str,
        public_key: CertificatePublicKeyTypes | None = None,
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> IssuedLeaf:
        """A service's leaf, good for serving and for calling. As `issue_client` otherwise."""
        return self._issue(ServiceName(service=service), public_key, lifetime)

    def issue_database(self, name: DatabaseLeafName, *, lifetime: timedelta = LEAF_LIFETIME) -> IssuedLeaf:
        """A leaf for PostgreSQL or for one of its roles; no gate and no service takes it for a peer.

        Raises:
            ConfigurationError: the authority has expired, or the lifetime is nothing.
        """
        return self._issue(name, None, lifetime)

    def renew(self, directory: Path, *, lifetime: timedelta = LEAF_LIFETIME) -> IssuedLeaf:
        """A new key and leaf for whom the leaf in `directory` names, written there.

        The old leaf may have expired, however long ago: what proves the right to
        renew is the CA's key, not the leaf. It must be one that this authority
        signed, so that a planted file cannot choose a name.

        Raises:
            ConfigurationError: there is no leaf, or it is not this authority's.
        """
        old = load_certificate(directory / CERTIFICATE_FILE)
        try:
            old.verify_directly_issued_by(self._certificate)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise ConfigurationError(f"the leaf in {directory} is not this authority's; issue it anew") from error
        leaf = self._issue(parse_spiffe_id(spiffe_id_of(old), trust_domain=self._trust_domain), None, lifetime)
        write_leaf(leaf, directory)
        return leaf

    def _issue(
        self, name: LeafName | DatabaseLeafName, public_key: CertificatePublicKeyTypes | None, lifetime: timedelta
    ) -> IssuedLeaf:
        now = self._clock.now()
        if lifetime <= timedelta(0):
            raise ConfigurationError("a leaf's lifetime is more than nothing")
        if self._certificate.not_valid_after_utc <= now:
            raise ConfigurationError(f"the certificate authority expired at {self._certificate.not_valid_after_utc}")
        private_key_pem = None
        if public_key is None:
            private_key = ec.generate_private_key(ec.SECP256R1())
            public_key = private_key.public_key()
            plain = private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            private_key_pem = Secret(plain)
        signing = _Signing(
            trust_domain=self._trust_domain,
            public_key=public_key,
            issuer=self._certificate,
            issuer_key=self._key,
            now=now,
            lifetime=lifetime,
        )
        if isinstance(name, ClientName | ServiceName):
            certificate = build_leaf(name=name, **signing)
        else:
            certificate = build_database_leaf(name=name, **signing)
        return IssuedLeaf(private_key_pem=private_key_pem, certificate_pem=_pem(certificate), ca_pem=self.ca_pem)


def also_trusted(directory: Path) -> bytes:
    """The other roots that count while the root is changed, in PEM: the next one, and the one before."""
    files = (directory / NEXT / CERTIFICATE_FILE, directory / RETIRED_FILE)
    return b"".join(file.read_bytes() for file in files if file.exists())


def _context(trust_domain: str) -> KeyContext:
    return KeyContext(purpose="certificate-authority", tenant="", name=trust_domain, version=1)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
