"""Health's Watch: mutual TLS is all that it needs, it holds nothing, and it ends with its peer's right."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2

from casemate.errors import Reason
from casemate.gate.core.gate import WATCHES
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.records import RevocationKind
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.options import MAXIMUM_CONCURRENT_CALLS
from tests.gate.adapter_world import DIGITS, UNAUTHENTICATED, kind, mallory, refusal, service_leaf, trainer
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.test_adapters_streams import end_of_right, short
from tests.gate.world import DOMAIN, SetClock, World, thumbprint_of

__all__ = ["kind", "mallory", "service_leaf", "short", "trainer"]  # fixtures

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def served(kind, service_leaf):
    with serve(kind, World(), service_leaf) as served:
        yield served


def watch(channel):
    return channel.unary_stream(
        "/grpc.health.v1.Health/Watch", response_deserializer=health_pb2.HealthCheckResponse.FromString
    )(b"", timeout=3 * LIMIT_S)


@pytest.mark.parametrize("ending", ["certificate", "notAfter", "its name"])
def test_a_watch_ends_with_the_right_of_its_peer_and_says_why(served, trainer, mallory, short, ending):
    world, holder = served.world, short if ending == "notAfter" else trainer
    with served.channel(holder) as channel, served.channel(mallory) as other:
        ours, theirs = watch(channel), watch(other)
        assert (next(ours).status, next(theirs).status) == (SERVING, SERVING)
        if ending == "its name":
            world.revoke(RevocationKind.SPIFFE_ID, f"spiffe://{DOMAIN}/t/acme/trainer")
            expected = UNAUTHENTICATED, Reason.PEER_REFUSED
        else:
            expected = end_of_right(world, holder, ending)
        assert refusal(next, ours) == expected
        assert refusal(next, watch(channel))[0] is UNAUTHENTICATED  # nor does it begin again
        assert world.audit.denials[0] == expected[1].value
        if ending != "notAfter":  # by the clock of the gate the other's ended as well
            assert theirs.is_active()
            assert next(watch(other)).status == SERVING


def test_who_lost_its_certificate_finds_a_watched_channel_unavailable_and_the_audit_says_why(
    kind, service_leaf, trainer, mallory
):
    """The channels that we make watch health: the connection is taken for bad before a call could be refused on it."""
    world = World()
    with serve(kind, world, service_leaf) as served, ExitStack() as stack:
        theirs, others = (
            stack.enter_context(
                RotatingChannel(
                    target=f"127.0.0.1:{served.port}", service_name="datasets", source=CertificateSource(leaf)
                )
            )
            for leaf in (trainer, mallory)
        )
        assert [asked(theirs, world, trainer), asked(others, world, mallory)] == ["OK", "OK"]
        world.revoke(RevocationKind.CERTIFICATE, thumbprint_of(trainer))
        # A call of the very moment may still be told so itself.
        until(lambda: asked(theirs, world, trainer) not in {"OK", "UNAUTHENTICATED"})
        assert {asked(theirs, world, trainer) for _ in range(3)} == {"UNAVAILABLE"}
        assert asked(others, world, mallory) == "OK"
        told = [event for event in world.audit.events if event.method == "/grpc.health.v1.Health/Watch"]
        assert {(event.reason, event.spiffe_id) for event in told} == {
            ("PEER_REFUSED", f"spiffe://{DOMAIN}/t/acme/trainer")
        }


def asked(channel, world, leaf):
    """The code that a call ends by."""
    try:
        channel.unary_unary("/test.Echo/Unary")(
            DIGITS.SerializeToString(), metadata=bearer(world.token(leaf)), timeout=LIMIT_S
        )
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def test_a_watch_goes_on_while_the_feed_is_silent_and_through_news_of_others(served, trainer):
    world = served.world
    with served.channel(trainer) as channel:
        ours = watch(channel)
        assert next(ours).status == SERVING
        world.revoke(RevocationKind.CERTIFICATE, "x" * 43)
        world.clock.wall_offset = -world.clock.offset
        end_of_right(world, trainer, "stale")
        assert refusal(served.call, channel, token=world.token(trainer))[1] is Reason.TRUST_STALE
        assert next(watch(channel)).status == SERVING
        assert ours.is_active()
        assert world.audit.denials == ["TRUST_STALE"]


def test_watchers_hold_no_place_and_no_thread(kind, service_leaf, trainer):
    world = World(quota=LocalQuota(clock=SetClock(), shares=Shares(caller_concurrency=1, tenant_concurrency=1)))
    with serve(kind, world, service_leaf, threads=2) as served, served.channel(trainer) as channel:
        watches = [watch(channel) for _ in range(20)]
        assert {next(each).status for each in watches} == {SERVING}
        assert world.gate._quota.running == 0
        assert served.call(channel, token=world.token(trainer)).version
        for each in watches:
            each.cancel()
        assert served.health(channel).status == SERVING


def test_watches_of_one_tenant_leave_calls_to_the_others(kind, service_leaf, trainer, leaf):
    """A server takes 1,024 calls at once: all of them would be watches of whoever opens so many."""
    theirs, world, most = leaf("client", tenant="globex", name="flood"), World(), WATCHES.tenant_concurrency
    with serve(kind, world, service_leaf) as served, ExitStack() as channels:
        quiet = channels.enter_context(served.channel(trainer))
        floods = [channels.enter_context(served.channel(theirs)) for _ in range(3)]
        watches = [watch(floods[number % 3]) for number in range(most)]
        assert {next(each).status for each in watches} == {SERVING}
        assert refusal(next, watch(floods[0])) == (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.RATE_LIMITED)
        ours = watch(quiet)
        assert next(ours).status == SERVING
        assert served.call(quiet, token=world.token(trainer)).version
        watches.pop().cancel()
        until(lambda: world.gate._watches.running == most)  # the other's is one of them
        assert next(watch(floods[0])).status == SERVING
    assert 3 * most < MAXIMUM_CONCURRENT_CALLS


def until(happened):
    for _ in range(int(LIMIT_S * 100)):
        if happened():
            return
        threading.Event().wait(0.01)
    pytest.fail("it did not happen")


def test_a_watch_that_its_peer_ends_is_forgotten(service_leaf, trainer):
    with serve("sync", World(), service_leaf) as served, served.channel(trainer) as channel:
        watches = [watch(channel) for _ in range(5)]
        assert {next(each).status for each in watches} == {SERVING}
        watched = watched_of(served)
        assert len(watched) == 5
        for each in watches:
            each.cancel()
        until(lambda: not watched)


def watched_of(served):
    """What the gate's watchdog looks at."""
    (watchdog,) = (
        callback.__self__
        for callback in served.world.trust._callbacks
        if type(callback.__self__).__name__ == "Watchdog"
        and callback.__self__._watched is not None
        and any(type(each).__name__ == "_Watching" for each in callback.__self__._watched.values())
    )
    return watchdog._watched
