"""Both adapters, over real mutual TLS: what a caller sees, and what a handler never sees."""

from __future__ import annotations

import threading
from datetime import timedelta

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import Reason
from casemate.gate.adapters.bodies import LATE_CALLS
from casemate.gate.core.records import RevocationKind
from casemate.transport.status import from_rpc_error
from tests.gate.adapter_world import (
    DIGITS,
    UNAUTHENTICATED,
    Talk,
    channel,
    judged,
    kind,
    mallory,
    refusal,
    served,
    service_leaf,
    trainer,
)
from tests.gate.served import ABORTS, LIMIT_S, PARSED, RAISES, SECRET, serve
from tests.gate.world import TokenMint, World, bearer, grant

__all__ = ["channel", "kind", "mallory", "served", "service_leaf", "trainer"]  # fixtures


def test_a_good_call_reaches_its_handler_as_its_caller(served, channel, trainer):
    response, call = None, None
    invoke = channel.unary_unary("/test.Echo/Unary")
    response, call = invoke.with_call(
        DIGITS.SerializeToString(), metadata=bearer(served.world.token(trainer)), timeout=LIMIT_S
    )
    assert b"t/acme/trainer" in response
    assert "casemate-request-id" in dict(call.trailing_metadata())


def test_a_call_without_a_good_token_is_refused_and_reaches_no_handler(served, channel, trainer):
    world = served.world
    now = world.clock.now()
    expired = world.token(trainer, iat=int(now.timestamp()) - 300, exp=int(now.timestamp()))
    good = world.token(trainer)
    cases = [
        ({"token": ""}, Reason.TOKEN_MISSING),
        ({"token": "not.a.token"}, Reason.TOKEN_INVALID),
        ({"token": good + "="}, Reason.TOKEN_INVALID),
        ({"token": expired}, Reason.TOKEN_EXPIRED),
        ({"token": world.token(trainer, aud="inference")}, Reason.TOKEN_INVALID),
        ({"token": TokenMint().token(world.mint.claims(now=now, thumbprint="x" * 43))}, Reason.TOKEN_INVALID),
        ({"metadata": (*bearer(good), *bearer(good))}, Reason.TOKEN_INVALID),
        ({"metadata": (*bearer("x"), *bearer(good))}, Reason.TOKEN_INVALID),
    ]
    for arguments, reason in cases:
        assert refusal(served.call, channel, **arguments) == (UNAUTHENTICATED, reason)
    assert served.echo.entered == []
    assert len(world.audit.denials) == len(cases)
    assert served.call(channel, token=good).version == PARSED


def test_a_stolen_token_is_refused_also_after_its_owner_used_it(served, channel, trainer, mallory):
    token = served.world.token(trainer)
    with served.channel(mallory) as theirs:
        for _ in range(2):
            assert refusal(served.call, theirs, token=token) == (UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)
            assert served.call(channel, token=token).signer_key_id == "t/acme/trainer"
    assert len(served.echo.entered) == 2


def test_a_missing_scope_is_denied(served, channel, trainer):
    expected = (grpc.StatusCode.PERMISSION_DENIED, Reason.INSUFFICIENT_SCOPE)
    assert refusal(served.call, channel, "Other", token=served.world.token(trainer)) == expected
    assert served.call(channel, "Other", token=served.world.token(trainer, scope="log.read")).version == PARSED


def test_a_missing_grant_looks_exactly_like_an_absent_object(served, channel, trainer):
    token = served.world.token(trainer)
    answers = []
    for dataset in ("faces", "nowhere"):
        with pytest.raises(grpc.RpcError) as raised:
            served.call(channel, token=token, request=GetVersionRequest(dataset=dataset))
        error = raised.value
        answers.append((error.code(), error.details(), from_rpc_error(error).reason, len(error.trailing_metadata())))
    assert answers[0] == answers[1]
    assert answers[0][0] is grpc.StatusCode.NOT_FOUND
    served.world.publish(grants=(grant(resource="dataset/faces"),))
    assert served.call(channel, token=token, request=GetVersionRequest(dataset="faces", version=9)).version == 9


def test_unknown_methods_tell_only_proven_callers_that_they_are_unknown(served, channel, trainer, mallory):
    token = served.world.token(trainer)
    for method in ("Absent", "NoPolicy"):
        assert refusal(served.call, channel, method) == (UNAUTHENTICATED, Reason.TOKEN_MISSING)
        assert refusal(served.call, channel, method, token=token)[0] is grpc.StatusCode.UNIMPLEMENTED
        with served.channel(mallory) as theirs:
            assert refusal(served.call, theirs, method, token=token)[0] is UNAUTHENTICATED
    assert served.echo.entered == []


