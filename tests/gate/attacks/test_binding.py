"""Attacks with real tokens: stolen, cached, revoked, outlived."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from datetime import timedelta

import grpc
import pytest

from casemate.auth.v1 import trust_service_pb2_grpc
from casemate.client.interceptors import BearerInterceptor
from casemate.errors import Reason
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.records import RemovedGrant, Revocation, RevocationKind
from casemate.gate.core.trust import TrustGap, TrustSnapshot, TrustState
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.registry import registered
from casemate.transport.server import build_server
from casemate.transport.status import from_rpc_error
from tests.gate.attacks.forge import claims_of, signed_payload
from tests.gate.attacks.scene import DENIED, NOT_FOUND, UNAUTHENTICATED, UNAVAILABLE, Scene
from tests.gate.served import LIMIT_S, PARSED, serve
from tests.gate.test_adapters import Talk
from tests.gate.test_trust import ScriptedAuth, news
from tests.gate.world import DOMAIN, ISSUER, SetClock, TokenMint, World, grant, thumbprint_of

MISMATCH = Reason.CERTIFICATE_MISMATCH


@pytest.mark.parametrize("warmed", [False, True])
def test_a_stolen_token_from_another_certificate(scene, token, mallory, leaf, warmed):
    if warmed:
        scene.good(token=token)
    for thief in (mallory, leaf("client", tenant="globex", name="thief"), leaf("service", service="inference")):
        with scene.served.channel(thief) as theirs:
            scene.unauthenticated(MISMATCH, channel=theirs, token=token)
    assert {event.spiffe_id for event in scene.world.audit.events if event.decision == "denied"} == {
        f"spiffe://{DOMAIN}/t/acme/mallory",
        f"spiffe://{DOMAIN}/t/globex/thief",
        f"spiffe://{DOMAIN}/svc/inference",
    }
    scene.good(token=token)
    with scene.served.channel(mallory) as theirs:
        scene.good(channel=theirs, token=scene.world.token(mallory))


def test_a_token_that_is_bound_to_nothing(scene):
    scene.unauthenticated(token=signed_payload(scene, claims_of(scene, cnf=...)))
    thumbprint = claims_of(scene)["cnf"]["x5t#S256"]
    for odd in (
        *({}, {"jkt": thumbprint}, {"x5t#S256": thumbprint, "jkt": thumbprint}, {"x5t": thumbprint}, thumbprint),
        *([thumbprint], None, {"x5t#S256": ""}, {"x5t#S256": [thumbprint]}, {"x5t#S256": f"{thumbprint}="}),
    ):
        scene.unauthenticated(token=signed_payload(scene, claims_of(scene, cnf=odd)))
    scene.good(token=signed_payload(scene, claims_of(scene)))


class Holder:
    """A client's tokens, for the certificate that it has now."""

    def __init__(self, world, leaf):
        self.world, self.leaf, self.asked, self.held = world, leaf, 0, None

    def metadata(self, _audience):
        if self.held is None:
            self.asked += 1
            self.held = self.world.token(self.leaf)
        return (("authorization", f"Bearer {self.held}"),)

    def present_metadata(self, audience):
        return self.metadata(audience) if self.held is not None else None

    def forget_tokens(self):
        self.held = None


def test_a_renewed_certificate_needs_a_token_of_its_own_and_the_client_gets_one(scene, leaf):
    before = leaf("client", tenant="acme", name="renewing")
    after = leaf("client", tenant="acme", name="renewing")
    holder = Holder(scene.world, before)
    with scene.served.channel(before) as channel:
        assert scene.served.call(grpc.intercept_channel(channel, BearerInterceptor(holder, audience="d"))).version
    holder.leaf = after
    with scene.served.channel(after) as channel:
        renewed = grpc.intercept_channel(channel, BearerInterceptor(holder, audience="d"))
        scene.refused(UNAUTHENTICATED, MISMATCH, channel=renewed, metadata=())
        while holder.held is not None:  # grpcio tells of a call's end from a thread of its own
            threading.Event().wait(0.01)
        assert scene.served.call(renewed, metadata=()).version == PARSED
        assert holder.asked == 2


