"""Who holds the other end of the connection, judged on every call.

TLS verified the certificate when the connection began, and a resumed session
does not verify at all; so dates, purpose and name are judged again here.

If this fails: a certificate that expired or was revoked keeps calling until its
connection ages out; tokens bound to it expire within five minutes.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate.errors import Reason, Unauthenticated
from casemate.gate.core.thumbprint import certificate_thumbprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from casemate.gate.core.trust import TrustSnapshot

_CACHED_CERTIFICATES: Final = 4096
_TLS_1_3: Final = b"TLSv1.3"
# SPIFFE-ID section 2.2: segments of these characters; "." and ".." are excluded below.
_PATH: Final = re.compile(r"/(?:t/[a-z][a-z0-9-]{0,62}(?:/[A-Za-z0-9._-]+)+|svc/[a-z][a-z0-9-]{0,62})")
POST_QUANTUM: Final = frozenset({"X25519MLKEM768"})
"""Hybrid key exchange, which two grpcio peers use by themselves."""
_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """What a leaf says, read once per distinct certificate. TLS verified its chain; its dates are not judged yet."""

    spiffe_id: str
    thumbprint: str
    not_before: datetime
    not_after: datetime

    @classmethod
    def parse(cls, pem: bytes, *, trust_domain: str) -> PeerCertificate:
        """Reads a leaf and requires the profile of a caller.

        Exactly one URI name, a SPIFFE ID of `trust_domain` below `/t/` or `/svc/`;
        `clientAuth` said in so many words (grpcio accepts a leaf that says nothing);
        not an authority.

        Raises:
            Unauthenticated: PEER_REFUSED.
        """
        try:
            leaf = x509.load_pem_x509_certificate(pem)
            extensions = leaf.extensions
            names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
            purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            authority = _is_authority(extensions)
        except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
            raise _refused("certificate lacks what a caller's has") from error
        if authority or ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise _refused("certificate is not for callers")
        if len(uris) != 1:
            raise _refused("certificate has not exactly one URI name")
        prefix = f"spiffe://{trust_domain}"
        path = uris[0].removeprefix(prefix)
        if not uris[0].startswith(prefix) or _PATH.fullmatch(path) is None:
            raise _refused("certificate names nobody of the trust domain")
        if not {".", ".."}.isdisjoint(path.split("/")):
            raise _refused("certificate names a relative path")
        return cls(
            spiffe_id=uris[0],
            thumbprint=certificate_thumbprint(leaf.public_bytes(Encoding.DER)),
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A peer that was verified for this call; only `PeerVerifier.verify` makes one.

    Attributes:
        spiffe_id: its one name.
        thumbprint: base64url SHA-256 of its leaf.
        not_after: when its certificate ends.
        tls_version: `TLSv1.3`.
        group: the key exchange group, `X25519MLKEM768` between two grpcio peers; empty if unknown.
    """

    spiffe_id: str
    thumbprint: str
    not_after: datetime
    tls_version: str
    group: str
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only the verifier makes a Peer")


class PeerVerifier:
    """Verifies peers of one trust domain; keeps what it read of certificates, never what it decided.

    Args:
        trust_domain: of every peer.
        post_quantum: accept only connections whose key exchange is in `POST_QUANTUM`: a quantum
            computer cannot open later what was recorded of them.
    """

    def __init__(self, *, trust_domain: str, post_quantum: bool = False) -> None:
        self._trust_domain = trust_domain
        self._groups = frozenset(group.encode() for group in POST_QUANTUM) if post_quantum else None
        self._lock = threading.Lock()
        self._read: OrderedDict[bytes, tuple[PeerCertificate, dict[bytes, Peer]]] = OrderedDict()

    def verify(self, auth_context: Mapping[str, Sequence[bytes]], *, now: datetime, trust: TrustSnapshot) -> Peer:
        """The peer of a call.

        Args:
            auth_context: what the transport knows of the connection, as grpcio names it.
            now: when the certificate has to be valid.
            trust: for revocations.

        Raises:
            Unauthenticated: PEER_REFUSED.
        """
        told = auth_context.get
        versions, pems = told("ssl_tls_version", ()), told("x509_pem_cert", ())
        if len(versions) != 1 or versions[0] != _TLS_1_3:
            raise _refused("connection is not TLS 1.3")
        if len(pems) != 1:
            raise _refused("connection has not exactly one leaf")
        certificate, peers = self._read.get(pems[0]) or self._learn(bytes(pems[0]))
        if not certificate.not_before <= now < certificate.not_after:
            raise _refused("certificate is outside its dates")
        trust.revocations.check_peer(certificate.spiffe_id, certificate.thumbprint, now)
        groups = told("ssl_negotiated_key_exchange_group", ())
        group = groups[0] if groups else b""
        if self._groups is not None and group not in self._groups:
            raise _refused("connection was made with another key exchange")
        peer = peers.get(group)
        if peer is None:
            # There are a handful of groups, and TLS names them, so this does not grow.
            peer = peers[group] = _peer(certificate, group)
        return peer

    def certificate_of(self, auth_context: Mapping[str, Sequence[bytes]]) -> PeerCertificate | None:
        """What the certificate of a peer that was refused says, for the audit; None if it is not one of a caller.

        TLS has proven its key and its root. Nothing else of it is judged here.
        """
        pems = auth_context.get("x509_pem_cert", ())
        if len(pems) != 1:
            return None
        try:
            return (self._read.get(pems[0]) or self._learn(bytes(pems[0])))[0]
        except Unauthenticated:
            return None

    def _learn(self, pem: bytes) -> tuple[PeerCertificate, dict[bytes, Peer]]:
        known = (PeerCertificate.parse(pem, trust_domain=self._trust_domain), dict[bytes, Peer]())
        with self._lock:
            self._read[pem] = known
            if len(self._read) > _CACHED_CERTIFICATES:
                self._read.popitem(last=False)
        return known


def _peer(certificate: PeerCertificate, group: bytes) -> Peer:
    return Peer(
        spiffe_id=certificate.spiffe_id,
        thumbprint=certificate.thumbprint,
        not_after=certificate.not_after,
        tls_version="TLSv1.3",
        group=group.decode("ascii", "replace"),
        seal=_SEAL,
    )


def _is_authority(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _refused(detail: str) -> Unauthenticated:
    return Unauthenticated(detail, reason=Reason.PEER_REFUSED)
