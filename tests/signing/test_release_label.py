"""Labels of versions: what an operator signs, and everything that is not that."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from casemate.errors import CasemateError, InvalidRequest, Reason
from casemate.signing import dsse
from casemate.signing.keys import SigningKey
from casemate.signing.release_label import (
    RELEASE_LABEL_TYPE,
    ReleaseLabel,
    VerifiedReleaseLabel,
    sign_release_label,
    verify_release_label,
)
from casemate.signing.signers import Signer

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = SigningKey.generate()
LABEL = ReleaseLabel(
    audience="auth.casemate.internal",
    tenant="acme",
    model="digits",
    label="stable",
    number=1,
    manifest_sha256=b"m" * 32,
    revision=7,
    expires_at=NOW + timedelta(hours=1),
)


def signer(key: SigningKey = KEY, **changes: object) -> Signer:
    fields = {
        "key_id": key.public.key_id,
        "tenant": "acme",
        "role": "operator",
        "public_key": key.public,
        "valid_from": NOW - timedelta(days=1),
        "valid_until": NOW + timedelta(days=1),
        **changes,
    }
    return Signer(**fields)


def verify(envelope: bytes, who: Signer | None = None, **changes: object) -> VerifiedReleaseLabel:
    arguments = {"audience": "auth.casemate.internal", "house": "casemate", "now": NOW, **changes}
    return verify_release_label(envelope, signer=who or signer(), **arguments)


def test_a_label_is_read_back_as_it_was_signed() -> None:
    verified = verify(sign_release_label(LABEL, KEY))
    assert (verified.label, verified.signer_key_id) == (LABEL, KEY.public.key_id)
    taken_away = replace(LABEL, number=0, manifest_sha256=b"")
    assert verify(sign_release_label(taken_away, KEY)).label == taken_away


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "publisher"},
        {"tenant": "globex"},
        {"valid_until": NOW - timedelta(hours=1)},
        {"compromised_since": NOW - timedelta(hours=1)},
    ],
    ids=str,
)
def test_only_an_operator_of_the_tenant_or_of_the_house_counts(changes: dict[str, object]) -> None:
    with pytest.raises(CasemateError) as caught:
        verify(sign_release_label(LABEL, KEY), signer(**changes))
    assert caught.value.reason is Reason.SIGNER_UNTRUSTED
    verify(sign_release_label(LABEL, KEY), signer(tenant="casemate"))


def test_another_keys_signature_is_none() -> None:
    with pytest.raises(CasemateError):
        verify(sign_release_label(LABEL, SigningKey.generate()))


@pytest.mark.parametrize(
    "changes", [{"audience": "auth.other.example"}, {"now": NOW + timedelta(hours=2)}], ids=["audience", "expired"]
)
def test_a_label_for_another_place_or_time_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        verify(sign_release_label(LABEL, KEY), signer(valid_until=NOW + timedelta(days=9)), **changes)
    assert caught.value.reason is Reason.MANIFEST_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"label": "1"},
        {"label": "Stable"},
        {"model": "../digits"},
        {"number": -1},
        {"number": True},
        {"revision": 0},
        {"manifest_sha256": b"short"},
        {"number": 0},
    ],
    ids=str,
)
def test_a_label_of_another_form_is_not_even_signed(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        replace(LABEL, **changes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"digits/1"', b'"digits/2"'),
        (b'"number":1', b'"number":2'),
        (b'"number":1', b'"number":0'),
        (b'"revision":7', b'"revision":7,"extra":1'),
        (b'"subject":[{', b'"subject":[{},{'),
        (b'"stable"', b"7"),
    ],
)
def test_a_statement_that_contradicts_itself_is_refused_though_its_signature_is_good(old: bytes, new: bytes) -> None:
    payload = LABEL.to_statement()
    assert old in payload
    with pytest.raises(InvalidRequest):
        verify(dsse.sign_envelope(RELEASE_LABEL_TYPE, payload.replace(old, new), KEY))
    verify(dsse.sign_envelope(RELEASE_LABEL_TYPE, payload, KEY))


def test_a_verified_label_is_made_by_its_verifier_alone() -> None:
    with pytest.raises(TypeError):
        VerifiedReleaseLabel(label=LABEL, envelope=b"", signer_key_id="", payload_sha256=b"")