def test_tokens_that_begin_alike_are_judged_each_alone(scene):
    now = claims_of(scene)
    texts = [signed_payload(scene, {**now, "jti": f"token-{number}", "scope": scope}) for number, scope in (
        (1, "datasets.read"), (2, "log.read"), (3, "datasets.read"),
    )]  # fmt: skip
    assert len({text[:200] for text in texts}) == 1
    scene.good(token=texts[0])
    scene.refused(DENIED, Reason.INSUFFICIENT_SCOPE, token=texts[1])
    forged = texts[2][:-20] + texts[0][-20:]
    scene.unauthenticated(token=forged)
    scene.good(token=texts[2])
    assert len(scene.world.cache) == 3


def test_a_scope_is_not_carried_from_one_method_to_another(scene, token):
    scene.good(token=token)
    scene.refused(DENIED, Reason.INSUFFICIENT_SCOPE, method="Other", token=token, audited="INSUFFICIENT_SCOPE")
    scene.good(method="Other", token=scene.world.token(scene.trainer, scope="log.read"))


def test_a_cached_token_ends_with_its_exp_however_often_it_is_used(scene):
    text = scene.world.token(scene.trainer)
    for _ in range(42):
        scene.good(token=text)
        scene.world.clock.advance(seconds=7)
        scene.world.hear()
    # Verified in full not a minute ago: what is remembered of it would still be trusted, but for its exp.
    scene.good(token=text)
    scene.world.clock.advance(seconds=7)
    scene.world.hear()
    for _ in range(3):
        scene.unauthenticated(Reason.TOKEN_EXPIRED, token=text)
    scene.good()


def test_a_token_in_use_ends_when_its_key_is_removed(scene, token):
    for _ in range(20):
        scene.good(token=token)
        scene.world.clock.advance(seconds=1)
    scene.world.publish(keys=())
    for _ in range(20):
        scene.unauthenticated(token=token)
        scene.world.clock.advance(seconds=1)
    scene.world.publish()
    scene.good(token=token)


REVOKED_BY = {
    RevocationKind.TOKEN: {"jti": "revoked"},
    RevocationKind.SESSION: {"sid": "revoked"},
    RevocationKind.CLIENT: {"client_id": "revoked"},
    RevocationKind.SUBJECT: {"sub": "revoked"},
    RevocationKind.KEY: {},
    RevocationKind.CERTIFICATE: {},
}


@pytest.mark.parametrize("by", REVOKED_BY)
def test_a_revocation_reaches_every_warm_replica_with_its_next_call(kind, service_leaf, trainer, mallory, by):
    """By counting: the first call after the news is refused. How fast news travels is measured in the benches."""
    with ExitStack() as stack:
        worlds = [World() for _ in range(3)]
        for world in worlds:
            world.mint = worlds[0].mint
            world.publish()
        scenes = []
        for world in worlds:
            served = stack.enter_context(serve(kind, world, service_leaf))
            scenes.append(Scene(served, stack.enter_context(served.channel(trainer)), trainer, kind))
        text = worlds[0].token(trainer, **REVOKED_BY[by])
        other = worlds[0].token(mallory, sid="another", client_id="another", sub="another")
        values = {
            RevocationKind.KEY: worlds[0].mint.key.kid,
            RevocationKind.CERTIFICATE: thumbprint_of(trainer),
        }
        for scene in scenes:
            for _ in range(3):
                scene.good(token=text)
            scene.world.revoke(by, values.get(by, "revoked"))
            scene.unauthenticated(Reason.TOKEN_REVOKED, token=text)
            if by is not RevocationKind.KEY:
                with scene.served.channel(mallory) as theirs:
                    scene.good(channel=theirs, token=other)


