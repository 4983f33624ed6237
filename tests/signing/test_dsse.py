"""Envelopes: the specification's own vector, and what is refused."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, InvalidRequest, PermissionDenied, Reason, SignatureInvalid
from casemate.signing import dsse
from casemate.signing.dsse import pae, sign_envelope, verify_envelope
from casemate.signing.keys import SigningKey

KIND = "application/vnd.casemate.test+json"
SPEC_TYPE = "http://example.com/HelloWorld"
SPEC_D = 97358161215184420915383655311931858321456579547487070936769975997791359926199
SPEC_SIGNATURE = "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


def parts(envelope: bytes) -> dict:
    return json.loads(envelope)


def again(members: dict) -> bytes:
    return json.dumps(members).encode()


def known(*keys: SigningKey):
    table = {key.public.key_id: key.public for key in keys}
    return table.get


def test_the_encoding_and_the_signature_are_those_of_the_specification():
    """DSSE protocol.md: P-256, RFC 6979 nonces, signature as raw r and s."""
    private = ec.derive_private_key(SPEC_D, ec.SECP256R1())
    message = pae(SPEC_TYPE, b"hello world")
    assert message == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    raw = base64.b64decode(SPEC_SIGNATURE)
    der = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    assert private.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True)) == der
    key = SigningKey(private)
    envelope = {
        "payload": base64.b64encode(b"hello world").decode(),
        "payloadType": SPEC_TYPE,
        "signatures": [{"sig": base64.b64encode(der).decode()}],
    }
    verified = verify_envelope(again(envelope), payload_type=SPEC_TYPE, resolve=lambda _hint: key.public)
    assert verified.payload == b"hello world"


def test_an_envelope_gives_back_its_payload_and_the_key_that_signed(key):
    verified = verify_envelope(sign_envelope(KIND, b"{}", key), payload_type=KIND, resolve=known(key))
    assert (verified.payload, verified.key_id) == (b"{}", key.public.key_id)


def test_the_key_id_of_the_result_is_that_of_the_key_and_not_of_the_envelope(key):
    members = parts(sign_envelope(KIND, b"{}", key))
    members["signatures"][0]["keyid"] = "somebody else"
    verified = verify_envelope(again(members), payload_type=KIND, resolve=lambda _hint: key.public)
    assert verified.key_id == key.public.key_id


def test_url_safe_base64_is_taken_and_mixed_or_stray_spellings_are_not(key):
    payload = bytes([0xFB, 0xEF, 0xFF]) * 5 + b"x"
    members = parts(sign_envelope(KIND, payload, key))
    standard = members["payload"]
    members["payload"] = base64.urlsafe_b64encode(payload).decode()
    members["signatures"][0]["sig"] = members["signatures"][0]["sig"].translate(str.maketrans("+/", "-_"))
    assert members["payload"] != standard
    assert verify_envelope(again(members), payload_type=KIND, resolve=known(key)).payload == payload
    for wrong in (standard.rstrip("="), standard + "\n", standard[:-3] + "B==", " " + standard, "é", 7, None):
        members["payload"] = wrong
        with pytest.raises(InvalidRequest) as refusal:
            verify_envelope(again(members), payload_type=KIND, resolve=known(key))
        assert refusal.value.reason is Reason.MANIFEST_INVALID


def test_a_changed_payload_signature_or_type_is_refused(key):
    members = parts(sign_envelope(KIND, b"12", key))
    verify_envelope(again(members), payload_type=KIND, resolve=known(key))
    with pytest.raises(SignatureInvalid):
        verify_envelope(again({**members, "payload": "MTM="}), payload_type=KIND, resolve=known(key))
    with pytest.raises(InvalidRequest):
        verify_envelope(again(members), payload_type=KIND + "2", resolve=known(key))
    # The signature covers the type: saying another one is not enough.
    with pytest.raises(SignatureInvalid):
        verify_envelope(again({**members, "payloadType": "other"}), payload_type="other", resolve=known(key))


def test_an_envelope_without_signatures_is_refused(key):
    members = parts(sign_envelope(KIND, b"12", key))
    with pytest.raises(SignatureInvalid):
        verify_envelope(again({**members, "signatures": []}), payload_type=KIND, resolve=known(key))


def test_an_unknown_key_is_refused_as_untrusted(key):
    with pytest.raises(PermissionDenied) as refusal:
        verify_envelope(sign_envelope(KIND, b"12", SigningKey.generate()), payload_type=KIND, resolve=known(key))
    assert refusal.value.reason is Reason.SIGNER_UNTRUSTED


def test_another_keys_signature_under_a_known_key_id_is_refused(key):
    members = parts(sign_envelope(KIND, b"12", SigningKey.generate()))
    members["signatures"][0]["keyid"] = key.public.key_id
    with pytest.raises(SignatureInvalid):
        verify_envelope(again(members), payload_type=KIND, resolve=known(key))


def test_one_good_signature_among_unknown_and_bad_ones_is_enough_but_only_among_eight(key):
    stranger = parts(sign_envelope(KIND, b"12", SigningKey.generate()))["signatures"]
    members = parts(sign_envelope(KIND, b"12", key))
    good = members["signatures"]
    bad = [{"keyid": key.public.key_id, "sig": base64.b64encode(bytes(64)).decode()}]
    members["signatures"] = stranger + bad + good
    assert verify_envelope(again(members), payload_type=KIND, resolve=known(key)).key_id == key.public.key_id
    members["signatures"] = good * 9
    with pytest.raises(InvalidRequest):
        verify_envelope(again(members), payload_type=KIND, resolve=known(key))


def test_unknown_fields_are_ignored_but_a_repeated_one_is_refused(key):
    envelope = sign_envelope(KIND, b"12", key)
    more = again({**parts(envelope), "note": [1]})
    assert verify_envelope(more, payload_type=KIND, resolve=known(key)).payload == b"12"
    with pytest.raises(InvalidRequest):
        verify_envelope(envelope[:-1] + b',"payload":"MTI="}', payload_type=KIND, resolve=known(key))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a":' * 20 + "1" + "}" * 20,
        "{} {}",
        '{"a":NaN}',
        '{"a":"\\ud800"}',
        '{"\\ud800":1}',
        '{"a":' + "9" * 5000 + "}",
    ],
    ids=["empty", "list", "null", "deep", "deep objects", "deeper than 16", "two", "nan", "lone", "lone name", "long"],
)
def test_what_is_not_unambiguous_json_is_refused(text, key):
    with pytest.raises(InvalidRequest) as refusal:
        verify_envelope(text.encode(), payload_type=KIND, resolve=known(key))
    assert refusal.value.reason is Reason.MANIFEST_INVALID


def test_more_values_than_an_envelope_needs_are_refused_before_they_are_made(key):
    members = parts(sign_envelope(KIND, b"12", key))
    verify_envelope(again({**members, "x": [0] * 200}), payload_type=KIND, resolve=known(key))
    with pytest.raises(InvalidRequest):
        verify_envelope(again({**members, "x": [0] * 300}), payload_type=KIND, resolve=known(key))


def test_utf16_is_refused(key):
    envelope = sign_envelope(KIND, b"12", key)
    with pytest.raises(InvalidRequest):
        verify_envelope(envelope.decode().encode("utf-16"), payload_type=KIND, resolve=known(key))


def test_an_envelope_above_the_limit_is_neither_made_nor_read(key):
    most = b"x" * (dsse.MAXIMUM_ENVELOPE_BYTES * 3 // 4 - 600)
    envelope = sign_envelope(KIND, most, key)
    verify_envelope(envelope, payload_type=KIND, resolve=known(key))
    with pytest.raises(InvalidRequest):
        sign_envelope(KIND, most + b"x" * 600, key)
    padded = envelope + b" " * (dsse.MAXIMUM_ENVELOPE_BYTES + 1 - len(envelope))
    with pytest.raises(InvalidRequest):
        verify_envelope(padded, payload_type=KIND, resolve=known(key))


def test_a_verified_payload_cannot_be_made_by_others():
    with pytest.raises(TypeError):
        dsse.VerifiedPayload(payload=b"", key_id="")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_our_errors(data):
    with pytest.raises(CasemateError):
        verify_envelope(data, payload_type=KIND, resolve=lambda _hint: None)


@given(
    json_values, json_values, st.lists(json_values | st.fixed_dictionaries({"keyid": json_values, "sig": json_values}))
)
def test_arbitrary_members_raise_only_our_errors(payload, signatures, entries):
    for listed in (signatures, entries):
        members = {"payload": payload, "payloadType": KIND, "signatures": listed}
        with pytest.raises(CasemateError):
            verify_envelope(json.dumps(members).encode(), payload_type=KIND, resolve=lambda _hint: None)


@given(st.binary(max_size=300), st.data())
def test_any_flipped_bit_is_refused_or_changes_nothing(payload, data):
    key = SigningKey.generate()
    envelope = bytearray(sign_envelope(KIND, payload, key))
    position = data.draw(st.integers(0, len(envelope) - 1))
    envelope[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        verified = verify_envelope(bytes(envelope), payload_type=KIND, resolve=lambda _hint: key.public)
    except CasemateError:
        return
    assert verified.payload == payload  # the bit was in the key id, which is a hint, or in an unread name
