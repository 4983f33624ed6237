"""Attacks by what a well-signed token says, when it says it, and by how many come at once."""

from __future__ import annotations

import json
import threading
from datetime import timedelta

import grpc
import pytest

from casemate.errors import Reason
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.records import RevocationKind
from tests.gate.attacks.forge import claims_of, signed_payload
from tests.gate.attacks.scene import DENIED, NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, Scene
from tests.gate.served import LIMIT_S, serve
from tests.gate.world import AUDIENCE, ISSUER, TokenMint, World, grant, thumbprint_of

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


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RevocationKind.CLIENT, "acme-frontend"),
        (RevocationKind.CLIENT, "acme-gateway"),
        (RevocationKind.TOKEN, "first"),
        (RevocationKind.TOKEN, "second"),
    ],
)
def test_a_token_on_behalf_of_somebody_ends_with_each_that_speaks_and_each_token_on_the_way(scene, kind, value):
    chain = {"sub": "acme-gateway", "jti": "second", "act": {"sub": "acme-frontend", "jti": "first"}}
    given = signed_payload(scene, claims_of(scene, sub="idp:alice", act=chain))
    scene.good(token=given)
    moment = {"not_before": scene.world.clock.now()} if kind is RevocationKind.CLIENT else {}
    scene.world.revoke(kind, "another", **moment)
    scene.good(token=given)
    scene.world.revoke(kind, value, **moment)
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
