"""The decision itself, without a server."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import pytest

from casemate.errors import (
    CasemateError,
    Exhausted,
    NotFound,
    NotServed,
    PermissionDenied,
    Reason,
    Unauthenticated,
    Unavailable,
)
from casemate.gate.core.caller import Caller
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.records import Effect, RevocationKind
from casemate.gate.core.trust import TrustState
from tests.gate.world import ECHO, SetClock, TokenMint, World, auth_context, bearer, grant, thumbprint_of


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture(scope="session")
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


@pytest.fixture(scope="session")
def mallory(leaf):
    return leaf("client", tenant="acme", name="mallory")


def call(world: World, leaf, metadata, *, method="Unary", resource="dataset/digits", served=True) -> Caller:
    admission = world.gate.at_headers(ECHO + method, metadata, request_id="r", served=served)
    try:
        caller = world.gate.at_message(admission, auth_context(leaf))
        world.gate.authorize(admission, caller, resource)
    except CasemateError as error:
        world.gate.finish(admission, error.code.value)
        raise
    world.gate.finish(admission, "OK")
    return caller


def test_a_bound_token_with_scope_and_grant_is_allowed(world, trainer):
    caller = call(world, trainer, bearer(world.token(trainer)))
    assert (caller.tenant, caller.path, caller.service) == ("acme", "t/acme/trainer", None)
    assert caller.certificate_thumbprint == thumbprint_of(trainer)
    assert world.audit.events == []  # its policy does not ask for allowed calls


def test_an_allowed_call_is_audited_where_the_policy_asks(world, trainer):
    call(world, trainer, bearer(world.token(trainer)), method="Open")
    (event,) = world.audit.events
    assert (event.decision, event.outcome, event.key_exchange_group) == ("allowed", "OK", "X25519MLKEM768")


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), Reason.TOKEN_MISSING),
        ((("authorization", ""),), Reason.TOKEN_INVALID),
        ((("authorization", "Basic {token}"),), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer"),), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer  {token}"),), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer {token} "),), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer {token}"), ("authorization", "Bearer {token}")), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer x"), ("authorization", "Bearer {token}")), Reason.TOKEN_INVALID),
        ((("authorization", "Bearer {token}"), ("authorization-bin", b"x")), Reason.TOKEN_INVALID),
    ],
)
def test_metadata_with_anything_but_one_bearer_token_is_refused(world, trainer, metadata, reason):
    token = world.token(trainer)
    filled = [(key, value.replace("{token}", token) if isinstance(value, str) else value) for key, value in metadata]
    with pytest.raises(Unauthenticated) as refused:
        call(world, trainer, filled)
    assert refused.value.reason is reason
    assert world.audit.denials == [reason]
    call(world, trainer, [("authorization", f"bearer {token}")])


def test_a_stolen_token_is_refused_even_when_its_owner_warmed_the_cache(world, trainer, mallory):
    token = world.token(trainer)
    for _ in range(2):
        with pytest.raises(Unauthenticated) as refused:
            call(world, mallory, bearer(token))
        assert refused.value.reason is Reason.CERTIFICATE_MISMATCH
        call(world, trainer, bearer(token))
    assert len(world.cache) == 1


def test_a_scope_is_judged_on_every_call_of_a_cached_token(world, trainer):
    token = world.token(trainer)
    call(world, trainer, bearer(token), method="Open")
    with pytest.raises(PermissionDenied) as refused:
        call(world, trainer, bearer(token), method="Other")
    assert refused.value.reason is Reason.INSUFFICIENT_SCOPE
    call(world, trainer, bearer(world.token(trainer, scope="log.read")), method="Other")


@pytest.mark.parametrize(
    "grants",
    [
        (),
        (grant(tenant="globex"),),
        (grant(caller="t/acme/other"),),
        (grant(caller="t/acme"),),
        (grant(caller="t/acme/trainer/*"),),
        (grant(verb="push"),),
        (grant(resource="dataset/digit"),),
        (grant(resource="model/*"),),
        (grant(resource="*"),),
        (grant(), grant(id="no", effect=Effect.DENY, caller="*/*/*")),
        (grant(id="no", effect=Effect.DENY, caller="*/*/*"), grant()),
    ],
)
def test_a_missing_grant_is_not_found_like_an_absent_object(world, trainer, grants):
    token = bearer(world.token(trainer))
    world.publish(grants=grants)
    with pytest.raises(NotFound) as refused:
        call(world, trainer, token)
    absent = NotFound("a handler's own")
    assert (refused.value.reason, refused.value.public_message) == (absent.reason, absent.public_message)
    assert world.audit.denials == ["GRANT_MISSING"]
    world.publish(grants=(grant(resource="dataset/*"),))
    call(world, trainer, token)


def test_an_expired_grant_gives_nothing(world, trainer):
    token = bearer(world.token(trainer))
    world.publish(grants=(grant(expires_at=world.clock.now() + timedelta(seconds=20)),))
    call(world, trainer, token)
    world.clock.advance(seconds=21)
    with pytest.raises(NotFound):
        call(world, trainer, token)


def test_callers_of_another_tenant_are_meant_only_by_their_exact_path(world, leaf):
    visitor = leaf("client", tenant="globex", name="visitor")
    token = bearer(world.token(visitor))
    for pattern in ("*/*/*", "t/globex/*", "t/*/visitor"):
        world.publish(grants=(grant(caller=pattern),))
        with pytest.raises(NotFound):
            call(world, visitor, token)
    world.publish(grants=(grant(caller="t/globex/visitor"),))
    call(world, visitor, token)


def test_a_cached_token_is_refused_from_exp_on(world, trainer):
    token = bearer(world.token(trainer))
    call(world, trainer, token)
    world.clock.advance(seconds=297)
    world.hear()
    call(world, trainer, token)
    world.clock.advance(seconds=3)
    with pytest.raises(Unauthenticated) as refused:
        call(world, trainer, token)
    assert refused.value.reason is Reason.TOKEN_EXPIRED
    assert len(world.cache) == 0


def test_a_cached_token_is_refused_when_its_key_is_removed(world, trainer):
    token = bearer(world.token(trainer))
    call(world, trainer, token)
    world.publish(keys=(TokenMint().key,))
    with pytest.raises(Unauthenticated):
        call(world, trainer, token)
    world.publish()
    call(world, trainer, token)


def test_a_key_removed_while_a_token_is_verified_does_not_live_on_in_the_cache(world, trainer):
    """The news comes after the gate took the keys, and before it keeps what they verified."""

    class NewsWhileLooking(TrustState):
        looked = False

        @property
        def current(self):
            taken = self._taken
            if self.looked:
                self.looked = False
                world.publish(keys=(TokenMint().key,))
            return taken

        @current.setter
        def current(self, snapshot):
            self._taken = snapshot

    world.trust = world.gate.trust = NewsWhileLooking()
    world.publish()
    token = bearer(world.token(trainer))
    world.trust.looked = True
    with suppress(Unauthenticated):  # this call may have been first, or the news may have been
        call(world, trainer, token)
    with pytest.raises(Unauthenticated):
        call(world, trainer, token)
    world.publish()
    call(world, trainer, token)


@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        (RevocationKind.TOKEN, "jti"),
        (RevocationKind.SESSION, "sid"),
        (RevocationKind.CLIENT, "client_id"),
        (RevocationKind.SUBJECT, "sub"),
    ],
)
def test_a_cached_token_is_refused_when_it_is_revoked(world, trainer, kind, claim):
    claims = {"jti": "the-token", "sid": "the-session", "client_id": "the-client", "sub": "the-subject"}
    token = bearer(world.token(trainer, **claims))
    call(world, trainer, token)
    world.revoke(kind, "another")
    call(world, trainer, token)
    world.revoke(kind, claims[claim], not_before=world.clock.now())
    with pytest.raises(Unauthenticated) as refused:
        call(world, trainer, token)
    assert refused.value.reason is Reason.TOKEN_REVOKED


def test_a_client_revoked_at_a_moment_gets_along_with_tokens_issued_later(world, trainer):
    moment = world.clock.now()
    world.revoke(RevocationKind.CLIENT, "acme-trainer", not_before=moment)
    with pytest.raises(Unauthenticated):
        call(world, trainer, bearer(world.token(trainer)))
    world.clock.advance(seconds=2)
    call(world, trainer, bearer(world.token(trainer)))


def test_a_revoked_certificate_or_name_is_refused_on_every_kind_of_method(world, trainer):
    token = bearer(world.token(trainer))
    call(world, trainer, (), method="Peer", resource=None)
    for kind, value in (
        (RevocationKind.CERTIFICATE, thumbprint_of(trainer)),
        (RevocationKind.SPIFFE_ID, "spiffe://casemate.internal/t/acme/trainer"),
    ):
        world.revoke(kind, value)
        with pytest.raises(Unauthenticated):
            call(world, trainer, token)
        with pytest.raises(Unauthenticated) as refused:
            call(world, trainer, (), method="Peer", resource=None)
        assert refused.value.reason is Reason.PEER_REFUSED
    world.publish()
    call(world, trainer, token)


def test_stale_trust_is_unavailable_sooner_for_sensitive_methods(world, trainer):
    token = bearer(world.token(trainer))
    world.clock.advance(seconds=31)
    call(world, trainer, token, method="Open")
    with pytest.raises(Unavailable) as refused:
        call(world, trainer, token, method="Sensitive")
    assert refused.value.reason is Reason.TRUST_STALE
    world.hear()
    call(world, trainer, token, method="Sensitive")


def test_before_any_news_every_method_but_health_is_unavailable(trainer):
    world = World()
    token = bearer(world.token(trainer))
    world.gate.trust._read_at = None
    with pytest.raises(Unavailable):
        call(world, trainer, token)
    admission = world.gate.at_headers("/grpc.health.v1.Health/Check", (), request_id="r")
    assert world.gate.at_message(admission, auth_context(trainer)).path == "t/acme/trainer"


def test_an_unknown_method_tells_strangers_nothing(world, trainer, mallory):
    token = bearer(world.token(trainer))
    for method, served in (("Absent", True), ("Unary", False)):
        with pytest.raises(Unauthenticated):
            call(world, trainer, (), method=method, served=served)
        with pytest.raises(Unauthenticated):
            call(world, mallory, token, method=method, served=served)
        with pytest.raises(NotServed):
            call(world, trainer, token, method=method, served=served)


def test_a_method_for_services_refuses_other_peers(world, trainer, leaf):
    with pytest.raises(PermissionDenied) as refused:
        call(world, trainer, (), method="Services")
    assert refused.value.reason is Reason.CALLER_NOT_ALLOWED
    with pytest.raises(PermissionDenied):
        call(world, leaf("service", service="datasets"), (), method="Services")
    assert call(world, leaf("service", service="inference"), (), method="Services").service == "inference"


def test_a_caller_has_its_share_of_running_calls_and_no_more(trainer):
    clock = SetClock()
    world = World(quota=LocalQuota(clock=clock, shares=Shares(caller_concurrency=2)))
    token = bearer(world.token(trainer))
    running = [begun(world, trainer, token) for _ in range(2)]
    with pytest.raises(Exhausted):
        begun(world, trainer, token)
    begun(world, trainer, bearer(world.token(trainer, client_id="another")))
    world.gate.finish(running.pop(), "OK")
    call(world, trainer, token, method="Open")
    running.clear()  # a server dropped the call without a word: its place comes back all the same
    again = [begun(world, trainer, token) for _ in range(2)]
    assert len(again) == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [("UNAUTHENTICATED", True), ("PERMISSION_DENIED", True), ("RESOURCE_EXHAUSTED", True), ("OK", False)],
)
def test_a_handlers_denial_is_audited_whatever_its_method_and_no_other_end_is(world, trainer, code, told):
    admission = world.gate.at_headers(ECHO + "Unary", bearer(world.token(trainer)), request_id="r")
    world.gate.at_message(admission, auth_context(trainer))
    world.gate.finish(admission, code)
    assert [(event.decision, event.reason) for event in world.audit.events] == [("denied", code)] * told


def begun(world, leaf, metadata):
    admission = world.gate.at_headers(ECHO + "Open", metadata, request_id="r")
    world.gate.at_message(admission, auth_context(leaf))
    return admission


def test_a_token_in_a_thiefs_hands_takes_no_place_of_its_owner(trainer, mallory):
    world = World(quota=LocalQuota(clock=SetClock(), shares=Shares(caller_concurrency=1)))
    token = bearer(world.token(trainer))
    kept = [world.gate.at_headers(ECHO + "Open", token, request_id="r") for _ in range(5)]
    for admission in kept:
        with pytest.raises(Unauthenticated):
            world.gate.at_message(admission, auth_context(mallory))
    assert world.gate._quota.running == 0  # although none of them was finished
    admission = begun(world, trainer, token)
    with pytest.raises(Exhausted):
        begun(world, trainer, token)  # the owner's own does take it
    world.gate.finish(admission, "OK")


def test_a_caller_that_is_too_fast_is_told_when_to_come_again(trainer):
    world = World()
    clock = world.clock
    world.gate._quota = LocalQuota(clock=clock, shares=Shares(calls_per_second=0.5, burst=1))
    token = bearer(world.token(trainer))
    call(world, trainer, token, method="Open")
    with pytest.raises(Exhausted) as refused:
        call(world, trainer, token, method="Open")
    assert timedelta(0) < refused.value.retry_after <= timedelta(seconds=2)
    clock.advance(seconds=2)
    call(world, trainer, token, method="Open")


def test_a_running_stream_ends_when_its_grant_is_lost_or_its_token_ends(world, trainer):
    admission = world.gate.at_headers(ECHO + "Unary", bearer(world.token(trainer)), request_id="r")
    caller = world.gate.at_message(admission, auth_context(trainer))
    world.gate.authorize(admission, caller, "dataset/digits")
    world.gate.recheck(admission, caller)
    world.publish(grants=())
    with pytest.raises(NotFound):
        world.gate.recheck(admission, caller)
    world.publish()
    world.gate.recheck(admission, caller)
    world.publish(keys=())
    with pytest.raises(Unauthenticated):
        world.gate.recheck(admission, caller)
    world.publish()
    world.clock.advance(seconds=300)
    world.hear()
    with pytest.raises(Unauthenticated) as ended:
        world.gate.recheck(admission, caller)
    assert ended.value.reason is Reason.TOKEN_EXPIRED
