"""Leaves as wall 7 names them, made and renewed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

from casemate.errors import ConfigurationError
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import describe, list_leaves, load_certificate, needs_renewal, write_leaf
from casemate.sealing.local import LocalKeyRing
from tests.support.authority import TRUST_DOMAIN, LeafFactory, OddProfile, build_authority_in

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class SetClock:
    """A clock that a test moves."""

    def __init__(self, now: datetime = START) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def aged(tmp_path: Path, clock: SetClock) -> CertificateAuthority:
    """An authority whose time the test moves."""
    ring = LocalKeyRing.create(tmp_path / "kek.json")
    return CertificateAuthority.create(tmp_path / "ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=clock)


def extension(certificate: x509.Certificate, kind: type) -> object:
    return certificate.extensions.get_extension_for_class(kind).value


def test_client_leaf_has_one_uri_client_auth_and_no_other_name(leaf: LeafFactory) -> None:
    """Wall 7."""
    certificate = load_certificate(leaf("client", tenant="acme", name="trainer") / "cert.pem")
    names = list(extension(certificate, x509.SubjectAlternativeName))
    assert names == [x509.UniformResourceIdentifier("spiffe://casemate.internal/t/acme/trainer")]
    assert list(extension(certificate, x509.ExtendedKeyUsage)) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert extension(certificate, x509.BasicConstraints).ca is False


def test_service_leaf_has_its_own_dns_name_and_both_usages(leaf: LeafFactory) -> None:
    """Wall 7."""
    certificate = load_certificate(leaf("service", service="datasets") / "cert.pem")
    names = list(extension(certificate, x509.SubjectAlternativeName))
    assert names == [
        x509.UniformResourceIdentifier("spiffe://casemate.internal/svc/datasets"),
        x509.DNSName("datasets.casemate.internal"),
    ]
    usages = set(extension(certificate, x509.ExtendedKeyUsage))
    assert usages == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def verify_as_client(authority: CertificateAuthority, directory: Path) -> None:
    policy = (
        PolicyBuilder()
        .store(Store([authority.certificate]))
        .extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.webpki_defaults_ee()
        )
    )
    policy.build_client_verifier().verify(load_certificate(directory / "cert.pem"), [])


def test_leaves_pass_path_validation_and_odd_ones_do_not(authority: CertificateAuthority, leaf: LeafFactory) -> None:
    """RFC 5280 by the library's own validator, which knows nothing of us."""
    verify_as_client(authority, leaf("client"))
    verify_as_client(authority, leaf("service"))
    verify_as_client(authority, leaf("sound"))
    for kind in ("wrong-ca", "expired", "not-yet-valid", "server-auth-only"):
        with pytest.raises(VerificationError):
            verify_as_client(authority, leaf(kind))


def test_a_leaf_cannot_sign_another(authority: CertificateAuthority) -> None:
    """The CA's path length is 0: even a leaf that says CA:TRUE by mistake has nothing below it."""
    assert extension(authority.certificate, x509.BasicConstraints).path_length == 0
    usage = extension(authority.certificate, x509.KeyUsage)
    assert usage.key_cert_sign
    assert not usage.digital_signature


@pytest.mark.parametrize("name", ["", "UPPER", "with space", "a/b", "..", "1st", "x" * 64, "é", "a\n", "a.b"])
def test_names_that_are_no_names_are_refused(authority: CertificateAuthority, name: str) -> None:
    """The twin is every other test here."""
    with pytest.raises(ConfigurationError):
        authority.issue_client(tenant="acme", name=name)
    with pytest.raises(ConfigurationError):
        authority.issue_client(tenant=name, name="caller")
    with pytest.raises(ConfigurationError):
        authority.issue_service(service=name)


def test_a_brought_public_key_is_certified_without_a_private_one(authority: CertificateAuthority) -> None:
    """The key of a client need never reach the authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    issued = authority.issue_client(tenant="acme", name="caller", public_key=key.public_key())
    assert issued.private_key_pem is None
    assert x509.load_pem_x509_certificate(issued.certificate_pem).public_key() == key.public_key()


def test_written_leaf_is_private_and_a_pair(leaf: LeafFactory) -> None:
    """Key 0600 from its first byte, no temporary file left."""
    directory = leaf("client")
    assert sorted(path.name for path in directory.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert (directory / "key.pem").stat().st_mode & 0o777 == 0o600
    key = load_pem_private_key((directory / "key.pem").read_bytes(), None)
    assert key.public_key() == load_certificate(directory / "cert.pem").public_key()


def test_renewal_is_wanted_from_half_life_on(aged: CertificateAuthority, clock: SetClock, tmp_path: Path) -> None:
    """Also before the leaf's start, when the clock has gone back."""
    directory = tmp_path / "leaf"
    assert needs_renewal(directory, clock)
    write_leaf(aged.issue_client(tenant="acme", name="caller"), directory)
    assert not needs_renewal(directory, clock)
    clock.time = START + timedelta(hours=11)
    assert not needs_renewal(directory, clock)
    clock.time = START + timedelta(hours=12)
    assert needs_renewal(directory, clock)
    clock.time = START - timedelta(hours=1)
    assert needs_renewal(directory, clock)


@pytest.mark.parametrize("lost", ["key.pem", "ca.pem", "cert.pem"])
def test_renewal_is_wanted_when_a_file_is_lost(
    aged: CertificateAuthority, clock: SetClock, tmp_path: Path, lost: str
) -> None:
    """A half-written leaf is replaced rather than kept."""
    write_leaf(aged.issue_client(tenant="acme", name="caller"), tmp_path / "leaf")
    (tmp_path / "leaf" / lost).unlink()
    assert needs_renewal(tmp_path / "leaf", clock)


