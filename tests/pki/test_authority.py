"""The authority's own key and certificate at rest."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.pki.authority import CertificateAuthority
from casemate.sealing.local import LocalKeyRing
from tests.support.authority import TRUST_DOMAIN, build_authority_in


class LaterClock(SystemClock):
    """The machine's clock, some time on."""

    def __init__(self, later: timedelta) -> None:
        self.later = later

    def now(self):
        return super().now() + self.later


def load(directory: Path, *, domain: str = TRUST_DOMAIN, later: timedelta = timedelta(0)) -> CertificateAuthority:
    ring = LocalKeyRing.load(directory / "kek" / "pki.json")
    return CertificateAuthority.load(
        directory / "pki" / "ca", trust_domain=domain, key_encryption=ring, clock=LaterClock(later)
    )


def test_loaded_authority_is_the_created_one(tmp_path: Path) -> None:
    """And goes on issuing."""
    created = build_authority_in(tmp_path)
    loaded = load(tmp_path)
    assert loaded.ca_pem == created.ca_pem
    loaded.issue_client(tenant="acme", name="caller")


def test_second_creation_is_refused(tmp_path: Path) -> None:
    """An authority is never overwritten: every leaf hangs on it."""
    build_authority_in(tmp_path)
    ring = LocalKeyRing.load(tmp_path / "kek" / "pki.json")
    with pytest.raises(ConfigurationError, match="already"):
        CertificateAuthority.create(
            tmp_path / "pki/ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=SystemClock()
        )
    load(tmp_path)


def test_creation_that_a_crash_cut_short_can_be_repeated(tmp_path: Path) -> None:
    """A sealed key without a certificate has signed nothing."""
    build_authority_in(tmp_path)
    (tmp_path / "pki/ca/cert.pem").unlink()
    ring = LocalKeyRing.load(tmp_path / "kek" / "pki.json")
    CertificateAuthority.create(
        tmp_path / "pki/ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=SystemClock()
    )
    load(tmp_path)


def test_private_key_is_nowhere_in_clear(tmp_path: Path) -> None:
    """Neither PEM nor the scalar itself is in any file."""
    created = build_authority_in(tmp_path)
    key: ec.EllipticCurvePrivateKey = created._key
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    clear = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert scalar not in content
            assert clear not in content
    assert (tmp_path / "pki/ca/key.sealed").stat().st_mode & 0o777 == 0o600


def test_missing_key_encryption_key_is_a_clear_error(tmp_path: Path) -> None:
    """It names the file."""
    build_authority_in(tmp_path)
    (tmp_path / "kek/pki.json").rename(tmp_path / "away")
    with pytest.raises(ConfigurationError, match=r"missing.*pki\.json"):
        load(tmp_path)
    (tmp_path / "away").rename(tmp_path / "kek/pki.json")
    load(tmp_path)


@pytest.mark.parametrize("file", ["kek/pki.json", "pki/ca/key.sealed"])
@pytest.mark.parametrize("mode", [0o604, 0o640, 0o620])
def test_key_files_that_others_can_touch_are_a_clear_error(tmp_path: Path, file: str, mode: int) -> None:
    """It says what to run."""
    build_authority_in(tmp_path)
    (tmp_path / file).chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load(tmp_path)
    (tmp_path / file).chmod(0o600)
    load(tmp_path)


def test_another_key_ring_does_not_open_the_authority(tmp_path: Path) -> None:
    """Nor does any file but its own."""
    build_authority_in(tmp_path / "one")
    build_authority_in(tmp_path / "two")
    (tmp_path / "two/kek/pki.json").replace(tmp_path / "one/kek/pki.json")
    with pytest.raises(ConfigurationError, match="does not open"):
        load(tmp_path / "one")


def test_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    """Sealed under the same ring, for the same domain, yet not the certificate's."""
    build_authority_in(tmp_path)
    ring = LocalKeyRing.load(tmp_path / "kek/pki.json")
    CertificateAuthority.create(tmp_path / "other", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=SystemClock())
    (tmp_path / "other/key.sealed").replace(tmp_path / "pki/ca/key.sealed")
    with pytest.raises(ConfigurationError, match="do not belong together"):
        load(tmp_path)


def test_another_trust_domain_is_refused(tmp_path: Path) -> None:
    """The domain that a deployment names is the one that its authority issues."""
    build_authority_in(tmp_path)
    with pytest.raises(ConfigurationError, match="another trust domain"):
        load(tmp_path, domain="elsewhere.example")
    load(tmp_path)


@pytest.mark.parametrize("domain", ["", "Casemate.internal", "a..b", "-a.b", "a b", "a/b", "a.b\n", "x" * 64 + ".b"])
def test_names_that_are_no_trust_domain_are_refused(tmp_path: Path, domain: str) -> None:
    """The twin is every other test here."""
    with pytest.raises(ConfigurationError, match="not a trust domain"):
        build_authority_in(tmp_path, trust_domain=domain)


def test_expired_authority_is_refused_and_its_leaves_never_outlive_it(tmp_path: Path) -> None:
    """Ten years."""
    build_authority_in(tmp_path)
    last_day = load(tmp_path, later=timedelta(days=3651, hours=12))
    issued = last_day.issue_client(tenant="acme", name="caller")
    from cryptography import x509

    assert x509.load_pem_x509_certificate(issued.certificate_pem).not_valid_after_utc == (
        last_day.certificate.not_valid_after_utc
    )
    with pytest.raises(ConfigurationError, match="expired"):
        load(tmp_path, later=timedelta(days=3653))
