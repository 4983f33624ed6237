"""Attacks by the form of a token, over the wire: each refused before its handler, each with a twin that is served."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.errors import Reason, Unauthenticated
from casemate.gate.core.jose import MAX_TOKEN_LENGTH
from casemate.gate.core.records import RevocationKind
from tests.gate.attacks.forge import header_of, rewritten, signed_payload
from tests.gate.attacks.scene import EXHAUSTED, UNAUTHENTICATED
from tests.gate.world import TokenMint, World, base64url, thumbprint_of

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (lambda _: (), Reason.TOKEN_MISSING),
        (lambda _: (("authorization", ""),), Reason.TOKEN_INVALID),
        (lambda _: (("authorization", "Basic x"),), Reason.TOKEN_INVALID),
        (lambda _: (("authorization", "Bearer"),), Reason.TOKEN_INVALID),
        (lambda _: (("authorization", "Bearer "),), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", f"Bearer  {text}"),), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", f"Bearer {text} "),), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", text),), Reason.TOKEN_INVALID),
        (lambda text: (("x-authorization", f"Bearer {text}"),), Reason.TOKEN_MISSING),
        (lambda text: (("authorization", f"Bearer {text}"), ("authorization", "Bearer x")), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", "Bearer x"), ("authorization", f"Bearer {text}")), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", f"Bearer {text}"),) * 2, Reason.TOKEN_INVALID),
        (lambda text: (("authorization-bin", f"Bearer {text}".encode()),), Reason.TOKEN_INVALID),
        (lambda text: (("authorization", f"Bearer {text}"), ("authorization-bin", b"x")), Reason.TOKEN_INVALID),
    ],
    ids=[
        *("none", "empty", "basic", "bearer only", "bearer and space", "two spaces", "trailing space", "no scheme"),
        *("another name", "good and bad", "bad and good", "the same twice", "as bytes", "both"),
    ],
)
def test_metadata_with_anything_but_one_bearer_token(scene, token, metadata, reason):
    error = scene.refused(UNAUTHENTICATED, reason, metadata=metadata(token), audited=reason.value)
    assert token not in str(error)
    scene.good(token=token)
    scene.good(metadata=(("authorization", f"bearer {token}"),))  # RFC 9110 section 11.1: the scheme has no case


def odd_last(text):
    """The same bytes in a spelling that is not canonical."""
    return text[:-1] + chr(ord(text[-1]) + 1)


SPELLINGS = {
    "two paddings": lambda text: text + "==",
    "one padding": lambda text: text + "=",
    "standard alphabet": lambda text: text.replace("-", "+").replace("_", "/") + "/",
    "last character": odd_last,
    "two segments": lambda text: text.rpartition(".")[0],
    "four segments": lambda text: f"{text}.{text.rpartition('.')[2]}",
    "five segments": lambda text: f"{text}.x.y",  # as a JWE
    "a lone dot": lambda _: ".",
    "empty header": lambda text: text[text.index(".") :],
    "JSON serialization": lambda text: json.dumps(
        dict(zip(("protected", "payload", "signature"), text.split("."), strict=True))
    ),
    "junk inside": lambda text: text.replace(".", ".*", 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_another_spelling_of_a_good_token(scene, token, spelling):
    scene.unauthenticated(token=SPELLINGS[spelling](token))
    scene.good(token=token)
    scene.unauthenticated(token=SPELLINGS[spelling](token))  # nor when its twin is in the cache
    assert len(scene.world.cache) == 1


@pytest.fixture
def elliptic(scene):
    """A mint of ES256 tokens whose key is trusted too."""
    mint = TokenMint("ES256")
    scene.world.publish(keys=(scene.world.mint.key, mint.key))
    return mint


def test_the_twin_signature_of_a_revoked_token_is_revoked_with_it(scene, elliptic, trainer):
    world = scene.world
    claims = elliptic.claims(now=world.clock.now(), thumbprint=thumbprint_of(trainer), jti="the-token")
    text = elliptic.token(claims)
    head, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    r, s = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    assert decode_dss_signature(encode_dss_signature(r, s)) == (r, s)
    twin = f"{head}.{base64url(r.to_bytes(32) + (P256_ORDER - s).to_bytes(32))}"
    scene.good(token=text)
    scene.good(token=twin)  # it verifies: that is the point
    world.publish(keys=(world.mint.key, elliptic.key), revocations=(revoked("the-token"),))
    for spelling in (text, twin):
        scene.unauthenticated(Reason.TOKEN_REVOKED, token=spelling)
    scene.good()


def revoked(token_id):
    from casemate.gate.core.records import Revocation

    return Revocation(id="revocation-1", kind=RevocationKind.TOKEN, value=token_id)


def hmac_with(secret):
    return lambda signed: hmac.new(secret, signed, hashlib.sha256).digest()


ALGORITHMS = {
    **{name: ({"alg": name}, lambda _key: lambda _signed: b"") for name in ("none", "None", "NONE", "nOnE")},
    "HS256 by DER": ({"alg": "HS256"}, lambda key: hmac_with(key.public_key_der)),
    "HS256 by PEM": (
        {"alg": "HS256"},
        lambda key: hmac_with(key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
    ),
    "HS256 by raw bytes": ({"alg": "HS256"}, lambda key: hmac_with(key.public_key.public_bytes_raw())),
    "HS256 by JWK": ({"alg": "HS256"}, lambda key: hmac_with(json.dumps({"kid": key.kid}).encode())),
    "HS256 called EdDSA": ({"alg": "EdDSA"}, lambda key: hmac_with(key.public_key_der)),
    "ES256 on an Ed25519 key": ({"alg": "ES256"}, lambda _key: lambda _signed: b"\1" * 64),
    "ES256K": ({"alg": "ES256K"}, lambda _key: lambda _signed: b"\1" * 64),
    "zeros": ({}, lambda _key: lambda _signed: b"\0" * 64),
    "a list": ({"alg": ["EdDSA"]}, lambda _key: lambda _signed: b"\1" * 64),
}


@pytest.mark.parametrize("odd", ALGORITHMS)
def test_a_token_that_chooses_its_algorithm(scene, token, odd):
    header, signer = ALGORITHMS[odd]
    mint = scene.world.mint
    scene.unauthenticated(token=rewritten(mint, token, signature=signer(mint.key), **header))
    assert len(scene.world.cache) == 0
    scene.good(token=rewritten(mint, token))


def test_zeros_are_no_ecdsa_signature(scene, token, elliptic):
    mint = scene.world.mint
    odd = rewritten(elliptic, token, signature=lambda _: b"\0" * 64)
    scene.unauthenticated(token=odd)
    scene.good(token=rewritten(mint, token))


KIDS = {
    "unknown": "A" * 43,
    "a path": "../../../../dev/null",
    "SQL": "' OR 1=1--",
    "a URL": "https://attacker.example/keys.json",
    "long": "A" * 2_000,
    "a list": ["A"],
    "a number": 7,
    "null": None,
    "missing": ...,
}


@pytest.mark.parametrize("odd", KIDS)
def test_a_token_that_names_an_odd_key(scene, token, odd):
    keys = scene.world.trust.current.keys
    for _ in range(50):
        scene.unauthenticated(token=rewritten(scene.world.mint, token, kid=KIDS[odd]))
    # Nothing was fetched, looked up elsewhere or kept: the keys are the feed's, and the same object.
    assert scene.world.trust.current.keys is keys
    assert len(scene.world.cache) == 0
    scene.good(token=token)


@pytest.mark.parametrize("how", ["another issuer's", "retired", "revoked"])
def test_a_token_of_a_key_that_does_not_count(scene, token, trainer, how):
    world = scene.world
    if how == "another issuer's":
        foreign = TokenMint()
        claims = foreign.claims(now=world.clock.now(), thumbprint=thumbprint_of(trainer))
        scene.unauthenticated(token=foreign.token(claims))
        scene.unauthenticated(token=rewritten(foreign, token, kid=world.mint.key.kid))
    else:
        scene.good(token=token)
        if how == "retired":
            world.publish(keys=())
            scene.unauthenticated(token=token)
        else:
            world.revoke(RevocationKind.KEY, world.mint.key.kid)
            scene.unauthenticated(Reason.TOKEN_REVOKED, token=token)
        world.publish()
    scene.good(token=token)


HEADERS = {
    "jku": {"jku": "https://attacker.example/keys"},
    "x5u": {"x5u": "https://attacker.example/cert"},
    "jwk": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}},
    "x5c": {"x5c": ["AAAA"]},
    "crit": {"crit": ["exp"]},
    "b64": {"b64": False, "crit": ["b64"]},
    "zip": {"zip": "DEF"},
    "cty": {"cty": "JWT"},
    "x5t": {"x5t": "AAAA"},
}


@pytest.mark.parametrize("odd", HEADERS)
def test_a_signed_token_with_a_header_that_points_elsewhere(scene, token, odd):
    scene.unauthenticated(token=rewritten(scene.world.mint, token, **HEADERS[odd]))
    scene.good(token=rewritten(scene.world.mint, token))


@pytest.mark.parametrize(
    "typ", ["JWT", ..., "dpop+jwt", "rt+jwt", "client-authentication+jwt", "at+JWT", "application/at+jwt"]
)
def test_a_signed_token_of_another_type(scene, token, typ):
    scene.unauthenticated(token=rewritten(scene.world.mint, token, typ=typ))
    scene.good(token=rewritten(scene.world.mint, token))


def test_a_token_or_metadata_beyond_its_size(scene, token):
    scene.unauthenticated(token="A" * (MAX_TOKEN_LENGTH + 1))
    scene.unauthenticated(token="A." * (MAX_TOKEN_LENGTH // 2))
    scene.unauthenticated(token=signed_payload(scene, b"[" * 1_400 + b"]" * 1_400))
    for size in (9_000, 20_000, 1_000_000):
        for _ in range(5):  # each time: between a soft and a hard limit, refusal would be random
            with pytest.raises(grpc.RpcError) as refused:
                scene.served.call(scene.channel, metadata=(("authorization", "Bearer " + "A" * size),))
            assert refused.value.code() is EXHAUSTED
        assert scene.served.echo.entered == []
    scene.good(token=token)
    scene.good(metadata=(("authorization", f"Bearer {token}"), ("x-note", "n" * 3_000)))


BULKY = {
    "4,097 bytes": lambda _mint: "A" * (MAX_TOKEN_LENGTH + 1),
    "a megabyte": lambda _mint: "A." * 500_000,
    "a thousand lists": lambda mint: mint.sign_raw(header_of(mint), b"[" * 1_000 + b"]" * 1_000),
    "as deep as fits": lambda mint: mint.sign_raw(header_of(mint), b"[" * 2_900),
    "a lone dot": lambda _mint: ".",
}


@pytest.mark.parametrize("bulk", BULKY)
def test_refusing_what_is_too_much_takes_less_than_a_millisecond_of_the_processor(bulk):
    """Of the gate's own thread, at its best of twenty: other work on this machine is not the question."""
    world = World()
    metadata = (("authorization", f"Bearer {BULKY[bulk](world.mint)}"),)
    took = []
    for _ in range(20):
        begun = time.thread_time()
        with pytest.raises(Unauthenticated):
            world.gate.at_headers("/test.Echo/Unary", metadata, request_id="r")
        took.append(time.thread_time() - begun)
    assert min(took) < 0.001
    assert len(world.cache) == 0
