"""A pair is whole or it is not taken; the old one stays until the new one is good."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

import pytest

from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.metrics import Metrics
from tests.transport.house import DOMAIN, House, put

ALICE = f"spiffe://{DOMAIN}/t/acme/alice"


def test_a_good_pair_is_read_with_its_name_and_thumbprint(house, tmp_path):
    pair = load_pair(house.client(tmp_path / "alice"))
    assert pair.spiffe_id == ALICE
    assert pair.trust_domain == DOMAIN
    assert len(pair.thumbprint) == 43
    assert pair.private_key_pem.reveal().decode() not in repr(pair)


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem"])
def test_a_missing_file_is_named(house, tmp_path, name):
    directory = house.client(tmp_path / "alice")
    (directory / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        load_pair(directory)


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem"])
def test_a_file_that_is_not_pem_is_refused_without_quoting_it(house, tmp_path, name):
    directory = house.client(tmp_path / "alice")
    put(directory / name, b"canary-4711")
    with pytest.raises(ConfigurationError) as caught:
        load_pair(directory)
    assert "canary" not in str(caught.value)


def test_a_key_of_another_certificate_is_refused(house, tmp_path):
    directory, other = house.client(tmp_path / "alice"), house.client(tmp_path / "other")
    put(directory / "key.pem", (other / "key.pem").read_bytes())
    with pytest.raises(ConfigurationError, match="not the key"):
        load_pair(directory)


def test_a_leaf_of_another_authority_is_refused_even_if_that_bears_the_same_name(house, tmp_path):
    directory = House().client(tmp_path / "alice", roots_pem=house.roots_pem)
    with pytest.raises(ConfigurationError, match="not issued under a root"):
        load_pair(directory)


@pytest.mark.parametrize(
    ("uris", "names"),
    [((), 0), ((ALICE, ALICE + "2"), 2)],
    ids=["none", "two"],
)
def test_a_leaf_without_exactly_one_name_is_refused(house, tmp_path, uris, names):
    with pytest.raises(ConfigurationError, match=f"has {names} URI names"):
        load_pair(house.leaf(tmp_path / "alice", uris=uris))


@pytest.mark.parametrize("uri", ["https://casemate.internal/t/acme/alice", "spiffe://casemate.internal", "spiffe:///t"])
def test_a_name_that_is_no_spiffe_id_is_refused(house, tmp_path, uri):
    with pytest.raises(ConfigurationError, match="not a SPIFFE ID"):
        load_pair(house.leaf(tmp_path / "alice", uris=(uri,)))


def test_a_renewed_pair_replaces_the_old_one_and_is_told(house, client_directory):
    metrics = Metrics("test")
    source = CertificateSource(client_directory, metrics=metrics)
    told = []
    source.subscribe(told.append)
    before = source.current
    house.client(client_directory, lifetime=timedelta(hours=2))
    assert source.poll()
    assert source.current.thumbprint != before.thumbprint
    assert told == [source.current]
    assert metrics.value("certificate_not_after_seconds") == source.current.not_after.timestamp()
    assert not source.poll()


def test_an_ended_subscription_hears_nothing(house, client_directory):
    source = CertificateSource(client_directory)
    told = []
    source.subscribe(told.append)()
    house.client(client_directory)
    assert source.poll()
    assert told == []


def test_a_bad_new_pair_keeps_the_old_one_and_is_logged_and_counted_once(house, client_directory, caplog):
    metrics = Metrics("test")
    source = CertificateSource(client_directory, metrics=metrics)
    before = source.current
    House("stranger").client(client_directory, roots_pem=house.roots_pem)
    with caplog.at_level(logging.ERROR):
        for _ in range(4):
            assert not source.poll()
    assert source.current is before
    assert metrics.value("certificate_reload_failed_total") == 1
    assert [record.getMessage()[:23] for record in caplog.records] == ["new certificate refused"]
    house.client(client_directory)
    assert source.poll()


def test_a_half_written_pair_that_becomes_good_is_not_reported(house, tmp_path, client_directory, caplog):
    metrics = Metrics("test")
    source = CertificateSource(client_directory, metrics=metrics)
    new = house.client(tmp_path / "new")
    put(client_directory / "key.pem", (new / "key.pem").read_bytes())
    assert not source.poll()
    put(client_directory / "cert.pem", (new / "cert.pem").read_bytes())
    assert source.poll()
    assert metrics.value("certificate_reload_failed_total") == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_an_expired_new_pair_does_not_replace_a_good_one(house, client_directory):
    source = CertificateSource(client_directory)
    before = source.current
    house.client(client_directory, lifetime=timedelta(minutes=-1))
    assert not source.poll()
    assert source.current is before


def test_a_subscriber_that_fails_does_not_keep_the_others_from_hearing(house, client_directory, caplog):
    source = CertificateSource(client_directory)
    told = []

    def fail(_pair):
        raise RuntimeError("subscriber")

    source.subscribe(fail)
    source.subscribe(told.append)
    house.client(client_directory)
    assert source.poll()
    assert told == [source.current]


def test_the_thread_sees_a_renewal_by_itself(house, client_directory):
    source = CertificateSource(client_directory, poll=timedelta(milliseconds=20))
    seen = threading.Event()
    source.subscribe(lambda _pair: seen.set())
    source.start()
    try:
        house.client(client_directory)
        assert seen.wait(10)
    finally:
        source.close()
