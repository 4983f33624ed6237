"""Wycheproof's 401 JWS vectors: signatures alone, with our profile off; then every invalid one at the door.

The folder comes from CASEMATE_VECTORS; the data is not part of this project.
"""

from __future__ import annotations

import json
import os
from base64 import urlsafe_b64decode
from pathlib import Path

import jwt
import pytest

from casemate.errors import Unauthenticated
from casemate.gate.core.jose import parse_token
from casemate.gate.core.verifier import TokenVerifier, verify_jws
from tests.gate.world import AUDIENCE, ISSUER, SetClock, TokenMint

DISAGREEMENTS = {
    346: "valid there: a PS384 signature under a key labelled PS256. The key says the algorithm, so refused",
    350: "as 346, the key restricted by key_ops instead of use",
    353: "invalid there: the key is for encryption. Our keys carry no use: auth's feed names token keys and no others",
    354: "as 353, on P-256",
    355: "as 353, said by key_ops",
    356: "as 354, said by key_ops",
    367: "invalid there: padding after the signature, which PyJWT takes. The door fixes the one spelling of a token",
    370: "as 367, after the payload",
    372: "valid there: a foreign character in the header is to be skipped. RFC 7515 appendix C has none; refused",
    373: "as 372, in the payload",
}
"""Where the signature layer and the vector's result differ, by the vector's number, with the reason."""

LABELS = {"ES521": "ES512"}  # the vectors name the curve where RFC 7518 section 3.4 names the hash
BY_KIND = {"RSA": "RS256", "EC": "ES256", "oct": "HS256"}  # of keys without a label
CLOCK = SetClock()


def vectors():
    folder = os.environ.get("CASEMATE_VECTORS")
    if not folder:
        return []
    document = json.loads((Path(folder) / "wycheproof" / "json_web_signature_test.json").read_text())
    return [
        (test["tcId"], test["result"], group.get("public") or group["private"], test["jws"])
        for group in document["testGroups"]
        for test in group["tests"]
    ]


VECTORS = vectors()
needs_vectors = pytest.mark.skipif(not VECTORS, reason="CASEMATE_VECTORS is not set: it names the folder of vectors")


def judged(jwk, text) -> str:
    algorithm = LABELS.get(jwk.get("alg"), jwk.get("alg")) or BY_KIND[jwk["kty"]]
    try:
        verify_jws(text, key=jwt.PyJWK.from_dict(jwk, algorithm=algorithm).key, algorithm=algorithm)
    except jwt.PyJWTError:
        return "invalid"
    return "valid"


@needs_vectors
def test_the_signature_layer_agrees_with_every_vector_but_the_listed():
    assert len(VECTORS) == 401
    differing = {number for number, result, jwk, text in VECTORS if judged(jwk, text) != result}
    assert differing == set(DISAGREEMENTS)


@needs_vectors
def test_every_invalid_vector_is_refused_at_the_door_and_a_token_of_ours_is_taken():
    invalid = [text for _, result, _, text in VECTORS if result == "invalid"]
    assert len(invalid) == 355
    taken = []
    for text in invalid:
        try:
            parse_token(text if isinstance(text, str) else json.dumps(text))
        except Unauthenticated:
            continue
        taken.append(text)
    assert taken == []
    mint = TokenMint()
    assert parse_token(mint.token(mint.claims(now=CLOCK.now(), thumbprint="x" * 43)))


@needs_vectors
def test_no_vector_is_taken_for_a_token_even_if_its_key_were_trusted():
    verifier, now, tried = TokenVerifier(issuer=ISSUER, audience=AUDIENCE), CLOCK.now(), 0
    for _, _, _, text in VECTORS:
        with pytest.raises(Unauthenticated):
            verifier.verify(text, keys=TrustsEveryKey(), now=now)
        tried += 1
    assert tried == 401


class TrustsEveryKey(dict):
    """Finds a key under every name."""

    def get(self, _kid, _default=None):
        return TokenMint("ES256").key


def forged(mint, number):
    """A token that differs from a good one by its signature alone."""
    header, payload, _ = mint.token(mint.claims(now=CLOCK.now(), thumbprint="x" * 43, jti=f"forged-{number}")).split(
        "."
    )
    return f"{header}.{payload}.{'A' * 85}A"


def test_a_forgery_that_comes_again_is_not_verified_again_and_the_memory_of_them_is_bounded(monkeypatch):
    mint, verified = TokenMint(), []
    monkeypatch.setattr(
        "casemate.gate.core.verifier.verify_jws",
        lambda *args, **named: verified.append(1) or verify_jws(*args, **named),
    )
    monkeypatch.setattr("casemate.gate.core.verifier._MAX_FORGERIES", 10)
    verifier, keys = TokenVerifier(issuer=ISSUER, audience=AUDIENCE), {mint.key.kid: mint.key}

    def refuse(text):
        with pytest.raises(Unauthenticated):
            verifier.verify(text, keys=keys, now=CLOCK.now())

    first = forged(mint, 0)
    for _ in range(5):
        refuse(first)
    assert len(verified) == 1
    for number in range(1, 30):
        refuse(forged(mint, number))
    assert len(verifier._forgeries._digests) == 10
    good = mint.token(mint.claims(now=CLOCK.now(), thumbprint="x" * 43))
    assert verifier.verify(good, keys=keys, now=CLOCK.now())


def test_what_is_refused_for_other_reasons_is_not_taken_for_a_forgery_later():
    mint = TokenMint()
    verifier = TokenVerifier(issuer=ISSUER, audience=AUDIENCE)
    token = mint.token(mint.claims(now=CLOCK.now(), thumbprint="x" * 43))
    with pytest.raises(Unauthenticated):
        verifier.verify(token, keys={}, now=CLOCK.now())  # its key is not known yet
    assert verifier.verify(token, keys={mint.key.kid: mint.key}, now=CLOCK.now())


def test_a_token_of_an_unknown_key_is_refused_before_its_claims_are_parsed():
    mint = TokenMint()
    header = json.dumps({"alg": "EdDSA", "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    text = mint.sign_raw(header, b"[" * 1_400)
    verifier = TokenVerifier(issuer=ISSUER, audience=AUDIENCE)
    with pytest.raises(Unauthenticated, match="key is not known"):
        verifier.verify(text, keys={}, now=CLOCK.now())
    with pytest.raises(Unauthenticated, match="not JSON"):
        verifier.verify(text, keys={mint.key.kid: mint.key}, now=CLOCK.now())
    assert urlsafe_b64decode(text.split(".")[1] + "==").startswith(b"[[")
