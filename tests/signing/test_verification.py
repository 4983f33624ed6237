"""From an envelope to a proof type: who signed, for whom, and when."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta

import pytest

from casemate.errors import InvalidRequest, PermissionDenied, Reason, SignatureInvalid
from casemate.signing.dsse import sign_envelope
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.signing.statements import (
    DATASET_MANIFEST_TYPE,
    VerifiedManifest,
    VerifiedModelManifest,
    VerifiedRegistration,
    registration_statement,
    sign_dataset_manifest,
    sign_model_manifest,
    sign_registration,
    verify_dataset_manifest,
    verify_model_manifest,
    verify_registration,
)
from tests.signing.desks import NOW, desk

SECOND = timedelta(seconds=1)


def verify(envelope: bytes, who, **changes: object) -> VerifiedManifest:
    expected = {"audience": "datasets", "tenant": "acme", "dataset": "digits", "resolve": who.resolve, "now": NOW}
    return verify_dataset_manifest(envelope, **{**expected, **changes})


def verify_model(envelope: bytes, who, **changes: object) -> VerifiedModelManifest:
    expected = {"audience": "inference", "tenant": "acme", "model": "digits", "resolve": who.resolve, "now": NOW}
    return verify_model_manifest(envelope, **{**expected, **changes})


def refused_field(call, *arguments, **keywords) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        call(*arguments, **keywords)
    assert refusal.value.reason is Reason.MANIFEST_INVALID
    return refusal.value.violations[0].field


def refused_signer(call, *arguments, **keywords) -> None:
    with pytest.raises(PermissionDenied) as refusal:
        call(*arguments, **keywords)
    assert refusal.value.reason is Reason.SIGNER_UNTRUSTED


def test_a_manifest_that_its_supplier_signed_is_proven(manifest, supplier):
    envelope = sign_dataset_manifest(manifest, supplier.key)
    proof = verify(envelope, supplier)
    assert proof.manifest == manifest
    assert proof.envelope == envelope
    assert proof.signer_key_id == supplier.signer.key_id
    assert proof.payload_sha256 == hashlib.sha256(manifest.to_statement()).digest()


def test_a_model_that_its_publisher_signed_is_proven(model_manifest, publisher):
    envelope = sign_model_manifest(model_manifest, publisher.key)
    proof = verify_model(envelope, publisher)
    assert (proof.manifest, proof.signer_key_id) == (model_manifest, publisher.signer.key_id)
    assert proof.payload_sha256 == hashlib.sha256(model_manifest.to_statement()).digest()


@pytest.mark.parametrize("field", ["audience", "tenant", "dataset"])
def test_a_manifest_sent_elsewhere_is_refused(manifest, supplier, field):
    """The signer is right, and it is the manifest that names another place."""
    other = replace(manifest, **{field: "other"})
    assert refused_field(verify, sign_dataset_manifest(other, supplier.key), supplier) == field


@pytest.mark.parametrize("field", ["audience", "tenant", "model"])
def test_a_model_sent_elsewhere_is_refused(model_manifest, publisher, field):
    other = replace(model_manifest, **{field: "other"})
    assert refused_field(verify_model, sign_model_manifest(other, publisher.key), publisher) == field


def test_a_manifest_is_refused_from_its_expiry_on(manifest, model_manifest, supplier, publisher):
    envelope = sign_dataset_manifest(manifest, supplier.key)
    verify(envelope, supplier, now=manifest.expires_at - SECOND)
    assert refused_field(verify, envelope, supplier, now=manifest.expires_at) == "expires_at"
    with pytest.raises(InvalidRequest) as caught:
        verify(envelope, supplier, now=manifest.expires_at + timedelta(hours=3))
    said = caught.value.violations[0].description
    for moment in (manifest.expires_at, manifest.expires_at + timedelta(hours=3)):
        assert f"{moment:%Y-%m-%dT%H:%M}" in said, "whoever's clock is wrong sees by how much"
    envelope = sign_model_manifest(model_manifest, publisher.key)
    verify_model(envelope, publisher, now=model_manifest.expires_at - SECOND)
    assert refused_field(verify_model, envelope, publisher, now=model_manifest.expires_at) == "expires_at"


def test_a_changed_manifest_is_refused(manifest, supplier):
    envelope = sign_dataset_manifest(manifest, supplier.key)
    middle = envelope.index(b'"payload":"') + 40
    changed = envelope[:middle] + (b"A" if envelope[middle : middle + 1] != b"A" else b"B") + envelope[middle + 1 :]
    with pytest.raises(SignatureInvalid):
        verify(changed, supplier)


def test_a_manifest_under_another_type_is_refused(manifest, model_manifest, supplier, publisher):
    assert refused_field(verify, sign_model_manifest(model_manifest, supplier.key), supplier) == "envelope.payloadType"
    assert refused_field(verify_model, sign_dataset_manifest(manifest, publisher.key), publisher)
    crossed = sign_envelope(DATASET_MANIFEST_TYPE, model_manifest.to_statement(), supplier.key)
    assert refused_field(verify, crossed, supplier) == "predicateType"


def test_an_unknown_signer_is_refused(manifest, supplier):
    refused_signer(verify, sign_dataset_manifest(manifest, SigningKey.generate()), supplier)


@pytest.mark.parametrize("change", [{"tenant": "other"}, {"role": "publisher"}])
def test_a_signer_of_another_tenant_or_role_is_refused(manifest, change):
    right = desk("supplier")
    verify(sign_dataset_manifest(manifest, right.key), right)
    wrong = desk(**{"role": "supplier", **change})
    refused_signer(verify, sign_dataset_manifest(manifest, wrong.key), wrong)


def test_a_supplier_cannot_sign_a_model(model_manifest, supplier):
    refused_signer(verify_model, sign_model_manifest(model_manifest, supplier.key), supplier)


def test_an_untrusted_signers_payload_is_not_read(supplier):
    """What is wrong inside is told only to a signer who counts."""
    stranger = desk("publisher")
    refused_signer(verify, sign_envelope(DATASET_MANIFEST_TYPE, b"rubbish", stranger.key), stranger)
    assert refused_field(verify, sign_envelope(DATASET_MANIFEST_TYPE, b"rubbish", supplier.key), supplier)


def test_a_signature_counts_within_the_window_and_until_the_compromise():
    signer = desk("supplier", compromised_since=NOW + timedelta(hours=1)).signer
    signer.judge(signer.valid_from)
    signer.judge(NOW + timedelta(hours=1) - SECOND)
    refused_signer(signer.judge, NOW + timedelta(hours=1))
    refused_signer(signer.judge, signer.valid_from - SECOND)
    healthy = replace(signer, compromised_since=None)
    healthy.judge(healthy.valid_until)
    refused_signer(healthy.judge, healthy.valid_until + SECOND)


def test_a_revoked_signers_manifest_is_refused(manifest):
    revoked = desk("supplier", compromised_since=NOW)
    envelope = sign_dataset_manifest(manifest, revoked.key)
    refused_signer(verify, envelope, revoked)
    verify(envelope, revoked, now=NOW - SECOND)


def test_a_signer_whose_id_is_not_its_keys_or_whose_times_have_no_zone_cannot_be_made(supplier):
    signer = supplier.signer
    for change in ({"key_id": "0" * 64}, {"role": "admin"}, {"valid_until": NOW.replace(tzinfo=None)}):
        with pytest.raises(InvalidRequest):
            replace(signer, **change)
    assert replace(signer, tenant="other").key_id == signer.key_id


def test_a_resolver_that_answers_with_another_key_is_judged_by_that_key(manifest, supplier):
    impostor = desk("supplier")
    envelope = sign_dataset_manifest(manifest, impostor.key)
    with pytest.raises(SignatureInvalid):
        verify(envelope, supplier, resolve=lambda _hint: supplier.signer)
    proof = verify(
        envelope.replace(impostor.signer.key_id.encode(), b"?"), supplier, resolve=lambda _hint: impostor.signer
    )
    assert proof.signer_key_id == impostor.signer.key_id


def test_proof_types_are_made_by_their_verifier_only(manifest, model_manifest, supplier):
    proof = verify(sign_dataset_manifest(manifest, supplier.key), supplier)
    values = {"envelope": b"", "signer_key_id": "", "payload_sha256": b""}
    with pytest.raises(TypeError):
        VerifiedManifest(manifest=manifest, **values)
    with pytest.raises(TypeError):
        VerifiedModelManifest(manifest=model_manifest, **values)
    with pytest.raises(TypeError):
        VerifiedRegistration(tenant="acme", role="supplier", public_key=supplier.key.public)
    with pytest.raises((TypeError, ValueError)):
        replace(proof, signer_key_id="other")


REGISTRATION = {"tenant": "acme", "role": "supplier", "audience": "auth"}


def test_a_registration_is_proven_by_the_key_itself():
    key = SigningKey.generate()
    proof = sign_registration("acme", "supplier", key, "auth")
    verified = verify_registration(proof, public_key=key.public, **REGISTRATION)
    assert isinstance(verified, Signer) is False
    assert (verified.tenant, verified.role, verified.public_key) == ("acme", "supplier", key.public)
    assert registration_statement("acme", "supplier", key.public, "auth") in _payload(proof)


def _payload(envelope: bytes) -> bytes:
    import base64
    import json

    return base64.b64decode(json.loads(envelope)["payload"])


@pytest.mark.parametrize("change", [{"tenant": "other"}, {"role": "publisher"}, {"audience": "datasets"}])
def test_a_registration_about_something_else_is_refused(change):
    key = SigningKey.generate()
    proof = sign_registration("acme", "supplier", key, "auth")
    with pytest.raises(SignatureInvalid):
        verify_registration(proof, public_key=key.public, **{**REGISTRATION, **change})


def test_somebody_elses_key_cannot_be_registered():
    """Signed by the thief, or copied from the owner's own registration elsewhere."""
    owner, thief = SigningKey.generate(), SigningKey.generate()
    statement = registration_statement("acme", "supplier", owner.public, "auth")
    kind = "application/vnd.casemate.signer-registration.v1+json"
    verify_registration(sign_envelope(kind, statement, owner), public_key=owner.public, **REGISTRATION)
    with pytest.raises(SignatureInvalid):
        verify_registration(sign_envelope(kind, statement, thief), public_key=owner.public, **REGISTRATION)
    elsewhere = sign_registration("theirs", "supplier", owner, "auth")
    with pytest.raises(SignatureInvalid):
        verify_registration(elsewhere, public_key=owner.public, **REGISTRATION)


def test_a_manifest_is_not_a_proof_of_possession(manifest, supplier):
    envelope = sign_dataset_manifest(manifest, supplier.key)
    with pytest.raises(InvalidRequest):
        verify_registration(envelope, public_key=supplier.key.public, **REGISTRATION)


@pytest.mark.parametrize(
    ("tenant", "role", "audience"), [("A", "supplier", "auth"), ("a", "x", "auth"), ("a", "supplier", "")]
)
def test_a_registration_with_a_wrong_name_is_refused(tenant, role, audience):
    with pytest.raises(InvalidRequest):
        registration_statement(tenant, role, SigningKey.generate().public, audience)
