"""Session-wide certificate authority and leaves, good and odd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate.clock import SystemClock
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import IssuedLeaf, write_leaf
from casemate.sealing.local import LocalKeyRing
from casemate.secret import Secret

TRUST_DOMAIN = "casemate.internal"

LeafFactory = Callable[..., Path]
"""`leaf(kind, **names) -> Path`: see the fixture `leaf`."""


@dataclass
class OddProfile:
    """A leaf that our authority would never issue; each field is one way to differ."""

    uris: Sequence[str] = (f"spiffe://{TRUST_DOMAIN}/t/acme/odd",)
    dns_names: Sequence[str] = ()
    usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    start: timedelta = timedelta(minutes=-1)
    end: timedelta = timedelta(hours=1)
    ca: bool = False
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))


ODD_PROFILES: dict[str, Callable[[], OddProfile]] = {
    "sound": OddProfile,  # the twin of all others
    "expired": lambda: OddProfile(start=timedelta(hours=-25), end=timedelta(hours=-1)),
    "not-yet-valid": lambda: OddProfile(start=timedelta(hours=1), end=timedelta(hours=25)),
    "two-uris": lambda: OddProfile(
        uris=(f"spiffe://{TRUST_DOMAIN}/t/acme/odd", f"spiffe://{TRUST_DOMAIN}/t/globex/odd")
    ),
    "no-uri": lambda: OddProfile(uris=(), dns_names=(f"odd.{TRUST_DOMAIN}",)),
    "no-eku": lambda: OddProfile(usages=()),
    "server-auth-only": lambda: OddProfile(usages=(ExtendedKeyUsageOID.SERVER_AUTH,)),
    "wrong-domain": lambda: OddProfile(uris=("spiffe://elsewhere.example/t/acme/odd",)),
    "ca-leaf": lambda: OddProfile(ca=True),
}


def build_authority_in(directory: Path, *, trust_domain: str = TRUST_DOMAIN) -> CertificateAuthority:
    """A new authority and its key ring under `directory`."""
    ring = LocalKeyRing.create(directory / "kek" / "pki.json")
    return CertificateAuthority.create(
        directory / "pki" / "ca", trust_domain=trust_domain, key_encryption=ring, clock=SystemClock()
    )


def odd_leaf(authority: CertificateAuthority, profile: OddProfile) -> IssuedLeaf:
    """A leaf of `profile`, signed by `authority`'s real key."""
    now = datetime.now(UTC)
    public_key = profile.key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + profile.start)
        .not_valid_after(now + profile.end)
        .add_extension(x509.BasicConstraints(ca=profile.ca, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.certificate.public_key()), critical=False
        )
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in profile.uris]
    names += [x509.DNSName(name) for name in profile.dns_names]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    if profile.usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(profile.usages), critical=False)
    certificate = builder.sign(authority._key, hashes.SHA256())
    return IssuedLeaf(
        private_key_pem=Secret(profile.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
        certificate_pem=certificate.public_bytes(Encoding.PEM),
        ca_pem=authority.ca_pem,
    )


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """The authority of `casemate.internal`, for the whole session, by the real clock."""
    return build_authority_in(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def foreign_authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    """Another authority that uses the same trust domain and the same names."""
    return build_authority_in(tmp_path_factory.mktemp("foreign-authority"))


@pytest.fixture(scope="session")
def leaf(
    authority: CertificateAuthority,
    foreign_authority: CertificateAuthority,
    tmp_path_factory: pytest.TempPathFactory,
) -> LeafFactory:
    """`leaf(kind, …) -> Path`: a new folder with `key.pem`, `cert.pem`, `ca.pem`.

    Kinds: `client` (tenant=, name=), `service` (service=), `wrong-ca` (a client
    of the foreign authority, with our root), `profile` (profile=OddProfile(…)),
    and the keys of `ODD_PROFILES`. `into=` names the folder, to replace the leaf there.
    """
    root = tmp_path_factory.mktemp("leaves")
    numbers = count()

    def issue(kind: str = "client", *, into: Path | None = None, **arguments: object) -> Path:
        directory = into or root / f"{next(numbers)}-{kind}"
        if kind == "client":
            issued = authority.issue_client(**{"tenant": "acme", "name": "caller", **arguments})
        elif kind == "service":
            issued = authority.issue_service(**{"service": "auth", **arguments})
        elif kind == "wrong-ca":
            foreign = foreign_authority.issue_client(**{"tenant": "acme", "name": "caller", **arguments})
            issued = IssuedLeaf(
                private_key_pem=foreign.private_key_pem,
                certificate_pem=foreign.certificate_pem,
                ca_pem=authority.ca_pem,
            )
        elif kind == "profile":
            issued = odd_leaf(authority, arguments["profile"])
        else:
            issued = odd_leaf(authority, ODD_PROFILES[kind]())
        write_leaf(issued, directory)
        return directory

    return issue
