"""Receipts of exports: read by nobody but their key, in one spelling."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from casemate.errors import InvalidRequest, SignatureInvalid
from casemate.signing import dsse
from casemate.signing.export_receipt import (
    EXPORT_RECEIPT_TYPE,
    ExportReceipt,
    VerifiedExportReceipt,
    numbers_sha256,
    sign_export_receipt,
    verify_export_receipt,
)
from casemate.signing.keys import SigningKey
from casemate.signing.shred_receipt import SHRED_RECEIPT_TYPE

LOG = "datasets.casemate.internal/log"
RECEIPT = ExportReceipt(
    log=LOG,
    log_index=4,
    caller="spiffe://casemate.internal/t/acme/trainer",
    client="acme-trainer",
    request="r",
    tenant="acme",
    dataset="digits",
    version=1,
    root="ab" * 32,
    manifest_sha256="cd" * 32,
    shard=0,
    shards=2,
    shuffle_seed=None,
    position=0,
    batches=2,
    batches_sha256=numbers_sha256([0, 2]),
    rows=5,
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    ended_at=datetime(2026, 1, 1, 0, 1, tzinfo=UTC),
)


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


def test_a_receipt_is_what_was_signed(key):
    signed = sign_export_receipt(RECEIPT, key)
    assert verify_export_receipt(signed, log=LOG, public_key=key.public).receipt == RECEIPT
    shuffled = replace(RECEIPT, shuffle_seed=7)
    assert verify_export_receipt(sign_export_receipt(shuffled, key), log=LOG, public_key=key.public).receipt == shuffled


def test_another_key_another_log_and_another_kind_of_receipt_are_refused(key):
    signed = sign_export_receipt(RECEIPT, key)
    with pytest.raises(SignatureInvalid):
        verify_export_receipt(signed, log=LOG, public_key=SigningKey.generate().public)
    with pytest.raises(SignatureInvalid):
        verify_export_receipt(signed, log="datasets.elsewhere/log", public_key=key.public)
    other = dsse.sign_envelope(SHRED_RECEIPT_TYPE, RECEIPT.to_payload(), key)
    with pytest.raises(InvalidRequest):
        verify_export_receipt(other, log=LOG, public_key=key.public)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "5"},
        {"rows": True},
        {"rows": -1},
        {"root": "AB" * 32},
        {"caller": 1},
        {"started_at": "yesterday"},
        {"more": 1},
        {"type": "another"},
        {"shuffle_seed": 2**53},
    ],
)
def test_a_receipt_in_any_other_spelling_is_refused(key, change):
    said = {**json.loads(RECEIPT.to_payload()), **change}
    payload = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(InvalidRequest):
        verify_export_receipt(dsse.sign_envelope(EXPORT_RECEIPT_TYPE, payload, key), log=LOG, public_key=key.public)
    assert ExportReceipt.parse(RECEIPT.to_payload()) == RECEIPT


def test_nobody_else_makes_a_verified_receipt():
    with pytest.raises(TypeError):
        VerifiedExportReceipt(receipt=RECEIPT, envelope=b"")