@pytest.mark.parametrize("exchanged", ["key.pem", "ca.pem", "cert.pem"])
def test_renewal_is_wanted_when_the_files_do_not_belong_together(
    aged: CertificateAuthority, clock: SetClock, tmp_path: Path, exchanged: str
) -> None:
    """A crash between the writes of a renewal leaves a new key beside an old certificate."""
    write_leaf(aged.issue_client(tenant="acme", name="caller"), tmp_path / "leaf")
    assert not needs_renewal(tmp_path / "leaf", clock)
    other = build_authority_in(tmp_path / "other").issue_client(tenant="acme", name="caller")
    write_leaf(other, tmp_path / "other")
    (tmp_path / "other" / exchanged).replace(tmp_path / "leaf" / exchanged)
    assert needs_renewal(tmp_path / "leaf", clock)


@pytest.mark.parametrize("spoilt", ["key.pem", "ca.pem", "cert.pem"])
def test_renewal_is_wanted_when_a_file_is_spoilt_or_the_key_is_open(
    aged: CertificateAuthority, clock: SetClock, tmp_path: Path, spoilt: str
) -> None:
    """A key that others could read is replaced, not kept."""
    write_leaf(aged.issue_client(tenant="acme", name="caller"), tmp_path / "leaf")
    (tmp_path / "leaf/key.pem").chmod(0o644)
    assert needs_renewal(tmp_path / "leaf", clock)
    (tmp_path / "leaf/key.pem").chmod(0o600)
    assert not needs_renewal(tmp_path / "leaf", clock)
    (tmp_path / "leaf" / spoilt).write_text("nothing")
    assert needs_renewal(tmp_path / "leaf", clock)


def test_three_days_off_and_every_leaf_expired_is_recovered_from(
    aged: CertificateAuthority, clock: SetClock, tmp_path: Path
) -> None:
    """Issue 2: renewal reissues from the sealed CA key, whatever the age of the leaves."""
    clients, services = tmp_path / "leaves/t/acme/caller", tmp_path / "leaves/svc/auth"
    write_leaf(aged.issue_client(tenant="acme", name="caller"), clients)
    write_leaf(aged.issue_service(service="auth"), services)
    before = {found.spiffe_id: found for found in list_leaves(tmp_path / "leaves")}
    clock.time = START + timedelta(days=3)
    ring = LocalKeyRing.load(tmp_path / "kek.json")
    again = CertificateAuthority.load(tmp_path / "ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=clock)
    for found in before.values():
        assert found.not_after < clock.now()
        again.renew(found.directory)
        assert not needs_renewal(found.directory, clock)
    after = {found.spiffe_id: found for found in list_leaves(tmp_path / "leaves")}
    assert after.keys() == before.keys()
    assert after["spiffe://casemate.internal/svc/auth"].dns_names == ("auth.casemate.internal",)
    assert all(after[name].thumbprint != before[name].thumbprint for name in before)
    again_key = load_pem_private_key((clients / "key.pem").read_bytes(), None).public_key()
    assert again_key == load_certificate(clients / "cert.pem").public_key()


def test_renewal_refuses_a_leaf_of_another_authority(
    aged: CertificateAuthority, foreign_authority: CertificateAuthority, tmp_path: Path
) -> None:
    """Otherwise a planted certificate would choose the name that is certified."""
    write_leaf(foreign_authority.issue_client(tenant="casemate", name="operator"), tmp_path / "planted")
    with pytest.raises(ConfigurationError, match="not this authority's"):
        aged.renew(tmp_path / "planted")
    write_leaf(aged.issue_client(tenant="casemate", name="operator"), tmp_path / "planted")
    aged.renew(tmp_path / "planted")


@pytest.mark.parametrize("kind", ["two-uris", "no-uri", "wrong-domain"])
def test_renewal_refuses_a_leaf_without_one_name_of_ours(
    authority: CertificateAuthority, leaf: LeafFactory, kind: str
) -> None:
    """The twin is the sound profile."""
    with pytest.raises(ConfigurationError):
        authority.renew(leaf(kind))
    authority.renew(leaf("sound"))


def test_description_tells_what_a_leaf_says(leaf: LeafFactory) -> None:
    """What `casemate pki show` prints."""
    directory = leaf("service", service="inference")
    described = describe(directory)
    assert described.spiffe_id == "spiffe://casemate.internal/svc/inference"
    assert described.dns_names == ("inference.casemate.internal",)
    assert described.key_usage == ("digitalSignature", "serverAuth", "clientAuth")
    assert described.not_after - described.not_before == timedelta(hours=24, minutes=1)
    assert len(described.thumbprint) == 43


def test_list_leaves_out_what_cannot_be_described(leaf: LeafFactory, tmp_path: Path) -> None:
    """One broken folder does not hide the others."""
    leaf("client", into=tmp_path / "good")
    leaf("two-uris", into=tmp_path / "odd")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cert.pem").write_text("nothing")
    assert [found.directory.name for found in list_leaves(tmp_path)] == ["good"]


def test_odd_profiles_can_be_made_to_measure(leaf: LeafFactory) -> None:
    """For the rooms that refuse them."""
    directory = leaf("profile", profile=OddProfile(dns_names=("odd.casemate.internal",)))
    assert describe(directory).dns_names == ("odd.casemate.internal",)
