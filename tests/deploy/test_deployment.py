"""What the authority of a deployment of containers makes, renews, and refuses to make again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate.cli.deployment import Deployment, DeploymentFolders
from casemate.cli.state import SERVICES
from casemate.errors import ConfigurationError
from casemate.pki.leaves import load_certificate
from casemate.transport.certificates import load_pair

DOMAIN = "casemate.internal"
LIFETIME = timedelta(hours=24)


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


@pytest.fixture
def clock() -> Hand:
    return Hand()


@pytest.fixture
def folders(tmp_path: Path) -> DeploymentFolders:
    return DeploymentFolders(authority=tmp_path / "authority", issued=tmp_path / "issued")


def deployed(folders: DeploymentFolders, clock: Hand, *, create: bool = True) -> Deployment:
    return Deployment.open(
        folders, trust_domain=DOMAIN, lifetime=LIFETIME, clock=clock, report=lambda _: None, create=create
    )


def usages(certificate: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_each_service_finds_its_own_leaf_secrets_and_logins_and_nothing_of_others(folders, clock):
    deployed(folders, clock).renew_due()
    for service in SERVICES:
        assert load_pair(folders.leaf(service, "service")).spiffe_id == f"spiffe://{DOMAIN}/svc/{service}"
    found = {
        owner.name: sorted(path.name for path in (owner / "secrets").iterdir())
        for owner in folders.issued.iterdir()
        if (owner / "secrets").is_dir()
    }
    assert found == {
        "auth": ["casemate_auth", "kek.json"],
        "datasets": ["casemate_datakeys", "casemate_datasets", "kek.json"],
        "inference": ["kek.json"],
        "postgres": ["casemate_auth", "casemate_datakeys", "casemate_datasets"],
    }
    keks = {folders.secret(service, "kek.json").read_bytes() for service in SERVICES}
    assert len(keks) == len(SERVICES)


def test_postgresql_is_given_verifiers_and_no_password(folders, clock):
    deployed(folders, clock)
    password = folders.secret("auth", "casemate_auth").read_text()
    assert folders.secret("postgres", "casemate_auth").read_text().startswith("SCRAM-SHA-256$")
    assert all(password not in path.read_text() for path in (folders.issued / "postgres").rglob("*") if path.is_file())


def test_every_private_key_and_secret_is_its_owners_alone(folders, clock):
    deployed(folders, clock).renew_due()
    private = [*folders.issued.rglob("key.pem"), *folders.issued.rglob("secrets/*"), folders.authority / "kek.json"]
    assert len(private) == 10 + 9 + 1
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_a_roles_leaf_names_the_role_and_is_nobody_at_a_gate(folders, clock):
    deployed(folders, clock).renew_due()
    leaf = load_certificate(folders.leaf("datasets", "database/casemate_datakeys") / "cert.pem")
    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "casemate_datakeys"
    assert usages(leaf) == {ExtendedKeyUsageOID.CLIENT_AUTH}
    with pytest.raises(ConfigurationError, match="0 URI names"):
        load_pair(folders.leaf("datasets", "database/casemate_datakeys"))


def test_the_databases_leaf_proves_its_name_and_cannot_call(folders, clock):
    deployed(folders, clock).renew_due()
    leaf = load_certificate(folders.leaf("postgres", "server") / "cert.pem")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"postgres.{DOMAIN}"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == []
    assert usages(leaf) == {ExtendedKeyUsageOID.SERVER_AUTH}


def test_leaves_are_renewed_at_half_their_life_and_not_before(folders, clock):
    deployment = deployed(folders, clock)
    assert deployment.renew_due() == 10
    clock.time += LIFETIME / 2 - timedelta(minutes=2)
    assert deployment.renew_due() == 0
    clock.time += timedelta(minutes=2)
    assert deployment.renew_due() == 10


def test_an_authority_that_renews_nothing_is_not_healthy(folders, clock):
    deployment = deployed(folders, clock)
    deployment.renew_due()
    clock.time += LIFETIME / 2
    deployment.require_healthy()
    clock.time += LIFETIME / 4
    with pytest.raises(ConfigurationError, match=r"not renewed: auth/service"):
        deployment.require_healthy()
    deployment.renew_due()
    deployment.require_healthy()


def test_a_client_that_was_issued_once_is_renewed_with_the_others(folders, clock):
    deployment = deployed(folders, clock)
    folder = deployment.issue_client("acme", "caller")
    first = load_certificate(folder / "cert.pem").serial_number
    assert deployment.issue_client("acme", "caller") == folder
    assert load_certificate(folder / "cert.pem").serial_number == first
    clock.time += LIFETIME / 2
    deployed(folders, clock).renew_due()
    assert load_certificate(folder / "cert.pem").serial_number != first


def test_a_second_start_changes_nothing(folders, clock):
    deployed(folders, clock).renew_due()
    before = {path: path.read_bytes() for path in folders.issued.rglob("*") if path.is_file()}
    deployed(folders, clock).renew_due()
    assert {path: path.read_bytes() for path in folders.issued.rglob("*") if path.is_file()} == before


def test_a_first_start_that_was_cut_off_is_gone_on_with(folders, clock):
    deployed(folders, clock)
    kept = folders.secret("auth", "kek.json").read_bytes()
    for path in (folders.authority / "ca").iterdir():
        path.unlink()
    folders.secret("inference", "kek.json").unlink()
    deployed(folders, clock).renew_due()
    assert folders.secret("auth", "kek.json").read_bytes() == kept
    assert folders.secret("inference", "kek.json").exists()


@pytest.mark.parametrize(("owner", "name"), [("datasets", "kek.json"), ("auth", "casemate_auth")])
def test_a_secret_that_is_gone_is_named_and_not_made_anew(folders, clock, owner, name):
    deployed(folders, clock)
    secret = folders.secret(owner, name)
    kept = secret.read_bytes()
    secret.unlink()
    with pytest.raises(ConfigurationError, match=f"{name} is gone"):
        deployed(folders, clock)
    assert not secret.exists()
    secret.touch(mode=0o600)
    secret.write_bytes(kept)
    deployed(folders, clock)


def test_the_key_above_the_authority_is_not_made_anew(folders, clock):
    deployed(folders, clock)
    (folders.authority / "kek.json").unlink()
    with pytest.raises(ConfigurationError, match=r"kek\.json is gone"):
        deployed(folders, clock)


def test_only_the_process_that_keeps_may_make_the_authority(folders, clock):
    with pytest.raises(ConfigurationError, match="no authority"):
        deployed(folders, clock, create=False)
    assert not folders.issued.exists()
    deployed(folders, clock)
    deployed(folders, clock, create=False)


# --- another root, by another process than the one that keeps ---------------------------------------------------


def every_leaf(folders):
    return sorted(path.parent for path in folders.issued.rglob("cert.pem"))


def test_each_step_of_a_change_of_roots_reaches_whoever_keeps_without_a_restart(folders, clock):
    keeping = deployed(folders, clock)
    keeping.renew_due()
    first = load_certificate(folders.authority / "ca" / "cert.pem")
    serials = {leaf: load_certificate(leaf / "cert.pem").serial_number for leaf in every_leaf(folders)}

    deployed(folders, clock).prepare_root()  # as `pki root prepare --deployment` beside it
    assert keeping.renew_due() == 0
    assert {load_certificate(leaf / "cert.pem").serial_number for leaf in serials} == set(serials.values())
    for leaf in serials:
        assert len(x509.load_pem_x509_certificates((leaf / "ca.pem").read_bytes())) == 2

    deployed(folders, clock).switch_root()
    assert keeping.renew_due() == 10
    second = load_certificate(folders.authority / "ca" / "cert.pem")
    for leaf in serials:
        load_certificate(leaf / "cert.pem").verify_directly_issued_by(second)
        assert x509.load_pem_x509_certificates((leaf / "ca.pem").read_bytes()) == [second, first]

    deployed(folders, clock).finish_root()
    assert keeping.renew_due() == 0
    assert all(x509.load_pem_x509_certificates((leaf / "ca.pem").read_bytes()) == [second] for leaf in serials)
    assert keeping.root_step == "settled"


def test_a_step_that_somebody_would_be_left_behind_by_is_refused_and_names_them(folders, clock):
    keeping = deployed(folders, clock)
    keeping.renew_due()
    deployed(folders, clock).prepare_root()
    with pytest.raises(ConfigurationError, match=r"auth/service.* does not trust the next root yet"):
        deployed(folders, clock).switch_root()
    keeping.renew_due()
    deployed(folders, clock).switch_root()
    with pytest.raises(ConfigurationError, match=r"postgres/server.* has no leaf of the new root yet"):
        deployed(folders, clock).finish_root()
    keeping.renew_due()
    deployed(folders, clock).finish_root()


def test_a_look_in_the_middle_of_a_switch_changes_nothing_and_the_next_one_goes_on(folders, clock):
    keeping = deployed(folders, clock)
    keeping.renew_due()
    deployed(folders, clock).prepare_root()
    keeping.renew_due()
    ca = folders.authority / "ca"
    before, coming = (ca / "key.sealed").read_bytes(), (ca / "next" / "key.sealed").read_bytes()
    (ca / "key.sealed").write_bytes(coming)
    leaves = {leaf: (leaf / "cert.pem").read_bytes() for leaf in every_leaf(folders)}
    with pytest.raises(ConfigurationError, match="do not belong together"):
        keeping.renew_due()
    assert {leaf: (leaf / "cert.pem").read_bytes() for leaf in leaves} == leaves
    (ca / "key.sealed").write_bytes(before)
    deployed(folders, clock).switch_root()
    assert keeping.renew_due() == 10
