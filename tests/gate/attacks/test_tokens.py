"""Attacks by the form of a token, over the wire: each refused before its handler, each with a twin that is served."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from datetime import timedelta

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.errors import Reason, Unauthenticated
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.jose import MAX_TOKEN_LENGTH
from casemate.gate.core.records import RevocationKind
from tests.gate.attacks.scene import DENIED, EXHAUSTED, NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, Scene
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import AUDIENCE, ISSUER, TokenMint, World, base64url, grant, thumbprint_of

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


def rewritten(mint, token, *, signature=None, **header):
    """The token's payload under another header, signed with the real key unless a signature is given."""
    payload = base64.urlsafe_b64decode(token.split(".")[1] + "==")
    members = {"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt", **header}
    head = json.dumps({name: value for name, value in members.items() if value is not ...}).encode()
    if signature is None:
        return mint.sign_raw(head, payload)
    signed = f"{base64url(head)}.{base64url(payload)}"
    return f"{signed}.{base64url(signature(signed.encode()))}"


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


def signed_payload(scene, payload):
    mint = scene.world.mint
    head = json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()
    return mint.sign_raw(head, payload if isinstance(payload, bytes) else json.dumps(payload).encode())


def claims_of(scene, **changes):
    world = scene.world
    return world.mint.claims(now=world.clock.now(), thumbprint=thumbprint_of(scene.trainer), **changes)


REQUIRED = ("iss", "aud", "sub", "client_id", "iat", "exp", "jti", "scope", "tenant", "cnf")
RAW = {"exp twice", "tenant twice", "exp NaN", "exp Infinity", "exp 1e400", "exp 1e30", "exp float"}
CLAIMS = {
    **{f"{name} missing": {name: ...} for name in REQUIRED},
    "exp string": {"exp": "9999999999"},
    "exp true": {"exp": True},
    "exp list": {"exp": [9999999999]},
    "exp negative": {"exp": -1},
    "exp in a hundred years": {"exp": 4_900_000_000},
    "aud another": {"aud": "inference"},
    "aud a list with ours": {"aud": [AUDIENCE, "auth"]},
    "aud a list of ours": {"aud": [AUDIENCE]},
    "aud longer": {"aud": f"{AUDIENCE}-admin"},
    "aud shorter": {"aud": AUDIENCE[:-1]},
    "iss with a slash": {"iss": f"{ISSUER}/"},
    "iss shorter": {"iss": ISSUER[:-1]},
    "iss longer": {"iss": f"{ISSUER}.attacker.example"},
    "cnf of another kind": {"cnf": {"jkt": "x" * 43}},
    "a claim of nobody": {"admin": True},
}


@pytest.mark.parametrize("odd", [*CLAIMS, *sorted(RAW)])
def test_a_signed_token_with_an_odd_claim(scene, odd):
    good = json.dumps(claims_of(scene))
    if odd in RAW:
        name, _, how = odd.partition(" ")
        if how == "twice":
            payload = f'{good[:-1]}, "{name}": {json.dumps(claims_of(scene)[name])}}}'
        else:
            value = {"float": "9999999999.5"}.get(how, how)
            payload = json.dumps({key: val for key, val in claims_of(scene).items() if key != name})
            payload = f'{payload[:-1]}, "{name}": {value}}}'
        text = signed_payload(scene, payload.encode())
    else:
        text = signed_payload(scene, claims_of(scene, **CLAIMS[odd]))
    with pytest.raises(grpc.RpcError) as refused:
        scene.served.call(scene.channel, token=text)
    assert refused.value.code() is UNAUTHENTICATED
    assert scene.world.audit.denials in (["TOKEN_INVALID"], ["TOKEN_EXPIRED"])
    assert scene.served.echo.entered == []
    scene.good(token=signed_payload(scene, claims_of(scene)))


@pytest.mark.parametrize("edge", ["exp now", "exp past", "iat ahead", "nbf ahead"])
def test_a_token_on_the_wrong_side_of_its_time(scene, edge):
    now = int(scene.world.clock.now().timestamp())
    odd, twin, reason = {
        "exp now": ({"iat": now - 60, "exp": now}, {"iat": now - 60, "exp": now + 30}, Reason.TOKEN_EXPIRED),
        "exp past": ({"iat": now - 60, "exp": now - 1}, {"iat": now - 60, "exp": now + 30}, Reason.TOKEN_EXPIRED),
        "iat ahead": ({"iat": now + 60, "exp": now + 90}, {"iat": now + 4, "exp": now + 90}, Reason.TOKEN_INVALID),
        "nbf ahead": ({"nbf": now + 60}, {"nbf": now + 4}, Reason.TOKEN_INVALID),
    }[edge]
    scene.unauthenticated(reason, token=signed_payload(scene, claims_of(scene, **odd)))
    scene.good(token=signed_payload(scene, claims_of(scene, **twin)))


