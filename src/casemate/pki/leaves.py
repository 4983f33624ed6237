"""A leaf in its folder: `key.pem` (0600), `cert.pem`, `ca.pem`.

If this fails: a process reads a certificate that is not its key's. It notices by
itself, keeps the pair it had, and says so.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from casemate.clock import Clock
from casemate.errors import ConfigurationError
from casemate.sealing.private_files import read_private, write_file
from casemate.secret import Secret

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"
ROOTS_FILE = "ca.pem"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedLeaf:
    """What the authority gives out.

    Attributes:
        private_key_pem: PKCS #8; None when the asker brought a public key.
        certificate_pem: the leaf alone, as the CA signs leaves directly.
        ca_pem: the root to trust.
    """

    private_key_pem: Secret[bytes] | None
    certificate_pem: bytes
    ca_pem: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafDescription:
    """What a leaf says of itself; nothing of it is verified here.

    Attributes:
        directory: the folder it lies in.
        spiffe_id: its only SPIFFE ID.
        dns_names: the host names it may answer to.
        not_before: start of its validity.
        not_after: end of its validity.
        thumbprint: base64url of the certificate's SHA-256, as in a token's `x5t#S256` (RFC 8705).
        key_usage: bits and purposes, by their RFC 5280 names.
        issuer: subject of the issuing certificate.
        serial: serial number in hexadecimal.
    """

    directory: Path
    spiffe_id: str
    dns_names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    thumbprint: str
    key_usage: tuple[str, ...]
    issuer: str
    serial: str


def write_leaf(leaf: IssuedLeaf, directory: Path) -> None:
    """Put a leaf into its folder: the key first, then the root, then the certificate, each in one step.

    Without a private key, whatever `key.pem` is there stays.

    Raises:
        ConfigurationError: the folder cannot be written.
    """
    if leaf.private_key_pem is not None:
        write_file(directory / KEY_FILE, leaf.private_key_pem.reveal())
    write_file(directory / ROOTS_FILE, leaf.ca_pem, mode=0o644)
    write_file(directory / CERTIFICATE_FILE, leaf.certificate_pem, mode=0o644)


def needs_renewal(directory: Path, clock: Clock) -> bool:
    """Whether the leaf is missing, unreadable, not yet valid, expired, or past half of its life.

    Also when key, certificate and root do not belong together: a crash between
    two of the writes leaves that, and so does a new authority.
    """
    try:
        certificate = load_certificate(directory / CERTIFICATE_FILE)
        _require_coherent(certificate, directory)
    except ConfigurationError:
        return True
    start, end, now = certificate.not_valid_before_utc, certificate.not_valid_after_utc, clock.now()
    return not start <= now < start + (end - start) / 2


def is_of(directory: Path, authority: x509.Certificate) -> bool:
    """Whether an authority issued the leaf in `directory`. Chooses what to renew; nothing is trusted by it.

    Raises:
        ConfigurationError: there is no leaf.
    """
    try:
        load_certificate(directory / CERTIFICATE_FILE).verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def describe(directory: Path) -> LeafDescription:
    """What the leaf in `directory` says of itself, whether valid or expired.

    Raises:
        ConfigurationError: there is none, or not exactly one SPIFFE ID in it.
    """
    certificate = load_certificate(directory / CERTIFICATE_FILE)
    digest = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    return LeafDescription(
        directory=directory,
        spiffe_id=spiffe_id_of(certificate),
        dns_names=tuple(_alternatives(certificate).get_values_for_type(x509.DNSName)),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        thumbprint=base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        key_usage=_usages(certificate),
        issuer=certificate.issuer.rfc4514_string(),
        serial=f"{certificate.serial_number:x}",
    )


def list_leaves(root: Path) -> tuple[LeafDescription, ...]:
    """Every readable leaf under `root`, by path; folders with a broken one are left out.

    Use `describe` on a folder to learn what is wrong with it.
    """
    found = []
    for path in sorted(root.rglob(CERTIFICATE_FILE)):
        try:
            found.append(describe(path.parent))
        except ConfigurationError:
            continue
    return tuple(found)


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file.

    Raises:
        ConfigurationError: there is none.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the certificate {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"not a certificate: {path}") from error


def spiffe_id_of(certificate: x509.Certificate) -> str:
    """The one SPIFFE ID in a certificate.

    Raises:
        ConfigurationError: there is none, or more than one URI (SPIFFE X509-SVID section 2).
    """
    uris = _alternatives(certificate).get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or not uris[0].startswith("spiffe://"):
        raise ConfigurationError("the certificate does not hold exactly one SPIFFE ID")
    return uris[0]


def _require_coherent(certificate: x509.Certificate, directory: Path) -> None:
    try:
        key = load_pem_private_key(read_private(directory / KEY_FILE, what="the private key"), password=None)
        certificate.verify_directly_issued_by(load_certificate(directory / ROOTS_FILE))
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise ConfigurationError(f"the leaf in {directory} is broken") from error
    if key.public_key() != certificate.public_key():
        raise ConfigurationError(f"the key and the certificate in {directory} do not belong together")


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return x509.SubjectAlternativeName([])


def _usages(certificate: x509.Certificate) -> tuple[str, ...]:
    names: list[str] = []
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.KeyUsage):
            bits = {"digitalSignature": extension.value.digital_signature, "keyCertSign": extension.value.key_cert_sign}
            names += [name for name, is_set in bits.items() if is_set]
        elif isinstance(extension.value, x509.ExtendedKeyUsage):
            # The OIDs' own short names: `serverAuth`, `clientAuth`.
            names += [usage._name for usage in extension.value]  # the library has no public way
    return tuple(names)
