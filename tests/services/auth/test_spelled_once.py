"""What is spelled once for many tokens says what each would say by itself, and of nobody else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from casemate.errors import InvalidRequest, PermissionDenied
from casemate.gate.core.jose import parse_token
from casemate.gate.core.thumbprint import key_thumbprint
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.keys import DataKey
from services.auth import token_issuer
from services.auth.http_forms import parse_form
from services.auth.records import Client
from services.auth.token_issuer import Entitlement, TokenIdentifiers, TokenIssuer
from services.auth.token_keys import SigningTokenKey
from tests.services.auth.lines import HandClock

CLOCK = HandClock()
CLIENT = Client(
    client_id="acme-caller",
    tenant="acme",
    spiffe_id="spiffe://casemate.internal/t/acme/caller",
    audiences=("datasets", "inference"),
    scopes=("datasets.read", "models.infer", "reflection"),
    enabled=True,
    created_at=CLOCK.now(),
)
ISSUER = 'https://auth.example/"quoted"'
FORM = "application/x-www-form-urlencoded"


async def _sign(message):
    return KEY.sign(message)


KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def issuer():
    key = SigningTokenKey(kid=key_thumbprint(KEY.public_key()), algorithm="EdDSA", sign=_sign)
    identifiers = TokenIdentifiers(key=AuthorityKey(DataKey(bytes(32))))
    return TokenIssuer(
        issuer='https://auth.example/"quoted"', signing_key=lambda: key, identifiers=identifiers, clock=CLOCK
    )


async def _claims(issuer, client=CLIENT, *, audience="inference", scopes=(), thumbprint="leaf"):
    not_after = CLOCK.now() + timedelta(days=1)
    issued = await issuer.issue(client, audience=audience, scopes=scopes, thumbprint=thumbprint, not_after=not_after)
    claims = json.loads(parse_token(issued.token.reveal()).payload)
    assert (claims.pop("jti"), claims["scope"]) == (issued.token_id, " ".join(issued.scopes))
    return claims, issued.token_id


async def test_the_second_token_in_the_same_words_says_the_same_under_another_identifier(issuer):
    first, identifier = await _claims(issuer)
    second, other = await _claims(issuer)
    issued_at = int(CLOCK.now().timestamp())
    assert (
        first
        == second
        == {
            "aud": "inference",
            "sub": "acme-caller",
            "client_id": "acme-caller",
            "tenant": "acme",
            "scope": "models.infer reflection",
            "cnf": {"x5t#S256": "leaf"},
            "iss": ISSUER,
            "iat": issued_at,
            "exp": issued_at + 300,
        }
    )
    assert identifier != other


async def test_a_token_in_other_words_or_by_another_certificate_says_its_own(issuer):
    for _ in range(2):
        for asked, name, said in (
            ({}, "scope", "models.infer reflection"),
            ({"scopes": ("models.infer",)}, "scope", "models.infer"),
            ({"audience": "datasets"}, "aud", "datasets"),
            ({"thumbprint": "other"}, "cnf", {"x5t#S256": "other"}),
            ({"client": replace(CLIENT, client_id="acme-other")}, "sub", "acme-other"),
        ):
            claims, _ = await _claims(issuer, **asked)
            assert claims[name] == said


async def test_a_client_that_changed_has_nothing_of_what_was_spelled_before(issuer):
    await _claims(issuer, scopes=("models.infer",))
    narrowed = replace(CLIENT, scopes=("reflection",))
    with pytest.raises(PermissionDenied):
        await _claims(issuer, narrowed, scopes=("models.infer",))
    moved, _ = await _claims(issuer, replace(CLIENT, tenant="globex"), scopes=("models.infer",))
    assert moved["tenant"] == "globex"
    claims, _ = await _claims(issuer, scopes=("models.infer",))
    assert (claims["scope"], claims["tenant"]) == ("models.infer", "acme")


async def test_what_is_kept_is_bounded_whatever_is_asked_for(issuer, monkeypatch):
    await _claims(issuer, scopes=("models.infer",) * 10_000)
    assert not issuer._begun
    monkeypatch.setattr(token_issuer, "_KEPT", 8)
    for number in range(100):
        await _claims(issuer, replace(CLIENT, client_id=f"acme-{number}"))
        assert 0 < len(issuer._begun) <= 8
        assert 0 < len(issuer._identifiers._proofs) <= 8


async def test_a_token_that_rests_on_another_is_never_taken_from_what_was_spelled(issuer):
    """An exchange mints by itself; its session and actors are in no token of the client's own."""
    own, _ = await _claims(issuer)
    shared = {"tenant": "acme", "client_id": "acme-caller", "subject": "acme-caller", "audience": "inference"}
    entitlement = Entitlement(**shared, scopes=("models.infer", "reflection"), session_id="s", actors=("a",))
    minted = await issuer.mint(entitlement, thumbprint="leaf", not_after=CLOCK.now() + timedelta(days=1))
    claims = json.loads(parse_token(minted.token.reveal()).payload)
    assert (claims["sid"], claims["act"]) == ("s", {"sub": "a"})
    assert "sid" not in own
    assert (await _claims(issuer))[0] == own


def _judged(read, *given):
    try:
        return dict(read(*given))
    except (ValueError, InvalidRequest):
        return None


def _slowly(body):
    pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=bool(body), errors="strict", max_num_fields=32)
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("twice")
    return {name: value for name, value in pairs if value}


@settings(max_examples=300)
@given(st.one_of(st.text("ab=&", max_size=12), st.text("ab=&+%2;#?0 \t\x00", max_size=12)))
def test_a_form_is_read_alike_with_and_without_looking_for_escapes(body):
    assert _judged(parse_form, FORM, body.encode()) == _judged(lambda: _slowly(body) if _whole(body) else _fail())


def _whole(body):
    """Whether each percent sign begins an escape: others are refused before anything is read."""
    return all(len(part) >= 2 and set(part[:2]) <= set("0123456789ABCDEFabcdef") for part in body.split("%")[1:])


def _fail():
    raise ValueError("a broken escape")


@pytest.mark.parametrize(("count", "read"), [(32, True), (33, False)])
def test_a_form_of_more_parameters_than_any_has_is_refused_however_it_is_spelled(count, read):
    for spelled in ("a", "%61"):
        body = "&".join(f"{spelled}{number}=1" for number in range(count)).encode()
        assert (_judged(parse_form, FORM, body) is not None) is read
