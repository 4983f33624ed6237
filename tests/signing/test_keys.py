"""Keys: which are admitted, and what they verify."""

from __future__ import annotations

import contextlib
import hashlib
import math
import random

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, InvalidRequest, Reason, SignatureInvalid
from casemate.signing.admission import LOW_ORDER_ED25519
from casemate.signing.keys import ALGORITHMS, PublicKey, SigningKey, parse_algorithm
from tests.signing import vectors

ED25519_PREFIX = bytes.fromhex("302a300506032b6570032100")
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def spki(key) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def rsa_spki(n: int, e: int = 65537) -> bytes:
    """Written by hand, because a library need not agree to make a bad key."""

    def tlv(tag: int, body: bytes) -> bytes:
        size = len(body).to_bytes((len(body).bit_length() + 7) // 8 or 1, "big")
        length = size if len(body) < 128 else bytes([0x80 | len(size)]) + size
        return bytes([tag]) + length + body

    def integer(value: int) -> bytes:
        return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))

    key = tlv(0x30, integer(n) + integer(e))
    return tlv(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + tlv(3, b"\0" + key))


@pytest.fixture(scope="module")
def rsa_key() -> SigningKey:
    return SigningKey.generate("rsa-pss-sha256")


def edwards_add(a, b):
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P,
    )