def test_a_revocation_that_auth_tells_ends_a_warm_token_at_three_replicas(kind, leaf, service_leaf, trainer):
    """By auth's feed. Within five seconds, as the row asks; how long it takes is in `make bench-auth`."""
    scripted, mint = ScriptedAuth(), TokenMint()
    feeding = build_server(
        source=CertificateSource(leaf("service", service="auth")),
        services=[registered(trust_service_pb2_grpc.add_TrustServiceServicer_to_server, scripted)],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=timedelta(0),
    )
    feeding.start()
    follower = CertificateSource(leaf("service", service="inference"))
    everything = TrustSnapshot.build(epoch="told", sequence=1, issuer=ISSUER, keys=(mint.key,), grants=(grant(),))
    with ExitStack() as stack:
        stack.callback(feeding.stop, timedelta(0))
        stack.callback(lambda: [watch.tell(None) for watch in scripted.begun])
        replicas = []
        for _ in range(3):
            world = World()
            world.mint = mint
            target = f"127.0.0.1:{feeding.port}"
            channel = stack.enter_context(RotatingChannel(target=target, service_name="auth", source=follower))
            feed = TrustFeed(channel, world.trust, world.clock)
            feed.start()
            stack.callback(feed.close)
            watch = scripted.next()
            watch.tell(news(everything, epoch="told"))
            assert feed.wait_ready(timedelta(seconds=LIMIT_S))
            served = stack.enter_context(serve(kind, world, service_leaf))
            replicas.append((Scene(served, stack.enter_context(served.channel(trainer)), trainer, kind), watch))
        text = replicas[0][0].world.token(trainer, jti="stolen")
        for scene, _watch in replicas:
            scene.good(token=text)
        revocation = Revocation(id="r", kind=RevocationKind.TOKEN, value="stolen")
        for scene, watch in replicas:
            watch.tell(news(changes=[revocation], epoch="told", sequence=2))
            until, code = time.monotonic() + 5, None
            while code is None and time.monotonic() < until:
                try:
                    scene.served.call(scene.channel, token=text)
                except grpc.RpcError as error:
                    code = error.code(), from_rpc_error(error).reason
            assert code == (UNAUTHENTICATED, Reason.TOKEN_REVOKED)
            scene.good()


def test_news_that_stops_refuses_the_sensitive_first_then_all_and_never_as_unauthenticated(scene):
    """Also what happens when auth is down: the feed is silent, the keys are warm."""
    world = scene.world
    text = signed_payload(scene, claims_of(scene))
    scene.good(token=text)
    world.clock.advance(seconds=6)
    scene.good(token=text, method="Sensitive")
    world.clock.advance(seconds=25)
    scene.refused(UNAVAILABLE, Reason.TRUST_STALE, token=text, method="Sensitive", audited="TRUST_STALE")
    scene.good(token=text)
    world.clock.advance(seconds=270)  # 301 s, and the token has expired meanwhile: that is not what is said
    scene.refused(UNAVAILABLE, Reason.TRUST_STALE, token=text, audited="TRUST_STALE")
    assert scene.served.health(scene.channel).status == 1
    world.hear()
    scene.good()


def test_news_that_does_not_follow_or_comes_again_changes_nothing(scene, token):
    world = scene.world
    present = world.trust.current
    for epoch, sequence in (("two", present.sequence + 1), ("one", present.sequence), ("one", present.sequence - 1)):
        with pytest.raises(TrustGap):
            world.trust.apply_delta((), epoch=epoch, sequence=sequence)
    with pytest.raises(TrustGap):
        world.trust.confirm(epoch="one", sequence=present.sequence + 1)
    assert world.trust.current is present
    scene.good(token=token)
    world.trust.apply_delta((), epoch="one", sequence=present.sequence + 1)
    scene.good(token=token)


