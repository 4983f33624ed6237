"""Peers: what a certificate must say, and until when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from casemate.errors import Reason, Unauthenticated
from casemate.gate.core.peer import Peer, PeerVerifier
from casemate.gate.core.records import Revocation, RevocationKind
from casemate.gate.core.trust import TrustSnapshot
from tests.gate.world import DOMAIN, SetClock, auth_context, thumbprint_of
from tests.support.authority import OddProfile

CLOCK = SetClock()
NOTHING = TrustSnapshot()


@pytest.fixture
def verifier():
    return PeerVerifier(trust_domain=DOMAIN)


@pytest.fixture(scope="module")
def caller(leaf):
    return leaf("client", tenant="acme", name="trainer")


def refused(verifier, context, now=None, trust=NOTHING):
    with pytest.raises(Unauthenticated) as error:
        verifier.verify(context, now=now or CLOCK.now(), trust=trust)
    assert error.value.reason is Reason.PEER_REFUSED


def test_a_good_leaf_gives_its_one_name_and_thumbprint(verifier, caller):
    peer = verifier.verify(auth_context(caller), now=CLOCK.now(), trust=NOTHING)
    assert (peer.spiffe_id, peer.thumbprint) == (f"spiffe://{DOMAIN}/t/acme/trainer", thumbprint_of(caller))
    assert (peer.tls_version, peer.group) == ("TLSv1.3", "X25519MLKEM768")
    with pytest.raises(TypeError):
        Peer(**{name: getattr(peer, name) for name in peer.__slots__}, seal=object())


@pytest.mark.parametrize(
    "change",
    [
        {"ssl_tls_version": [b"TLSv1.2"]},
        {"ssl_tls_version": []},
        {"ssl_tls_version": [b"TLSv1.3", b"TLSv1.2"]},
        {"x509_pem_cert": []},
        {"x509_pem_cert": [b"nothing"]},
        {"x509_pem_cert": [b"one", b"two"]},
    ],
    ids=str,
)
def test_a_connection_that_is_not_ours_is_refused(verifier, caller, change):
    refused(verifier, auth_context(caller, **change))
    verifier.verify(auth_context(caller), now=CLOCK.now(), trust=NOTHING)


@pytest.mark.parametrize(
    "profile",
    [
        {"uris": ()},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/odd", f"spiffe://{DOMAIN}/t/globex/odd")},
        {"uris": ("spiffe://elsewhere.example/t/acme/odd",)},
        {"uris": (f"spiffe://{DOMAIN}.evil/t/acme/odd",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/../globex",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/%2e",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/o*",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/odd\x00",)},
        {"uris": (f"spiffe://{DOMAIN}/t/acme/odd?x",)},
        {"uris": (f"spiffe://{DOMAIN}/svc/a/b",)},
        {"uris": (f"spiffe://{DOMAIN}/other/acme",)},
        {"uris": (f"SPIFFE://{DOMAIN}/t/acme/odd",)},
        {"usages": ()},
        {"usages": (ExtendedKeyUsageOID.SERVER_AUTH,)},
        {"usages": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)},
        {"ca": True},
    ],
    ids=str,
)
def test_a_leaf_outside_the_profile_is_refused(verifier, leaf, profile):
    refused(verifier, auth_context(leaf("profile", profile=OddProfile(**profile))))
    sound = leaf("profile", profile=OddProfile())
    assert verifier.verify(auth_context(sound), now=CLOCK.now(), trust=NOTHING).spiffe_id.endswith("/t/acme/odd")


def test_dates_are_judged_on_every_call_also_for_a_leaf_that_was_read_before(verifier, caller):
    now = CLOCK.now()
    peer = verifier.verify(auth_context(caller), now=now, trust=NOTHING)
    verifier.verify(auth_context(caller), now=peer.not_after - timedelta(seconds=1), trust=NOTHING)
    refused(verifier, auth_context(caller), now=peer.not_after)
    refused(verifier, auth_context(caller), now=now - timedelta(hours=1))


def test_a_revocation_of_a_peer_ends_with_its_own_expiry(verifier, caller):
    now = CLOCK.now()
    revocation = Revocation(
        id="one",
        kind=RevocationKind.CERTIFICATE,
        value=thumbprint_of(caller),
        expires_at=now + timedelta(hours=1),
    )
    trust = TrustSnapshot.build(epoch="one", sequence=1, issuer="", revocations=[revocation])
    refused(verifier, auth_context(caller), now=now, trust=trust)
    verifier.verify(auth_context(caller), now=now + timedelta(hours=1), trust=trust)


def test_what_is_remembered_of_certificates_is_bounded(leaf, caller, monkeypatch):
    monkeypatch.setattr("casemate.gate.core.peer._CACHED_CERTIFICATES", 2)
    verifier = PeerVerifier(trust_domain=DOMAIN)
    for directory in (caller, leaf("client"), leaf("client"), leaf("client")):
        verifier.verify(auth_context(directory), now=CLOCK.now(), trust=NOTHING)
    assert len(verifier._read) == 2
