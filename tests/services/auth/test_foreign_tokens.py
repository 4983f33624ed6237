"""A key that is not known costs what a known one costs, whatever its algorithm."""

from __future__ import annotations

import base64
from functools import cache

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.errors import Reason, Unauthenticated
from services.auth import foreign_tokens
from services.auth.foreign_tokens import parse_foreign, verify_foreign


@cache
def _rsa():
    return rsa.generate_private_key(65537, 3072)


MAKE = {
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "PS256": _rsa,
    "RS256": _rsa,
}


def _der(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _kind(key):
    return type(key).__name__, getattr(key, "key_size", None), getattr(getattr(key, "curve", None), "name", None)


@pytest.mark.parametrize("algorithm", MAKE)
def test_e1_an_assertion_of_nobody_is_verified_by_the_same_kind_of_key_as_a_clients(algorithm, monkeypatch):
    signing, other = MAKE[algorithm](), MAKE["EdDSA" if algorithm != "EdDSA" else "ES256"]()
    registered = MAKE[algorithm]() if algorithm not in ("PS256", "RS256") else signing
    text = jwt.encode({"iss": "x"}, signing, algorithm=algorithm)
    if registered is signing:  # another RSA key takes a second to find: its signature is spoilt instead
        head, _, signature = text.rpartition(".")
        text = f"{head}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    used = []
    real = jwt.decode

    def watched(text, *, key, **more):
        used.append(_kind(key))
        return real(text, key=key, **more)

    monkeypatch.setattr(foreign_tokens.jwt, "decode", watched)
    for keys in ({"k": _der(registered)}, {}, {"k": _der(other)}):
        with pytest.raises(Unauthenticated):
            verify_foreign(parse_foreign(text, reason=Reason.CLIENT_UNKNOWN), keys, reason=Reason.CLIENT_UNKNOWN)
    assert used == [_kind(registered.public_key())] * 3
    good = jwt.encode({"iss": "x"}, signing, algorithm=algorithm)
    verify_foreign(
        parse_foreign(good, reason=Reason.CLIENT_UNKNOWN), {"k": _der(signing)}, reason=Reason.CLIENT_UNKNOWN
    )


def test_algorithms_that_nobody_has_take_no_memory():
    text = jwt.encode({"iss": "x"}, MAKE["EdDSA"](), algorithm="EdDSA")
    token = parse_foreign(text, reason=Reason.CLIENT_UNKNOWN)
    before = foreign_tokens._nobodys.cache_info().currsize
    for number in range(50):
        made_up = foreign_tokens.ForeignToken(text=token.text, algorithm=f"X{number}", key_id=None, claims=token.claims)
        with pytest.raises(Unauthenticated):
            verify_foreign(made_up, {}, reason=Reason.CLIENT_UNKNOWN)
    assert foreign_tokens._nobodys.cache_info().currsize <= before + 1


def _text(payload):
    key = MAKE["EdDSA"]()
    head = base64.urlsafe_b64encode(b'{"alg":"EdDSA"}').rstrip(b"=").decode()
    message = f"{head}.{base64.urlsafe_b64encode(payload).rstrip(b'=').decode()}"
    return f"{message}.{base64.urlsafe_b64encode(key.sign(message.encode())).rstrip(b'=').decode()}"


GOOD = '{"iss":"i","sub":"alice"}'
ODD = {
    "another encoding": GOOD.encode("utf-16"),
    "another encoding without a mark": GOOD.encode("utf-32-be"),
    "a byte order mark": GOOD.encode("utf-8-sig"),
    "a name twice": b'{"iss":"i","sub":"alice","sub":"bob"}',
    "a name twice, escaped": b'{"iss":"i","sub":"alice","s\\u0075b":"bob"}',
    "no number": b'{"iss":"i","sub":"alice","x":NaN}',
    "no number either": b'{"iss":"i","sub":"alice","x":-Infinity}',
    "too deep": b'{"iss":"i","sub":"alice","x":' + b"[" * 20 + b"]" * 20 + b"}",
    "too many": b'{"iss":"i","sub":"alice","x":[' + b"0," * 1200 + b"0]}",
    "half a character": b'{"iss":"i","sub":"\\ud800"}',
    "no object": b'["iss"]',
    "nothing": b"x",
}


@pytest.mark.parametrize("payload", ODD.values(), ids=ODD.keys())
def test_e8_json_that_reads_in_two_ways_is_no_token_of_anybody(payload):
    parse_foreign(_text(GOOD.encode()), reason=Reason.GRANT_INVALID)
    parse_foreign(_text(b'{"iss":"i","sub":"alice","x":' + b"[" * 10 + b"]" * 10 + b"}"), reason=Reason.GRANT_INVALID)
    with pytest.raises(Unauthenticated) as raised:
        parse_foreign(_text(payload), reason=Reason.GRANT_INVALID)
    assert raised.value.reason is Reason.GRANT_INVALID
