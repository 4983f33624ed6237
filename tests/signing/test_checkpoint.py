"""Checkpoints: a note signed by others, and what is refused."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, InvalidRequest, SignatureInvalid
from casemate.signing.checkpoint import (
    VerifiedCheckpoint,
    sign_checkpoint,
    sign_note,
    verification_key,
    verify_checkpoint,
    verify_note,
)
from casemate.signing.keys import PublicKey, SigningKey

ORIGIN = "datasets.casemate.internal/log"
ROOT = bytes(range(32))


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


def test_a_note_of_the_reference_implementation_verifies():
    """golang.org/x/mod/sumdb/note, the example of its documentation and tests."""
    vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    raw = base64.b64decode(vkey.split("+", 2)[2])[1:]
    public = PublicKey.admit(bytes.fromhex("302a300506032b6570032100") + raw)
    body = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    note = f"{body}\n— PeterNeumann {signature}\n"
    assert verification_key("PeterNeumann", public) == vkey
    assert verify_note(note, "PeterNeumann", public) == body
    with pytest.raises(SignatureInvalid):
        verify_note(note.replace("answer", "Answer"), "PeterNeumann", public)


@pytest.mark.parametrize("size", [0, 1, 2**63 - 1])
def test_a_checkpoint_gives_back_what_was_signed(key, size):
    text = sign_checkpoint(ORIGIN, size, ROOT, key)
    checkpoint = verify_checkpoint(text, ORIGIN, key.public)
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (ORIGIN, size, ROOT)
    assert (checkpoint.text, checkpoint.extensions) == (text, ())
    assert text.startswith(f"{ORIGIN}\n{size}\n{base64.b64encode(ROOT).decode()}\n\n— {ORIGIN} ")


def test_another_key_origin_size_or_root_is_refused(key):
    text = sign_checkpoint(ORIGIN, 7, ROOT, key)
    verify_checkpoint(text, ORIGIN, key.public)
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text, ORIGIN, SigningKey.generate().public)
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text, "other.log", key.public)
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text.replace("\n7\n", "\n8\n"), ORIGIN, key.public)
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text.replace("\nAAEC", "\nAAED"), ORIGIN, key.public)


def test_signatures_of_others_are_ignored_but_ours_must_hold(key):
    text = sign_checkpoint(ORIGIN, 7, ROOT, key)
    witness = sign_checkpoint(ORIGIN, 7, ROOT, SigningKey.generate()).splitlines(keepends=True)[-1]
    assert verify_checkpoint(text + witness, ORIGIN, key.public).size == 7
    broken = f"— {ORIGIN} {base64.b64encode(base64.b64decode(text.split()[-1])[:4] + bytes(64)).decode()}\n"
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text + broken, ORIGIN, key.public)


def test_extension_lines_are_signed_and_given(key):
    body = f"{ORIGIN}\n7\n{base64.b64encode(ROOT).decode()}\nepoch 3\n"
    text = sign_note(body, ORIGIN, key)
    assert verify_checkpoint(text, ORIGIN, key.public).extensions == ("epoch 3",)
    with pytest.raises(SignatureInvalid):
        verify_checkpoint(text.replace("epoch 3", "epoch 4"), ORIGIN, key.public)


@pytest.mark.parametrize(
    "body",
    [
        f"other\n7\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n07\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n-7\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n9223372036854775808\n{base64.b64encode(ROOT).decode()}\n",
        f"{ORIGIN}\n7\n{base64.b64encode(ROOT[1:]).decode()}\n",
        f"{ORIGIN}\n7\n!\n",
        f"{ORIGIN}\n7\n",
        f"{ORIGIN}\n7\n{base64.b64encode(ROOT).decode()}\n\nafter an empty line\n",
    ],
)
def test_a_signed_note_that_is_not_a_checkpoint_is_refused(key, body):
    with pytest.raises(InvalidRequest):
        verify_checkpoint(sign_note(body, ORIGIN, key), ORIGIN, key.public)


def test_what_is_not_a_note_is_refused(key):
    text = sign_checkpoint(ORIGIN, 7, ROOT, key)
    for wrong in (
        "",
        "\n\n",
        text[:-1],
        text.replace("\n\n", "\n"),
        text.replace("— ", "- "),
        text + "—\n",
        text + "— a b c\n",
        text + "— a AAAA\n",
        text + "— a !\n",
        text.replace(ORIGIN, ORIGIN + "\r"),
        "\ud800" + text,
        "a\n" * 40_000 + text,
        text + "— a AAAAAAA=\n" * 101,
    ):
        with pytest.raises(InvalidRequest):
            verify_checkpoint(wrong, ORIGIN, key.public)


@pytest.mark.parametrize(
    ("origin", "size", "root"),
    [("", 7, ROOT), ("a b", 7, ROOT), ("a+b", 7, ROOT), ("a\n", 7, ROOT), (ORIGIN, -1, ROOT), (ORIGIN, 7, b"")],
)
def test_what_a_checkpoint_cannot_hold_is_not_signed(key, origin, size, root):
    with pytest.raises(InvalidRequest):
        sign_checkpoint(origin, size, root, key)


def test_only_ed25519_keys_sign_notes(key):
    other = SigningKey.generate("ecdsa-p256")
    with pytest.raises(InvalidRequest):
        sign_checkpoint(ORIGIN, 7, ROOT, other)
    with pytest.raises(InvalidRequest):
        verify_checkpoint(sign_checkpoint(ORIGIN, 7, ROOT, key), ORIGIN, other.public)


def test_a_note_without_its_last_line_feed_or_under_a_bad_name_is_not_signed(key):
    for body, name in (("a", "name"), ("a\r\n", "name"), ("a\n", "na me")):
        with pytest.raises(InvalidRequest):
            sign_note(body, name, key)
    assert verify_note(sign_note("a\n", "name", key), "name", key.public) == "a\n"


def test_a_verified_checkpoint_cannot_be_made_by_others():
    with pytest.raises(TypeError):
        VerifiedCheckpoint(origin=ORIGIN, size=1, root=ROOT, extensions=(), text="")


@given(st.text() | st.text(alphabet="\n— aA+=/0").map(lambda text: f"{ORIGIN}\n7\n{text}\n\n— {text}\n"))
def test_arbitrary_text_raises_only_our_errors(text):
    with pytest.raises(CasemateError):
        verify_checkpoint(text, ORIGIN, SigningKey.generate().public)
