"""The strict front door, the verifier and the cache."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidRequest, Reason, Unauthenticated
from casemate.gate.core import verifier
from casemate.gate.core.jose import parse_token
from casemate.gate.core.records import VerificationKey
from casemate.gate.core.thumbprint import key_thumbprint
from casemate.gate.core.verifier import VerifiedToken
from tests.gate.token_world import CLOCK, NOW, THUMBPRINT, VERIFIER, Lookup, claims, jwt_like, mint, signed, verify
from tests.gate.world import AUDIENCE, ISSUER, TokenMint, base64url

__all__ = ["mint"]  # fixtures


def test_a_good_token_gives_its_claims(mint):
    token = verify(mint, mint.token(claims(mint, sid="session", scope="datasets.read log.read")))
    assert (token.tenant, token.client_id, token.session_id, token.kid) == (
        "acme",
        "acme-trainer",
        "session",
        mint.key.kid,
    )
    assert token.scopes == {"datasets.read", "log.read"}
    assert token.certificate_thumbprint == THUMBPRINT


def test_nobody_else_makes_a_verified_token(mint):
    made = verify(mint, mint.token(claims(mint)))
    fields = {name: getattr(made, name) for name in made.__slots__}
    with pytest.raises(TypeError):
        VerifiedToken(**fields, seal=object())


@pytest.mark.parametrize(
    "change",
    [
        *({name: ...} for name in ("iss", "aud", "sub", "client_id", "iat", "exp", "jti", "scope", "tenant", "cnf")),
        {"iss": ISSUER + "/"},
        {"iss": ISSUER[:-1]},
        {"aud": [AUDIENCE]},
        {"aud": [AUDIENCE, "auth"]},
        {"aud": AUDIENCE + "-admin"},
        {"aud": AUDIENCE[:-1]},
        {"exp": str(NOW + 60)},
        {"exp": True},
        {"exp": -1},
        {"exp": 10**30},
        {"exp": [NOW + 60]},
        {"exp": NOW + 3600},
        {"exp": NOW + 10**9},
        {"exp": NOW - 10},
        {"iat": NOW + 3600, "exp": NOW + 3660},
        {"nbf": NOW + 3600},
        {"nbf": "now"},
        {"sub": 7},
        {"sub": ""},
        {"tenant": "a b"},
        {"client_id": "x" * 256},
        {"sid": None},
        {"scope": ["datasets.read"]},
        {"scope": "datasets.read  admin"},
        {"cnf": {"x5t#S256": "short"}},
        {"cnf": {"x5t#S256": THUMBPRINT, "jkt": "y"}},
        {"cnf": {"jkt": "y"}},
        {"cnf": THUMBPRINT},
        {"role": "admin"},
        {"act": "somebody"},
        {"act": {"act": {"act": {"act": {"sub": "deep"}}}}},
    ],
    # One name in every process of a run, and one for each.
    ids=lambda change: re.sub(r"\b\d{10}\b", lambda found: f"now{int(found[0]) - NOW:+d}", str(change)),
)
def test_a_signed_token_with_one_odd_claim_is_refused(mint, change):
    if change.get("aud") == AUDIENCE:
        pytest.fail("not odd")
    token = jwt_like(mint, {k: v for k, v in claims(mint, **change).items() if v is not None or k == "sid"})
    with pytest.raises(Unauthenticated):
        verify(mint, token)
    assert verify(mint, jwt_like(mint, claims(mint, nbf=NOW, act={"sub": "one"})))


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "JWT"},
        {"typ": ...},
        {"typ": "dpop+jwt"},
        {"typ": ["at+jwt"]},
        {"alg": "none"},
        {"alg": "None"},
        {"alg": "HS256"},
        {"alg": ["EdDSA"]},
        {"kid": ...},
        {"kid": "../../dev/null"},
        {"kid": "' OR 1=1--"},
        {"kid": 7},
        {"kid": "A" * 43},
        {"jku": "https://attacker.example/keys"},
        {"x5u": "https://attacker.example/"},
        {"x5c": ["AAAA"]},
        {"jwk": {"kty": "oct", "k": "AAAA"}},
        {"crit": ["b64"]},
        {"b64": False},
        {"zip": "DEF"},
        {"cty": "JWT"},
    ],
    ids=str,
)
def test_a_signed_token_with_one_odd_header_member_is_refused(mint, header):
    good = {"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}
    payload = json.dumps(claims(mint)).encode()
    odd = {name: value for name, value in {**good, **header}.items() if value is not ...}
    with pytest.raises(Unauthenticated):
        verify(mint, signed(mint, json.dumps(odd).encode(), payload))
    assert verify(mint, signed(mint, json.dumps(good).encode(), payload))


def test_the_key_says_the_algorithm_and_never_the_token():
    ed25519, p256 = TokenMint("EdDSA"), TokenMint("ES256")
    for one, other in ((ed25519, p256), (p256, ed25519)):
        header = json.dumps({"alg": other.algorithm, "kid": one.key.kid, "typ": "at+jwt"}).encode()
        with pytest.raises(Unauthenticated):
            verify(one, signed(other, header, json.dumps(claims(one)).encode()))
        assert verify(one, one.token(claims(one)))


@pytest.mark.parametrize(
    "payload",
    [
        b'{"exp":1,"exp":2}',
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'{"exp":1e400}',
        b'{"exp":1.5}',
        b'{"exp":1' + b"0" * 2900 + b"}",
        b"[" * 1400 + b"]" * 1400,
        b"[]",
        b'"text"',
        b"{",
        b"\xff\xfe",
    ],
    ids=range(11),
)
def test_a_payload_that_is_not_plain_json_is_refused(mint, payload):
    header = json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    with pytest.raises(Unauthenticated):
        verify(mint, signed(mint, header, payload))
    assert verify(mint, signed(mint, header, json.dumps(claims(mint)).encode()))


def test_a_member_that_comes_twice_is_refused_in_header_and_payload(mint):
    header = json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    payload = json.dumps(claims(mint)).encode()
    for odd in (
        (header, b'{"tenant": "globex", ' + payload[1:]),
        (header, payload[:-1] + b', "tenant": "acme"}'),
        (b'{"typ": "JWT", ' + header[1:], payload),
    ):
        with pytest.raises(Unauthenticated):
            verify(mint, signed(mint, *odd))
    assert verify(mint, signed(mint, header, payload))


def test_a_token_has_one_spelling(mint):
    token = mint.token(claims(mint))
    header, payload, signature = token.split(".")
    odd_last = signature[:-1] + chr(ord(signature[-1]) + 1)
    assert urlsafe_b64decode(odd_last + "==") == urlsafe_b64decode(signature + "==")
    for other in (
        token + "=",
        token + "==",
        token + "\n",
        " " + token,
        f"{header}=.{payload}.{signature}",
        f"{header}.{payload}.{odd_last}",
        f"{header}.{payload}",
        f"{header}.{payload}.",
        f"{token}.{payload}",
        f"{header}..{signature}",
        token.replace(".", "..", 1),
        "",
        ".",
        "..",
        "a" * 1_000_000,
    ):
        with pytest.raises(Unauthenticated):
            verify(mint, other)
    assert verify(mint, token)


@pytest.mark.parametrize("segment", range(3))
def test_the_front_door_itself_refuses_a_segment_in_another_spelling(mint, segment):
    """By itself: what stands behind it refuses some of these too, and need not in its next release."""
    parts = mint.token(claims(mint)).split(".")
    raw = urlsafe_b64decode(parts[segment] + "==")
    if segment < 2:
        raw += b" " * (1 + (-len(raw)) % 3)  # JSON may end in spaces: now the last character carries four zero bits
        parts[segment] = base64url(raw)
    parse_token(".".join(parts))
    parts[segment] = parts[segment][:-1] + chr(ord(parts[segment][-1]) + 1)
    assert urlsafe_b64decode(parts[segment] + "==") == raw
    with pytest.raises(Unauthenticated):
        parse_token(".".join(parts))


@pytest.mark.parametrize("honest", [True, False])
def test_a_token_that_says_another_algorithm_than_its_keys_is_refused_before_any_signature_is_looked_at(
    mint, monkeypatch, honest
):
    looked = []
    monkeypatch.setattr(verifier, "verify_jws", lambda _text, **by: looked.append(by["algorithm"]) or b"")
    says = mint.algorithm if honest else {"EdDSA": "ES256", "ES256": "EdDSA"}[mint.algorithm]
    header = json.dumps({"alg": says, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    with pytest.raises(Unauthenticated):
        verify(mint, signed(mint, header, json.dumps(claims(mint)).encode()))
    assert looked == ([mint.algorithm] if honest else [])


def test_any_changed_character_is_refused(mint):
    token = mint.token(claims(mint))
    for place in range(0, len(token), 7):
        changed = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        with pytest.raises(Unauthenticated):
            verify(mint, changed)


@given(st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9_-]{2,80}\.[A-Za-z0-9_-]{2,80}\.[A-Za-z0-9_-]{85}[AQgw]"))
def test_the_front_door_answers_any_text_by_its_one_error(text):
    with pytest.raises(Unauthenticated):
        parse_token(text)


def test_exp_has_no_leeway_and_iat_has_five_seconds(mint):
    now = CLOCK.now().replace(microsecond=0)
    keys = {mint.key.kid: mint.key}
    token = mint.token(mint.claims(now=now, thumbprint=THUMBPRINT))
    VERIFIER.verify(token, keys=keys, now=now - timedelta(seconds=5))
    VERIFIER.verify(token, keys=keys, now=now + timedelta(seconds=299))
    with pytest.raises(Unauthenticated) as late:
        VERIFIER.verify(token, keys=keys, now=now + timedelta(seconds=300))
    assert late.value.reason is Reason.TOKEN_EXPIRED
    with pytest.raises(Unauthenticated) as early:
        VERIFIER.verify(token, keys=keys, now=now - timedelta(seconds=6))
    assert early.value.reason is Reason.TOKEN_INVALID


def test_a_key_is_named_by_its_thumbprint_and_known_by_its_kind(mint):
    assert VerificationKey.load(mint.der, kid=key_thumbprint(mint.private.public_key()), algorithm=mint.algorithm)
    with pytest.raises(InvalidRequest):
        VerificationKey.load(mint.der, kid="A" * 43)
    with pytest.raises(InvalidRequest):
        VerificationKey.load(mint.der, algorithm="RS256")
    weak = rsa.generate_private_key(65537, 2048).public_key()
    with pytest.raises(InvalidRequest):
        VerificationKey.load(weak.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def test_the_thumbprint_is_that_of_rfc_8037_appendix_a_3():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert key_thumbprint(Ed25519PublicKey.from_public_bytes(raw)) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_use_keeps_an_entry_in_memory_and_never_makes_it_trusted_longer():
    lookup = Lookup()
    token = lookup.token()
    for second in range(61):
        lookup.look(token, monotonic=float(second))
    assert lookup.verified == 2  # at 0 and at 60, however often it was used in between
    lookup.look(token, monotonic=10.0)  # a clock that went back is no reason to trust
    assert lookup.verified == 3