def edwards_x(y: int) -> int:
    """Either x of the point: RFC 8032 §5.1.3."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x


def test_the_refused_points_are_the_whole_8_torsion_in_all_its_encodings():
    """Recomputed from the curve equation, not from a list."""
    assert len(LOW_ORDER_ED25519) == 14
    points = set()
    for encoding in LOW_ORDER_ED25519:
        y = (int.from_bytes(encoding, "little") & (2**255 - 1)) % P
        point = (edwards_x(y), y)
        doubled = point
        for _ in range(3):
            doubled = edwards_add(doubled, doubled)
        assert doubled == (0, 1)
        points |= {point, (-point[0] % P, y)}
    assert len(points) == 8
    # Every y below 2^255 that is one of theirs, with both signs.
    ys = {y for _, y in points} | {y + P for _, y in points if y + P < 2**255}
    assert {(y | s << 255).to_bytes(32, "little") for y in ys for s in (0, 1)} == LOW_ORDER_ED25519


@pytest.mark.parametrize("encoding", sorted(LOW_ORDER_ED25519), ids=bytes.hex)
def test_a_low_order_key_is_refused(encoding):
    with pytest.raises(InvalidRequest) as refusal:
        PublicKey.admit(ED25519_PREFIX + encoding)
    assert refusal.value.reason is Reason.WEAK_KEY


def test_a_low_order_key_would_verify_a_constant_for_any_message():
    """Why they are refused: the library itself takes the forgery."""
    identity = b"\1" + bytes(31)
    for number in range(16):
        Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"message %d" % number)


@pytest.mark.parametrize("y", [P + 2, P + 3, 2**255 - 1])
def test_an_unreduced_ed25519_point_is_refused(y):
    with pytest.raises(InvalidRequest):
        PublicKey.admit(ED25519_PREFIX + y.to_bytes(32, "little"))


def test_a_sound_ed25519_key_is_admitted_under_the_hash_of_its_encoding():
    der = SigningKey.generate().public.der
    admitted = PublicKey.admit(der)
    assert admitted.algorithm == "ed25519"
    assert admitted.key_id == hashlib.sha256(der).hexdigest()
    assert admitted == PublicKey.admit(der)


def test_weak_rsa_keys_are_refused_and_a_sound_one_is_admitted(rsa_key):
    n = load_der_public_key(rsa_key.public.der).public_numbers().n
    assert PublicKey.admit(rsa_spki(n)).key_id == rsa_key.public.key_id
    odd = n // 751 | 1
    weak = {
        "short": rsa_spki(n >> 1 | 1),
        "exponent 3": rsa_spki(n, 3),
        "exponent 65539": rsa_spki(n, 65539),
        "even": rsa_spki(n - 1),
        "factor 751": rsa_spki(odd * 751 if (odd * 751).bit_length() == 3072 else (odd + 2) * 751),
        "long": rsa_spki((1 << 8192) | 1),
    }
    for name, der in weak.items():
        with pytest.raises(InvalidRequest) as refusal:
            PublicKey.admit(der)
        assert refusal.value.reason is Reason.WEAK_KEY, name


def test_a_modulus_with_the_fingerprint_of_a_broken_generator_is_refused():
    """ROCA (CVE-2017-15361): p = k · M + (65537^a mod M), M the product of the first 126 primes, for 3072 bits."""
    primes = [n for n in range(2, 702) if all(n % d for d in range(2, n))]
    assert len(primes) == 126
    primorial, chance = math.prod(primes), random.Random(15361)  # noqa: S311  # the same key each time

    def factor() -> int:
        k = chance.getrandbits(1536 - primorial.bit_length()) | 3 << (1534 - primorial.bit_length())
        return k * primorial + pow(65537, chance.getrandbits(200), primorial)

    products = (factor() * factor() for _ in range(1000))
    broken = next(n for n in products if n.bit_length() == 3072 and math.gcd(n, 709 * 719 * 727 * 733 * 739 * 743) == 1)
    others = (n for n in range(broken + 2, broken + 20_000, 2) if all(n % d for d in range(3, 752, 2)))

    with pytest.raises(InvalidRequest) as refusal:
        PublicKey.admit(rsa_spki(broken))
    assert refusal.value.reason is Reason.WEAK_KEY
    assert "ROCA" in refusal.value.violations[0].description
    assert PublicKey.admit(rsa_spki(next(others))).algorithm == "rsa-pss-sha256"


@pytest.mark.parametrize("bits", [1024, 2048])
def test_a_short_rsa_key_is_refused_as_private_key_too(bits):
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    with pytest.raises(InvalidRequest) as refusal:
        SigningKey(key)
    assert refusal.value.reason is Reason.WEAK_KEY


@pytest.mark.parametrize("curve", [ec.SECP521R1(), ec.SECP256K1(), ec.SECP224R1()], ids=lambda c: c.name)
def test_other_curves_are_refused(curve):
    with pytest.raises(InvalidRequest) as refusal:
        PublicKey.admit(spki(ec.generate_private_key(curve).public_key()))
    assert refusal.value.reason is Reason.WEAK_KEY


def test_other_algorithms_are_refused():
    with pytest.raises(InvalidRequest) as refusal:
        PublicKey.admit(spki(ed448.Ed448PrivateKey.generate().public_key()))
    assert refusal.value.reason is Reason.WEAK_KEY


def test_a_second_spelling_of_an_admitted_key_is_refused():
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    PublicKey.admit(spki(key))
    point = key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    prefix = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
    load_der_public_key(prefix + point)  # the library takes it
    with pytest.raises(InvalidRequest):
        PublicKey.admit(prefix + point)
    with pytest.raises(InvalidRequest):
        PublicKey.admit(spki(key) + b"\0")


def test_a_public_key_cannot_be_made_without_admission():
    with pytest.raises(TypeError):
        PublicKey(der=b"", algorithm="ed25519", key_id="", _key=None)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_key_survives_its_file_and_verifies_what_it_signed_and_nothing_else(algorithm):
    key = SigningKey.generate(parse_algorithm(algorithm))
    again = SigningKey.load_pem(key.to_pem().reveal())
    assert again.public == key.public
    assert again.public.algorithm == algorithm
    signature = again.sign(b"message")
    key.public.verify(signature, b"message")
    for wrong_signature, message in [
        (signature, b"massage"),
        (bytes([signature[0] ^ 1]) + signature[1:], b"message"),
        (signature[:-1], b"message"),
        (signature + b"\0", b"message"),
        (b"", b"message"),
    ]:
        with pytest.raises(SignatureInvalid):
            key.public.verify(wrong_signature, message)


@pytest.mark.parametrize("salt", [0, 20, 48])
def test_a_pss_salt_of_another_length_is_refused(rsa_key, salt):
    private = rsa_key._key
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=salt)
    with pytest.raises(SignatureInvalid):
        rsa_key.public.verify(private.sign(b"m", pss, hashes.SHA256()), b"m")
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    rsa_key.public.verify(private.sign(b"m", pss, hashes.SHA256()), b"m")


def test_an_rsa_key_does_not_verify_pkcs1_and_a_p256_key_not_sha384(rsa_key):
    with pytest.raises(SignatureInvalid):
        rsa_key.public.verify(rsa_key._key.sign(b"m", padding.PKCS1v15(), hashes.SHA256()), b"m")
    key = SigningKey.generate("ecdsa-p256")
    with pytest.raises(SignatureInvalid):
        key.public.verify(key._key.sign(b"m", ec.ECDSA(hashes.SHA384())), b"m")


def test_a_signing_key_does_not_show_itself():
    key = SigningKey.generate()
    assert key.public.key_id in repr(key)
    assert "PRIVATE" not in repr(key) + repr(key.to_pem()) + str(key)
    with pytest.raises(TypeError):
        key.__reduce_ex__(4)


def test_an_encrypted_private_key_is_refused_by_a_clear_error():
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    with pytest.raises(InvalidRequest) as refusal:
        SigningKey.load_pem(pem)
    assert "unencrypted" in refusal.value.violations[0].description


def test_an_unknown_algorithm_is_refused():
    with pytest.raises(InvalidRequest):
        parse_algorithm("none")


@given(st.binary(max_size=200))
def test_admission_and_loading_raise_nothing_but_our_errors(data):
    for candidate in (data, ED25519_PREFIX + data, b"-----BEGIN %s KEY-----\n" % b"PRIVATE" + data):
        for parse in (PublicKey.admit, SigningKey.load_pem):
            with contextlib.suppress(CasemateError):
                parse(candidate)


@given(st.binary(max_size=200))
def test_verification_raises_nothing_but_our_error(signature):
    for key in (SigningKey.generate(), SigningKey.generate("ecdsa-p256")):
        with pytest.raises(SignatureInvalid):
            key.public.verify(signature, b"message")


@pytest.mark.parametrize(
    ("name", "algorithm", "count"),
    [
        ("ed25519_test.json", "ed25519", 151),
        ("ecdsa_secp256r1_sha256_test.json", "ecdsa-p256", 484),
        ("ecdsa_secp384r1_sha384_test.json", "ecdsa-p384", 504),
        ("rsa_pss_3072_sha256_mgf1_32_test.json", "rsa-pss-sha256", 108),
    ],
)
def test_wycheproof_signatures_are_judged_as_stated(name, algorithm, count):
    """C2SP/wycheproof, every vector of the file, through our own call."""
    judged = 0
    for group in vectors.wycheproof(name):
        key = PublicKey.admit(bytes.fromhex(group["publicKeyDer"]))
        assert key.algorithm == algorithm
        for case in group["tests"]:
            try:
                key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
                result = "valid"
            except SignatureInvalid:
                result = "invalid"
            assert result == case["result"], (case["tcId"], case["comment"])
            judged += 1
    assert judged == count


def test_wycheproof_pkcs1_signatures_verify_strictly_where_that_was_asked_for():
    """All vectors as stated; the one "acceptable" (a missing NULL) is refused, and PSS still is an RSA key's own."""
    judged, differ = 0, []
    for group in vectors.wycheproof("rsa_signature_3072_sha256_test.json"):
        if int(group["publicKey"]["publicExponent"], 16) != 65537:
            continue
        key = PublicKey.admit(bytes.fromhex(group["publicKeyDer"])).unsafe_also_pkcs1()
        for case in group["tests"]:
            try:
                key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
                verified = True
            except SignatureInvalid:
                verified = False
            if verified != (case["result"] == "valid"):
                differ.append(case["comment"])
            judged += 1
    assert judged > 200
    assert differ == ["RSASSA-PSS signature"]