def test_a_refusal_is_answered_although_the_body_never_arrives(served, channel, trainer, mallory):
    token = served.world.token(trainer)
    never = threading.Event()

    def nothing():
        never.wait(6 * LIMIT_S)  # longer than the call may take
        yield b""

    def open_call(channel, token):
        # To the server: the headers of a unary call, and then silence.
        return channel.stream_unary("/test.Echo/Unary")(nothing(), metadata=bearer(token)[1:], timeout=LIMIT_S)

    try:
        assert refusal(open_call, channel, "x.y.z")[0] is UNAUTHENTICATED
        with served.channel(mallory) as theirs:
            assert refusal(open_call, theirs, token) == (UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)
    finally:
        never.set()
    assert served.call(channel, token=token).version == PARSED


def test_a_body_that_does_not_arrive_in_time_ends_the_call(kind, service_leaf, trainer):
    never = threading.Event()

    def nothing():
        never.wait(6 * LIMIT_S)  # longer than the call may take
        yield b""

    with serve(kind, World(), service_leaf, body_within=timedelta(milliseconds=100)) as served:
        token = served.world.token(trainer)
        with served.channel(trainer) as channel:
            try:
                with pytest.raises(grpc.RpcError) as ended:
                    channel.stream_unary("/test.Echo/Unary")(nothing(), metadata=bearer(token), timeout=LIMIT_S)
            finally:
                never.set()
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # The synchronous server can only reset a call that waits: it then says in the text what else is metadata.
            told = ended.value.details() if kind == "sync" else dict(ended.value.trailing_metadata())
            [(event, request_id)] = [(event.reason, event.request_id) for event in served.world.audit.events]
            assert (event, request_id in f"{told}") == ("DEADLINE_EXCEEDED", True)
            assert served.call(channel, token=token).version == PARSED


def test_bodies_that_never_arrive_do_not_hold_up_good_callers(service_leaf, trainer, mallory):
    never, ended = threading.Event(), threading.Semaphore(0)

    def nothing():
        never.wait(6 * LIMIT_S)  # longer than the call may take
        yield b""

    def silent_call(channel, token):
        call = channel.stream_unary("/test.Echo/Unary").future(nothing(), metadata=bearer(token), timeout=LIMIT_S)
        call.add_done_callback(lambda _call: ended.release())
        return call

    with serve("sync", World(), service_leaf, threads=LATE_CALLS + 3, body_within=timedelta(minutes=1)) as served:
        world = served.world
        with served.channel(mallory) as theirs, served.channel(trainer) as channel:
            silent = world.token(mallory, client_id="silent")
            try:
                # Every thread that one tenant may have.
                calls = [silent_call(theirs, silent) for _ in range(LATE_CALLS + 2)]
                assert served.call(channel, token=world.token(trainer)).version == PARSED
                assert all(ended.acquire(timeout=LIMIT_S) for _ in range(2))
                assert [call.code() for call in calls if call.done()] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
                more = silent_call(theirs, silent)
                reason = (more.code(), from_rpc_error(more.exception()).reason)
                assert reason == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED)
                assert served.call(channel, token=world.token(trainer)).version == PARSED
            finally:
                never.set()


def test_bytes_that_are_no_message_are_refused_without_a_word_about_ours(served, channel, trainer):
    token = served.world.token(trainer)
    with pytest.raises(grpc.RpcError) as raised:
        served.call(channel, token=token, raw=b"\xff\xff\xff")
    assert judged(raised.value) == (grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_FIELD)
    assert "GetVersion" not in raised.value.details()
    assert refusal(served.call, channel, token=token, request=GetVersionRequest())[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    assert served.call(channel, token=token).version == PARSED


def test_text_of_a_handlers_exception_never_leaves(served, channel, trainer):
    token = served.world.token(trainer)
    failing = GetVersionRequest(dataset="digits", version=RAISES)
    with pytest.raises(grpc.RpcError) as raised:
        served.call(channel, token=token, request=failing)
    assert judged(raised.value) == (grpc.StatusCode.INTERNAL, Reason.INTERNAL)
    stream = channel.unary_stream("/test.Echo/UnaryStream")(
        failing.SerializeToString(), metadata=bearer(token), timeout=LIMIT_S
    )
    with pytest.raises(grpc.RpcError) as streamed:
        list(stream)
    for error in (raised.value, streamed.value):
        everything = f"{error.details()}{error.trailing_metadata()}{error.debug_error_string()}"
        assert not any(part in everything for part in (SECRET, "hunter2", "ValueError"))


def test_a_handlers_own_status_reaches_the_caller(served, channel, trainer):
    with pytest.raises(grpc.RpcError) as raised:
        served.call(
            channel,
            token=served.world.token(trainer),
            request=GetVersionRequest(dataset="digits", version=ABORTS),
        )
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "own words")