def test_a_clock_that_was_set_back_does_not_revive_or_admit_early(scene, token):
    scene.good(token=token)
    scene.world.clock.wall_offset = timedelta(hours=-1)
    # The certificate is not valid yet either; the token is judged first.
    scene.unauthenticated(token=token)
    scene.world.clock.wall_offset = timedelta(0)
    scene.good(token=token)


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


def header_of(mint):
    return json.dumps({"alg": mint.algorithm, "kid": mint.key.kid, "typ": "at+jwt"}).encode()


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


ACTORS = {"sub": "acme-frontend", "act": {"sub": "acme-gateway", "act": {"sub": "acme-portal"}}}


@pytest.mark.parametrize("lacking", ["the service", "the user"])
def test_a_token_on_behalf_of_somebody_gives_what_both_may_and_no_more(scene, lacking):
    """Which scopes both have, auth decides when it exchanges; here, what a token without one of them is worth."""
    given = signed_payload(scene, claims_of(scene, sub="idp:alice", act=ACTORS, scope="datasets.read"))
    scene.good(token=given)
    narrowed = signed_payload(scene, claims_of(scene, sub="idp:alice", act=ACTORS, scope="datasets.write"))
    scene.refused(DENIED, Reason.INSUFFICIENT_SCOPE, token=narrowed, audited="INSUFFICIENT_SCOPE")
    # A grant is the service's; the user's part ends with what names the user.
    if lacking == "the service":
        scene.world.publish(grants=(grant(caller="t/acme/another"),))
        scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=given, audited="GRANT_MISSING")
    else:
        scene.world.revoke(RevocationKind.SUBJECT, "idp:alice")
        scene.unauthenticated(Reason.TOKEN_REVOKED, token=given)
    scene.world.publish()
    scene.good(token=given)


def test_a_chain_of_more_actors_than_three_is_refused(scene):
    deep = {"sub": "a", "act": {"sub": "b", "act": ACTORS}}
    scene.unauthenticated(token=signed_payload(scene, claims_of(scene, act=deep)))
    scene.unauthenticated(token=signed_payload(scene, claims_of(scene, act="acme-frontend")))
    scene.good(token=signed_payload(scene, claims_of(scene, act=ACTORS)))


def test_keys_rotate_without_a_refusal_and_a_compromised_one_ends_at_once(scene, trainer):
    world, old = scene.world, scene.world.mint
    before = world.token(trainer)
    scene.good(token=before)
    new = TokenMint()
    world.publish(keys=(old.key, new.key))  # both: what the old one signed lives until its exp
    after = new.token(new.claims(now=world.clock.now(), thumbprint=thumbprint_of(trainer)))
    scene.good(token=before)
    scene.good(token=after)
    world.publish(keys=(new.key,))
    scene.unauthenticated(token=before)
    scene.good(token=after)


def test_a_flood_of_unknown_tokens_moves_no_good_one_out_and_leaves_nothing(scene, token, mallory):
    scene.good(token=token)
    head, payload, _ = token.split(".")
    refused = 0
    with scene.served.channel(mallory) as theirs:
        invoke = theirs.unary_unary("/test.Echo/Unary")
        for wave in range(10):
            calls = [
                invoke.future(
                    b"",
                    metadata=(("authorization", f"Bearer {head}.{payload}.{wave:02}{number:02}{'A' * 82}"),),
                    timeout=LIMIT_S,
                )
                for number in range(80)
            ]
            scene.good(token=token)
            codes = [call.code() for call in calls]
            # A hundred streams a connection: what goes beyond is turned away below the gate.
            assert set(codes) <= {UNAUTHENTICATED, UNAVAILABLE}
            refused += codes.count(UNAUTHENTICATED)
    assert refused > 100
    assert len(scene.world.cache) == 1
    assert scene.world.cache._flights == {}
    assert scene.world.audit.denials == ["TOKEN_INVALID"] * refused


def test_many_first_uses_of_one_token_are_one_verification(kind, service_leaf, trainer):
    outcomes = []
    world = World()
    world.cache = TokenCache(observe=outcomes.append)
    world.gate._cache = world.cache
    with serve(kind, world, service_leaf) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        text = world.token(trainer)
        invoke = channel.unary_unary("/test.Echo/Open")
        ready = threading.Barrier(4)

        def burst():
            ready.wait(LIMIT_S)
            calls = [
                invoke.future(b"", metadata=(("authorization", f"Bearer {text}"),), timeout=LIMIT_S) for _ in range(15)
            ]
            results.extend(call.code() for call in calls)

        results: list[grpc.StatusCode] = []
        threads = [threading.Thread(target=burst) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
        assert results == [grpc.StatusCode.OK] * 60
        assert outcomes.count("miss") == 1
        scene.good()
        assert outcomes.count("miss") == 2