def test_a_feed_from_another_service_than_auth_is_not_listened_to(kind, leaf, trainer):
    """The other end proves to be `datasets`, holds a certificate of our authority, and speaks the protocol."""
    follower = CertificateSource(leaf("service", service="inference"))

    def heard(name):
        state = TrustState()
        with (
            serve(kind, World(), leaf("service", service=name)) as served,
            RotatingChannel(target=f"127.0.0.1:{served.port}", service_name="auth", source=follower) as channel,
        ):
            feed = TrustFeed(channel, state, SetClock(), longest_wait=timedelta(milliseconds=20))
            feed.start()
            ready = feed.wait_ready(timedelta(milliseconds=500))
            feed.close()
            return ready, served.world.audit.denials

    ready, seen = heard("datasets")
    assert (ready, seen) == (False, [])  # not even asked
    ready, seen = heard("auth")
    assert not ready  # it serves no feed,
    assert seen  # but it was asked: the name alone made the difference


def test_garbage_and_one_busy_client_leave_memory_and_the_others_as_they_were(kind, service_leaf, trainer):
    outcomes = []
    world = World()
    world.cache = TokenCache(max_entries=50, max_per_client=8, observe=outcomes.append)
    world.gate._cache = world.cache
    with serve(kind, world, service_leaf) as served, served.channel(trainer) as channel:
        scene = Scene(served, channel, trainer, kind)
        others = [world.token(trainer, client_id=f"other-{number}") for number in range(5)]
        for text in others:
            scene.good(token=text)
        for number in range(300):
            scene.good(token=world.token(trainer, client_id="busy"))
            if number % 10 == 0:
                scene.unauthenticated(token=f"{others[0][:-40]}{number:040}")
        assert len(world.cache) == 5 + 8
        outcomes.clear()
        for text in others:
            scene.good(token=text)
        assert outcomes == ["hit"] * 5


ENDINGS = {
    "revoked": (lambda world: world.revoke(RevocationKind.TOKEN, "the-token"), UNAUTHENTICATED, Reason.TOKEN_REVOKED),
    "expired": (lambda world: (world.clock.advance(minutes=5), world.hear()), UNAUTHENTICATED, Reason.TOKEN_EXPIRED),
    "denied": (
        lambda world: world.revoke(RevocationKind.SPIFFE_ID, f"spiffe://{DOMAIN}/t/acme/trainer"),
        UNAUTHENTICATED,
        Reason.PEER_REFUSED,
    ),
    "grant taken": (lambda world: world.publish(grants=()), NOT_FOUND, Reason.RESOURCE_NOT_FOUND),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_open_stream_ends_when_its_right_does_although_its_peer_is_silent(scene, trainer, mallory, ending):
    event, code, reason = ENDINGS[ending]
    world = scene.world
    talk = Talk(scene.served, scene.channel, world.token(trainer, jti="the-token"))
    assert talk.say() == PARSED
    with scene.served.channel(mallory) as other:
        staying = Talk(scene.served, other, world.token(mallory))
        assert staying.say() == PARSED
        event(world)
        assert talk.refused() == (code, reason)
        if ending in {"revoked", "denied"}:
            assert staying.say() == PARSED
            staying.end()
        else:
            assert staying.refused() == (code, reason)
    assert world.audit.denials[0] == ("GRANT_MISSING" if ending == "grant taken" else reason.value)
    world.publish()
    scene.good()


def test_a_removed_grant_is_missed_with_the_next_call_of_a_warm_token(scene, token):
    scene.good(token=token)
    scene.world.publish(grants=())
    scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, audited="GRANT_MISSING")
    scene.world.publish(grants=(grant(caller="t/acme/mallory"),))
    scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, audited="GRANT_MISSING")
    scene.world.publish(grants=(grant(caller="t/acme/trainer"), grant(id="g2", resource="dataset/*")))
    scene.good(token=token)
    for number, gone in enumerate(("grant-1", "g2"), start=scene.world.sequence + 1):  # as the feed tells it
        scene.good(token=token)
        scene.world.trust.apply_delta([RemovedGrant(gone)], epoch="one", sequence=number)
    scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, audited="GRANT_MISSING")