def test_asking_for_pkcs1_changes_neither_identity_nor_other_keys(rsa_key):
    wider = rsa_key.public.unsafe_also_pkcs1()
    assert wider == rsa_key.public
    wider.verify(rsa_key.sign(b"m"), b"m")
    wider.verify(rsa_key._key.sign(b"m", padding.PKCS1v15(), hashes.SHA256()), b"m")
    with pytest.raises(SignatureInvalid):
        wider.verify(rsa_key._key.sign(b"m", padding.PKCS1v15(), hashes.SHA384()), b"m")
    key = SigningKey.generate("ecdsa-p256")
    with pytest.raises(SignatureInvalid):
        key.public.unsafe_also_pkcs1().verify(key._key.sign(b"m", ec.ECDSA(hashes.SHA384())), b"m")


def test_wycheproof_pkcs1_signatures_do_not_verify():
    """An RSA key means PSS here: the valid PKCS#1 signatures are refused, and the set's one PSS signature verifies."""
    judged, verified = 0, []
    for group in vectors.wycheproof("rsa_signature_3072_sha256_test.json"):
        judged += len(group["tests"])
        try:
            key = PublicKey.admit(bytes.fromhex(group["publicKeyDer"]))
        except InvalidRequest as refusal:
            assert refusal.reason is Reason.WEAK_KEY  # noqa: PT017  # one group is about a small exponent
            assert int(group["publicKey"]["publicExponent"], 16) != 65537
            continue
        for case in group["tests"]:
            with contextlib.suppress(SignatureInvalid):
                key.verify(bytes.fromhex(case["sig"]), bytes.fromhex(case["msg"]))
                verified.append(case["comment"])
    assert verified == ["RSASSA-PSS signature"]
    assert judged == 259


@pytest.mark.parametrize("algorithm", ["ed25519", "ecdsa-p256", "ecdsa-p384", "rsa-pss-sha256"])
def test_a_public_key_is_read_from_the_pem_that_openssl_writes(algorithm):
    key = SigningKey.generate(algorithm)
    pem = load_der_public_key(key.public.der).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert PublicKey.load_pem(pem) == key.public
    weak = rsa.generate_private_key(65537, 2048).public_key()
    for bad, reason in (
        (b"", Reason.INVALID_FIELD),
        (pem[:-40], Reason.INVALID_FIELD),
        (key.public.der, Reason.INVALID_FIELD),
        (key.to_pem().reveal(), Reason.INVALID_FIELD),
        (pem + b" " * 65536, Reason.INVALID_FIELD),
        (weak.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), Reason.WEAK_KEY),
    ):
        with pytest.raises(InvalidRequest) as caught:
            PublicKey.load_pem(bad)
        assert caught.value.reason is reason
