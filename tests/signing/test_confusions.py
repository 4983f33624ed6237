"""Signatures that are nearly the right ones: each beside the one that counts."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from casemate.errors import InvalidRequest, Reason, SignatureInvalid
from casemate.signing.dsse import pae, sign_envelope, verify_envelope
from casemate.signing.keys import SigningKey

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TYPE = "application/vnd.casemate.dataset-manifest.v1+json"


def resolver(*keys):
    return {key.public.key_id: key.public for key in keys}.get


def test_the_twin_of_an_ecdsa_signature_verifies_for_the_same_key_and_so_is_no_identity():
    key = SigningKey.generate("ecdsa-p256")
    envelope = json.loads(sign_envelope(TYPE, b"payload", key))
    r, s = decode_dss_signature(base64.b64decode(envelope["signatures"][0]["sig"]))
    twin = encode_dss_signature(r, P256_ORDER - s)
    envelope["signatures"][0]["sig"] = base64.b64encode(twin).decode()
    first = verify_envelope(sign_envelope(TYPE, b"payload", key), payload_type=TYPE, resolve=resolver(key))
    second = verify_envelope(json.dumps(envelope).encode(), payload_type=TYPE, resolve=resolver(key))
    assert first == second


@pytest.mark.parametrize("tail", [b"\0", b"0", b"\x30\x06\x02\x01\x01\x02\x01\x01"])
def test_bytes_behind_a_der_signature_are_refused(tail):
    key = SigningKey.generate("ecdsa-p256")
    signature = key.sign(b"m")
    key.public.verify(signature, b"m")
    with pytest.raises(SignatureInvalid):
        key.public.verify(signature + tail, b"m")


@pytest.mark.parametrize("mask", [hashes.SHA1(), hashes.SHA384(), hashes.SHA512()], ids=lambda mask: mask.name)  # noqa: S303  # to be refused
def test_a_pss_signature_with_another_mask_is_refused(mask):
    key = SigningKey.generate("rsa-pss-sha256")
    key.public.verify(key.sign(b"m"), b"m")
    with pytest.raises(SignatureInvalid):
        key.public.verify(key._key.sign(b"m", padding.PSS(padding.MGF1(mask), 32), hashes.SHA256()), b"m")


def test_key_ids_that_were_swapped_make_nobody_the_signer_of_what_another_signed():
    first, second = SigningKey.generate(), SigningKey.generate()
    envelopes = [json.loads(sign_envelope(TYPE, b"payload", key)) for key in (first, second)]
    for envelope, other in zip(envelopes, (second, first), strict=True):
        genuine = json.dumps(envelope).encode()
        assert verify_envelope(genuine, payload_type=TYPE, resolve=resolver(first, second))
        envelope["signatures"][0]["keyid"] = other.public.key_id
        with pytest.raises(SignatureInvalid):
            verify_envelope(json.dumps(envelope).encode(), payload_type=TYPE, resolve=resolver(first, second))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", b"b c"), ("a b", b"c")),
        (("a", b"1 b"), ("a 3 1", b"b")),
        (("", b"a"), ("a", b"")),
        (("ä", b""), ("a", b"\xcc\x88")),
        (("t", b"x"), ("t", b"x ")),
    ],
)
def test_no_two_types_and_payloads_are_signed_as_the_same_bytes(one, other):
    assert pae(*one) != pae(*other)
    key = SigningKey.generate()
    with pytest.raises(SignatureInvalid):
        key.public.verify(key.sign(pae(*one)), pae(*other))


@pytest.mark.parametrize(
    "name",
    ["dіgits", "digits\u200b", "ｄigits", "digits\u0301", "Digits", "digits ", "digits\n", "../digits", ""],  # noqa: RUF001  # look-alikes are what is tested
)
@pytest.mark.parametrize("field", ["dataset", "tenant"])
def test_a_name_that_looks_like_another_is_refused(manifest, field, name):
    assert replace(manifest, **{field: "digits"})
    with pytest.raises(InvalidRequest) as refused:
        replace(manifest, **{field: name})
    assert refused.value.reason is Reason.MANIFEST_INVALID
    assert refused.value.violations[0].field == field
