"""The gate in front of an HTTP face: each request judged as the rpc that it stands for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
import pytest_asyncio

from casemate.errors import CasemateError
from casemate.gate.adapters.http import HttpGate
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.verifier import TokenVerifier
from casemate.transport.certificates import CertificateSource
from casemate.transport.http_messages import Answer, Request
from casemate.transport.http_protocol import HttpProtocols
from casemate.transport.https import HttpsServer
from tests.gate.faces import LIMIT_S, Faced, opened
from tests.gate.world import AUDIENCE, DOMAIN, ECHO, ISSUER, SetClock, World, thumbprint_of


@pytest_asyncio.fixture
async def serve(leaf):
    """`await serve(world)`: a face over that world's gate."""
    closing = []

    async def begin(world):
        gate, seen, world.raises = HttpGate(world.gate), [], None

        async def answer(call):
            seen.append(call.caller)
            if world.raises is not None:
                raise world.raises
            if "Then" in call.request.headers:
                call.narrow(ECHO + call.request.headers["Then"])
            return Answer(body=b"served")

        def refuse(error: CasemateError):
            return Answer(
                status=418, body=f"{error.code.value}/{error.reason.value}/{error.retry_after is not None}".encode()
            )

        async def answer_request(request: Request):
            return await gate.serve(request, ECHO + request.raw_path[1:], answer=answer, refuse=refuse)

        protocols = HttpProtocols(answer=answer_request, malformed=lambda status: Answer(status=status))
        source = CertificateSource(leaf("service", service="datasets"))
        server = HttpsServer(source=source, address="127.0.0.1:0", protocol=protocols)
        await server.start()
        face = Faced(world, server.port, seen)
        closing.append((face, server, protocols))
        return face

    yield begin
    for face, server, protocols in closing:
        await face.close()
        server.close()
        await protocols.drain(timedelta(0))
        await server.wait_closed(timedelta(0))


@pytest.fixture
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


@pytest.mark.parametrize("raises", [SystemExit("x"), ValueError("x"), asyncio.CancelledError("x")], ids=repr)
async def test_whatever_answers_a_request_raises_it_is_answered_and_the_next_is_served(serve, trainer, raises):
    world = World()
    face = await serve(world)
    line, token = await face.line(trainer), world.token(trainer)
    world.raises = raises
    assert await face.ask(line, "Open", token=token) == (418, "INTERNAL/INTERNAL/False")
    world.raises = None
    assert await face.ask(line, "Open", token=token) == (200, "served")
    assert [event.outcome for event in world.audit.events] == ["INTERNAL", "OK"]
    assert world.gate._quota.running == 0


async def test_a_method_for_peers_is_served_to_a_certificate_and_says_whose_it_is(serve, trainer):
    face = await serve(World())
    assert await face.ask(await face.line(trainer), "Peer") == (200, "served")
    (caller,) = face.seen
    assert (caller.path, caller.client_id) == ("t/acme/trainer", None)
    assert caller.certificate_thumbprint == thumbprint_of(trainer)


async def test_a_method_for_services_is_refused_to_others_and_the_denial_is_audited(serve, trainer, leaf):
    world = World()
    face = await serve(world)
    assert await face.ask(await face.line(trainer), "Services") == (418, "PERMISSION_DENIED/CALLER_NOT_ALLOWED/False")
    assert world.audit.denials == ["CALLER_NOT_ALLOWED"]
    assert await face.ask(await face.line(leaf("service", service="inference")), "Services") == (200, "served")


async def test_a_token_is_needed_where_the_policy_says_so_and_only_with_its_own_certificate(serve, trainer, leaf):
    world = World()
    face = await serve(world)
    token, line = world.token(trainer), await face.line(trainer)
    assert await face.ask(line, "Open") == (418, "UNAUTHENTICATED/TOKEN_MISSING/False")
    assert await face.ask(line, "Open", token=token) == (200, "served")
    assert await face.ask(line, "Other", token=token) == (418, "PERMISSION_DENIED/INSUFFICIENT_SCOPE/False")
    thief = await face.line(leaf("client", tenant="acme", name="mallory"))
    assert await face.ask(thief, "Open", token=token) == (418, "UNAUTHENTICATED/CERTIFICATE_MISMATCH/False")
    assert await face.ask(line, "Nowhere", token=token) == (418, "UNIMPLEMENTED/NOT_SERVED/False")


async def test_a_certificate_that_expires_on_an_open_connection_is_refused_at_the_next_request(serve, leaf):
    clock = SetClock()
    face = await serve(World(clock=clock))
    line = await face.line(leaf("sound"))  # for an hour
    assert await face.ask(line, "Peer") == (200, "served")
    clock.advance(minutes=59)
    face.world.hear()
    assert await face.ask(line, "Peer") == (200, "served")
    clock.advance(minutes=2)
    face.world.hear()
    assert await face.ask(line, "Peer") == (418, "UNAUTHENTICATED/PEER_REFUSED/False")


