"""Receipts and cosignatures: what is written is read, and one thing changed is refused."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, DigestMismatch, InvalidRequest, SignatureInvalid
from casemate.signing import merkle
from casemate.signing.checkpoint import (
    ED25519_COSIGNATURE,
    note_key_hash,
    parse_verification_key,
    sign_checkpoint,
    sign_note,
    verification_key,
    verify_checkpoint,
    verify_note,
)
from casemate.signing.cosignature import VerifiedCosignature, cosign, verify_cosignature, with_cosignature
from casemate.signing.keys import SigningKey
from casemate.signing.log_proof import HEADER, LogProof, VerifiedEntry, verify_log_proof, write_log_proof

ORIGIN, WITNESS = "datasets.casemate.internal/log", "auth.casemate.internal/witness"
ENTRIES = [b'{"n":%d}' % number for number in range(7)]
LEAVES = [merkle.leaf_hash(entry) for entry in ENTRIES]
# Fixed, so that each case has one name in every process of a run.
LOG, COSIGNER = (SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)) for number in (1, 2))
NOTE = sign_checkpoint(ORIGIN, 7, merkle.root(LEAVES), LOG)
AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def receipt(**changes) -> str:
    fields = {"index": 3, "hashes": tuple(merkle.inclusion_proof(LEAVES, 3)), "checkpoint": NOTE}
    return LogProof(**{**fields, "extra": ENTRIES[3], **changes}).to_text()


def cosigned(note=NOTE, key=COSIGNER, name=WITNESS) -> str:
    return with_cosignature(note, cosign(verify_checkpoint(note, ORIGIN, LOG.public), name=name, key=key, at=AT))


@pytest.mark.parametrize("index", range(7))
def test_a_receipt_proves_the_entry_that_it_holds(index):
    written = write_log_proof(index, ENTRIES[index], merkle.inclusion_proof(LEAVES, index), NOTE)
    found = verify_log_proof(written, origin=ORIGIN, public_key=LOG.public)
    assert (found.index, found.entry, found.checkpoint.size) == (index, ENTRIES[index], 7)
    assert LogProof.parse(written).to_text() == written


def test_a_receipt_is_written_as_the_specification_says():
    lines = receipt().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == "extra " + base64.b64encode(ENTRIES[3]).decode()
    assert lines[2] == "index 3"
    assert [base64.b64decode(line) for line in lines[3:6]] == merkle.inclusion_proof(LEAVES, 3)
    assert lines[6] == ""
    assert "\n".join(lines[7:]) == NOTE


def test_a_receipt_without_its_entry_takes_the_entry_from_elsewhere():
    text = receipt(extra=None)
    assert verify_log_proof(text, origin=ORIGIN, public_key=LOG.public, entry=ENTRIES[3]).index == 3
    with pytest.raises(InvalidRequest):
        verify_log_proof(text, origin=ORIGIN, public_key=LOG.public)
    with pytest.raises(DigestMismatch):
        verify_log_proof(text, origin=ORIGIN, public_key=LOG.public, entry=ENTRIES[4])


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"extra": ENTRIES[4]}, DigestMismatch),
        ({"index": 4}, DigestMismatch),
        ({"index": 7}, DigestMismatch),
        ({"hashes": ()}, DigestMismatch),
        ({"hashes": (LEAVES[0],) * 3}, DigestMismatch),
        ({"checkpoint": sign_checkpoint(ORIGIN, 6, merkle.root(LEAVES[:6]), LOG)}, DigestMismatch),
        ({"checkpoint": sign_checkpoint(ORIGIN, 7, merkle.root(LEAVES), COSIGNER)}, SignatureInvalid),
        ({"checkpoint": sign_checkpoint("other", 7, merkle.root(LEAVES), LOG)}, SignatureInvalid),
    ],
    ids=str,
)
def test_a_receipt_that_is_wrong_in_one_thing_is_refused(changes, refusal):
    assert verify_log_proof(receipt(), origin=ORIGIN, public_key=LOG.public)
    with pytest.raises(refusal):
        verify_log_proof(receipt(**changes), origin=ORIGIN, public_key=LOG.public)


@pytest.mark.parametrize(
    "text",
    [
        "",
        NOTE,
        receipt().replace("@v1", "@v2"),
        receipt().replace("index 3", "index 03"),
        receipt().replace("index 3", "index -3"),
        receipt().replace("index 3\n", ""),
        receipt().replace("\n\n", "\n", 1),
        receipt(hashes=(b"short",)),
        receipt(hashes=(LEAVES[0],) * 64),
        f"{HEADER}\n\n{NOTE}",
        f"{HEADER}\nextra !\nindex 3\n\n{NOTE}",
        f"{HEADER}\nextra eA\nindex 3\n\n{NOTE}",
    ],
)
def test_what_is_not_a_receipt_is_refused(text):
    with pytest.raises(InvalidRequest):
        LogProof.parse(text)


@given(text=st.text(max_size=200) | st.text(max_size=100).map(lambda tail: f"{HEADER}\nindex 1\n{tail}"))
def test_arbitrary_text_raises_only_our_errors(text):
    with pytest.raises(CasemateError):
        verify_log_proof(text, origin=ORIGIN, public_key=LOG.public)


def test_a_cosignature_says_who_saw_the_checkpoint_when():
    checkpoint = verify_checkpoint(cosigned(), ORIGIN, LOG.public)
    found = verify_cosignature(checkpoint, name=WITNESS, public_key=COSIGNER.public)
    assert (found.name, found.at, found.checkpoint.size) == (WITNESS, AT, 7)


def test_a_cosignature_signs_what_the_specification_says():
    body = NOTE.split("\n\n")[0] + "\n"
    line = cosigned().split("\n")[-2]
    raw = base64.b64decode(line.split(" ")[2])
    assert raw[:4] == note_key_hash(WITNESS, COSIGNER.public, ED25519_COSIGNATURE)
    assert int.from_bytes(raw[4:12], "big") == int(AT.timestamp())
    COSIGNER.public.verify(raw[12:], f"cosignature/v1\ntime {int(AT.timestamp())}\n{body}".encode())


def test_a_receipt_carries_its_cosignatures():
    found = verify_log_proof(receipt(checkpoint=cosigned()), origin=ORIGIN, public_key=LOG.public)
    assert verify_cosignature(found.checkpoint, name=WITNESS, public_key=COSIGNER.public).at == AT


@pytest.mark.parametrize(
    "note",
    [
        NOTE,
        cosigned(key=SigningKey(Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32))),
        cosigned(name="another/witness"),
        # Signed as a note by the witness's key: another type, so another statement.
        with_cosignature(NOTE, sign_note(NOTE.split("\n\n")[0] + "\n", WITNESS, COSIGNER).rpartition("\n\n")[2]),
    ],
    ids=["none", "another key", "another name", "a note's signature"],
)
def test_a_checkpoint_that_the_witness_did_not_cosign_is_refused(note):
    checkpoint = verify_checkpoint(note, ORIGIN, LOG.public)
    with pytest.raises(SignatureInvalid):
        verify_cosignature(checkpoint, name=WITNESS, public_key=COSIGNER.public)


@pytest.mark.parametrize("change", [(4, 1), (11, 1), (12, 1), (75, 1)])
def test_a_cosignature_with_a_changed_time_or_signature_is_refused(change):
    head, _, line = cosigned().rpartition("— ")
    name, _, encoded = line.rstrip("\n").partition(" ")
    raw = bytearray(base64.b64decode(encoded))
    raw[change[0]] ^= change[1]
    checkpoint = verify_checkpoint(f"{head}— {name} {base64.b64encode(raw).decode()}\n", ORIGIN, LOG.public)
    with pytest.raises(SignatureInvalid):
        verify_cosignature(checkpoint, name=WITNESS, public_key=COSIGNER.public)


def test_a_cosignature_is_not_the_logs_own_signature():
    body, _, _ = NOTE.partition("\n\n")
    lone = f"{body}\n\n" + cosigned().rpartition("\n— ")[2].join(["— ", ""])
    with pytest.raises(SignatureInvalid):
        verify_note(lone, WITNESS, COSIGNER.public)


@pytest.mark.parametrize("line", ["", "— a b", "x\n", "— a YQ==\n— b YQ==\n", "\n\n— x AAAAAAAA\n"])
def test_only_one_signature_line_is_added(line):
    with pytest.raises(InvalidRequest):
        verify_checkpoint(with_cosignature(NOTE, line), ORIGIN, LOG.public)


def test_a_verification_key_is_read_as_it_was_written_and_for_its_kind_alone():
    text = verification_key(WITNESS, COSIGNER.public, ED25519_COSIGNATURE)
    assert parse_verification_key(text + "\n", ED25519_COSIGNATURE) == (WITNESS, COSIGNER.public)
    for wrong in (text.replace("+", "-"), text.replace("auth", "Auth"), "", "a+b", f"{text}A"):
        with pytest.raises(InvalidRequest):
            parse_verification_key(wrong, ED25519_COSIGNATURE)
    with pytest.raises(InvalidRequest):
        parse_verification_key(text)


def test_proof_types_are_made_by_their_verifier_only():
    checkpoint = verify_checkpoint(NOTE, ORIGIN, LOG.public)
    with pytest.raises(TypeError):
        VerifiedEntry(index=0, entry=b"", checkpoint=checkpoint)
    with pytest.raises(TypeError):
        VerifiedCosignature(checkpoint=checkpoint, name=WITNESS, at=AT)
