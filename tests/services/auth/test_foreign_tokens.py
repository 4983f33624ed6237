"""A key that is not known costs what a known one costs, whatever its algorithm."""

from __future__ import annotations

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