def test_health_needs_a_certificate_and_nothing_else(served, channel):
    served.world.clock.advance(hours=1)  # no news for an hour: health still has to answer
    assert served.health(channel).status == 1
    assert served.health(channel, metadata=bearer("nonsense")).status == 1
    assert refusal(served.call, channel, "Open", token="x")[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("odd", ["two-uris", "no-uri", "no-eku", "wrong-domain", "ca-leaf"])
def test_an_odd_certificate_is_refused_even_where_no_token_is_asked_for(served, leaf, odd):
    with served.channel(leaf(odd)) as theirs:
        with pytest.raises(grpc.RpcError) as refused:
            served.call(theirs, "Peer")
        assert refused.value.code() in (UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE)
        if refused.value.code() is UNAUTHENTICATED:
            assert judged(refused.value)[1] is Reason.PEER_REFUSED
    with served.channel(leaf("sound")) as theirs:
        assert served.call(theirs, "Peer").signer_key_id == "t/acme/odd"


def test_a_method_for_services_takes_those_it_names(served, channel, leaf):
    denied = (grpc.StatusCode.PERMISSION_DENIED, Reason.CALLER_NOT_ALLOWED)
    assert refusal(served.call, channel, "Services") == denied
    with served.channel(leaf("service", service="inference")) as theirs:
        assert served.call(theirs, "Services").signer_key_id == "svc/inference"


def test_stale_trust_is_unavailable_and_never_unauthenticated(served, channel, trainer):
    token = served.world.token(trainer)
    served.world.clock.advance(seconds=31)
    stale = (grpc.StatusCode.UNAVAILABLE, Reason.TRUST_STALE)
    assert refusal(served.call, channel, "Sensitive", token=token) == stale
    assert served.call(channel, token=token).version == PARSED
    served.world.hear()
    assert served.call(channel, "Sensitive", token=token).version == PARSED


def test_while_the_audit_is_down_only_what_takes_rights_away_is_done_and_it_is_told(served, channel, trainer):
    world, token = served.world, served.world.token(trainer)
    world.audit.down = True
    assert refusal(served.call, channel, "Open", token=token)[0] is grpc.StatusCode.UNAVAILABLE
    assert served.echo.entered == []
    assert served.call(channel, "Revoke", token=token).version == PARSED
    assert refusal(served.call, channel, "Revoke")[0] is UNAUTHENTICATED  # it is judged as ever
    world.audit.down = False
    assert served.call(channel, "Open", token=token).version == PARSED
    told = [(event.method, event.decision) for event in world.audit.events]
    assert told[0] == ("/test.Echo/Open", "denied")
    assert ("/test.Echo/Revoke", "allowed") in told


def test_a_cached_token_ends_with_its_time_its_key_and_its_revocation(served, channel, trainer):
    world = served.world
    first = world.token(trainer, jti="first")
    assert served.call(channel, token=first).version == PARSED
    world.revoke(RevocationKind.TOKEN, "first")
    assert refusal(served.call, channel, token=first) == (UNAUTHENTICATED, Reason.TOKEN_REVOKED)
    second = world.token(trainer)
    assert served.call(channel, token=second).version == PARSED
    world.publish(keys=(TokenMint().key,))
    assert refusal(served.call, channel, token=second) == (UNAUTHENTICATED, Reason.TOKEN_INVALID)
    world.publish()
    assert served.call(channel, token=second).version == PARSED
    world.clock.advance(minutes=5)
    world.hear()
    assert refusal(served.call, channel, token=second) == (UNAUTHENTICATED, Reason.TOKEN_EXPIRED)


def test_all_four_kinds_of_method_are_served(served, channel, trainer):
    token = served.world.token(trainer)
    assert served.call(channel, token=token).version == PARSED
    assert served.stream(channel, "StreamUnary", iter([DIGITS, DIGITS]), token=token).version == 2 * PARSED
    talk = Talk(served, channel, token)
    assert [talk.say(), talk.say(), talk.end()] == [PARSED, PARSED, []]
    stream = channel.unary_stream("/test.Echo/UnaryStream")(
        DIGITS.SerializeToString(), metadata=bearer(token), timeout=LIMIT_S
    )
    assert b"t/acme/trainer" in next(stream)
    stream.cancel()