async def test_a_flood_of_one_is_told_when_to_come_again_and_another_is_served(serve, trainer, leaf):
    clock = SetClock()
    shares = Shares(calls_per_second=0.001, burst=3)
    face = await serve(World(clock=clock, quota=LocalQuota(clock=clock, shares=shares)))
    line = await face.line(trainer)
    answers = [await face.ask(line, "Peer") for _ in range(5)]
    assert answers == [(200, "served")] * 3 + [(418, "RESOURCE_EXHAUSTED/RATE_LIMITED/True")] * 2
    assert await face.ask(await face.line(leaf("client", tenant="acme", name="other")), "Peer") == (200, "served")


async def test_what_a_request_turns_out_to_be_is_judged_as_that(serve, trainer):
    clock = SetClock()
    world = World(clock=clock)
    face = await serve(world)
    token, line = world.token(trainer), await face.line(trainer)
    assert await face.ask(line, "Open", token=token, then="Sensitive") == (200, "served")
    clock.advance(seconds=40)  # more than sensitive methods bear without news, less than others do
    assert await face.ask(line, "Open", token=token) == (200, "served")
    stale = (418, "UNAVAILABLE/TRUST_STALE/False")
    assert await face.ask(line, "Open", token=token, then="Sensitive") == stale
    # Whoever was admitted without a token is not let into what needs one.
    assert await face.ask(line, "Peer", then="Peer") == (200, "served")
    assert await face.ask(line, "Peer", then="Open") == (418, "INTERNAL/INTERNAL/False")


async def _always(_request):
    return Answer(body=b"served")


async def is_answered(line):
    line[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    async with asyncio.timeout(LIMIT_S):
        try:
            return (await line[0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        except (OSError, asyncio.IncompleteReadError):
            return False


async def test_a_new_certificate_is_in_force_at_the_next_handshake_and_open_connections_go_on(leaf, tmp_path):
    directory = leaf("service", service="datasets", into=tmp_path / "datasets")
    trainer = leaf("client", tenant="acme", name="trainer")
    async with opened(directory, _always) as (face, source, _, _):
        line = await face.line(trainer)
        leaf("service", service="datasets", into=directory)
        assert source.poll()
        again = await face.line(trainer)
        shown = [one[1].get_extra_info("ssl_object").getpeercert(binary_form=True) for one in (line, again)]
        assert shown[0] != shown[1]
        assert await is_answered(line)
        assert await is_answered(again)


async def test_a_root_that_was_taken_away_opens_no_more_connections(leaf, authority, foreign_authority, tmp_path):
    directory = leaf("service", service="datasets", into=tmp_path / "datasets")
    stranger = leaf("wrong-ca")
    async with opened(directory, _always) as (face, source, _, _):
        (directory / "ca.pem").write_bytes(authority.ca_pem + foreign_authority.ca_pem)
        assert source.poll()
        assert await is_answered(await face.line(stranger))
        (directory / "ca.pem").write_bytes(authority.ca_pem)
        assert source.poll()
        assert not await is_answered(await face.line(stranger))
        assert await is_answered(await face.line(leaf("client", tenant="acme", name="trainer")))


async def test_a_running_request_ends_well_while_the_face_closes_and_nothing_new_begins(leaf, tmp_path):
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slowly(_request):
        begun.set()
        await goes_on.wait()
        return Answer(body=b"served")

    trainer = leaf("client", tenant="acme", name="trainer")
    async with opened(leaf("service", service="datasets"), slowly) as (face, _, server, protocols):
        idle, busy = await face.line(trainer), await face.line(trainer)
        answered = asyncio.create_task(is_answered(busy))
        await begun.wait()
        server.close()
        draining = asyncio.create_task(protocols.drain(timedelta(seconds=LIMIT_S)))
        async with asyncio.timeout(LIMIT_S):
            assert await idle[0].read() == b"", "an idle connection ends at once"
        with pytest.raises(OSError, match="Connect call failed"):
            await face.line(trainer)
        assert not answered.done()
        goes_on.set()
        assert await answered
        await draining
        async with asyncio.timeout(LIMIT_S):
            assert await busy[0].read() in {b"", b"served"}


async def test_where_only_post_quantum_exchanges_count_what_cannot_be_told_is_refused(serve, trainer):
    world = World()
    world.gate = Gate(
        policies=world.policies,
        verifier=TokenVerifier(issuer=ISSUER, audience=AUDIENCE),
        cache=world.cache,
        trust=world.trust,
        peers=PeerVerifier(trust_domain=DOMAIN, post_quantum=True),
        quota=LocalQuota(clock=world.clock),
        audit=world.audit,
        clock=world.clock,
    )
    face, plain = await serve(world), await serve(World())
    assert await face.ask(await face.line(trainer), "Peer") == (418, "UNAUTHENTICATED/PEER_REFUSED/False")
    assert await plain.ask(await plain.line(trainer), "Peer") == (200, "served")
