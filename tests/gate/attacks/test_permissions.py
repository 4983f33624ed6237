"""Attacks by callers who are who they say, on what is not theirs."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.errors import ConfigurationError, Reason
from casemate.gate.adapters.own_policies import own_policies
from casemate.gate.core.policy import PolicyTable, TokenAccess
from casemate.transport.registry import RegisteredService
from casemate.transport.status import DETAILS_KEY, from_rpc_error
from tests.gate.adapter_world import judged
from tests.gate.attacks.scene import DENIED, INVALID, NOT_FOUND, UNAUTHENTICATED, Scene
from tests.gate.served import LIMIT_S, PARSED, RAISES, SECRET, serve
from tests.gate.test_adapters import Talk, refusal
from tests.gate.world import World, bearer, grant

POLICIES = [policy for policy in own_policies() if isinstance(policy.access, TokenAccess)]
SCOPES = sorted({policy.access.scope for policy in POLICIES})


def every_method(kind):
    """All methods of all our services on one server, each answering what it got."""

    def answer(request, _context):
        return request

    async def answer_later(request, _context):
        return request

    handler = grpc.unary_unary_rpc_method_handler(answer if kind == "sync" else answer_later)
    services: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for policy in POLICIES:
        service, _, method = policy.method[1:].partition("/")
        services.setdefault(service, {})[method] = handler
    return [RegisteredService(name, handlers) for name, handlers in services.items()]


def test_every_method_without_its_one_scope(kind, service_leaf, trainer):
    world = World(policies=own_policies())
    with serve(kind, world, service_leaf, services=every_method(kind)) as served, served.channel(trainer) as channel:
        lacking = {scope: world.token(trainer, scope=" ".join(set(SCOPES) - {scope})) for scope in SCOPES}
        having = {scope: world.token(trainer, scope=scope) for scope in SCOPES}

        def code(policy, token):
            call = channel.unary_unary(policy.method).future(b"", metadata=bearer(token), timeout=LIMIT_S)
            error = call.exception(LIMIT_S)
            return call.code(), from_rpc_error(error).reason if error is not None else None

        for policy in POLICIES:
            scope = policy.access.scope
            assert code(policy, lacking[scope]) == (DENIED, Reason.INSUFFICIENT_SCOPE), policy.method
            served_or_later = code(policy, having[scope])[0]
            assert served_or_later is not DENIED, policy.method
            if policy.resource is None:
                assert served_or_later is grpc.StatusCode.OK, policy.method
        assert len(POLICIES) > 30
        assert world.audit.denials.count("INSUFFICIENT_SCOPE") == len(POLICIES)


def test_a_method_without_a_policy_keeps_the_server_from_starting(kind, service_leaf):
    with serve(kind, World(), service_leaf) as served:
        policies = served.world.gate.policies
        with pytest.raises(ConfigurationError, match=r"/test\.Echo/NoPolicy"):
            policies.require(["/test.Echo/Unary", "/test.Echo/NoPolicy"])
        policies.require(["/test.Echo/Unary"])
    with pytest.raises(ConfigurationError):
        PolicyTable([]).require(["/test.Echo/Unary"])


@pytest.mark.parametrize(
    "path", ["//test.Echo/Unary", "/test.echo/Unary", "/test.Echo/Unary?x=1", "/test.Echo/Un%61ry", "/test.Echo/Unary/"]
)
def test_another_spelling_of_a_methods_path_is_another_method(scene, token, path):
    digits = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        scene.channel.unary_unary(path)(digits, metadata=bearer(token), timeout=LIMIT_S)
    # The gate, not grpcio: the caller was proven first, and is told no more than that there is no such method.
    assert judged(refused.value) == (grpc.StatusCode.UNIMPLEMENTED, Reason.NOT_SERVED)
    assert scene.served.echo.entered == []
    (event,) = scene.world.audit.events
    assert (event.method, event.decision, event.reason) == (path, "denied", "NOT_SERVED")
    assert (event.tenant, event.client_id) == ("acme", "acme-trainer")
    assert event.request_id == dict(refused.value.trailing_metadata())["casemate-request-id"]
    with pytest.raises(grpc.RpcError) as stranger:
        scene.channel.unary_unary(path)(digits, timeout=LIMIT_S)
    assert judged(stranger.value) == (UNAUTHENTICATED, Reason.TOKEN_MISSING)
    assert scene.world.audit.denials == ["NOT_SERVED", "TOKEN_MISSING"]
    scene.good(token=token)


def test_of_one_request_the_gate_judges_what_the_handler_gets(scene, token):
    """A second message is looked at by neither; of a field that comes twice both see the last."""
    digits = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
    faces = GetVersionRequest(dataset="faces", version=PARSED).SerializeToString()
    invoke = scene.channel.stream_unary("/test.Echo/Unary")
    assert invoke(iter([digits, faces]), metadata=bearer(token), timeout=LIMIT_S)
    assert scene.served.echo.entered == [PARSED]
    for both in (digits + faces, faces + faces):
        scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, raw=both, audited="GRANT_MISSING")
    scene.good(token=token, raw=faces + digits)


def test_nobody_chooses_the_identifier_of_a_call(scene, token):
    digits = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
    invoke = scene.channel.unary_unary("/test.Echo/Unary")
    chosen = (*bearer(token), ("casemate-request-id", "mine"))
    _, call = invoke.with_call(digits, metadata=chosen, timeout=LIMIT_S)
    given = dict(call.trailing_metadata())["casemate-request-id"]
    assert len(given) == 16
    assert int(given, 16) >= 0
    # Refused, under the identifier that the audit has; the chosen one is nowhere.
    with pytest.raises(grpc.RpcError) as refused:
        invoke(digits, metadata=(*bearer("x.y.z"), ("casemate-request-id", "mine")), timeout=LIMIT_S)
    assert judged(refused.value) == (UNAUTHENTICATED, Reason.TOKEN_INVALID)
    (event,) = scene.world.audit.events
    assert (event.decision, event.reason) == ("denied", "TOKEN_INVALID")
    told = dict(refused.value.trailing_metadata())["casemate-request-id"]
    assert event.request_id == told != given
    assert "mine" not in repr(event)
    _, audited = scene.channel.unary_unary("/test.Echo/Open").with_call(b"", metadata=chosen, timeout=LIMIT_S)
    allowed = scene.world.audit.events[-1]
    assert (allowed.decision, allowed.outcome) == ("allowed", "OK")
    assert allowed.request_id == dict(audited.trailing_metadata())["casemate-request-id"]


@pytest.mark.parametrize("method", ["Absent", "NoPolicy"])
def test_a_method_that_is_not_served_tells_strangers_nothing(scene, token, method):
    scene.unauthenticated(Reason.TOKEN_MISSING, method=method)
    scene.unauthenticated(method=method, token="x.y.z")
    scene.refused(grpc.StatusCode.UNIMPLEMENTED, Reason.NOT_SERVED, method=method, token=token, audited="NOT_SERVED")
    scene.good()


def said(error):
    """All that a caller sees of a refusal, less what is new for each call."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())[DETAILS_KEY])
    info = error_details_pb2.ErrorInfo()
    details = []
    for packed in status.details:
        if packed.Unpack(info):
            assert info.metadata.pop("request_id")
            details.append(info.SerializeToString(deterministic=True))
        else:
            details.append(packed.SerializeToString(deterministic=True))
    keys = sorted(key for key, _ in error.trailing_metadata())
    return error.code(), error.details(), status.code, status.message, details, keys


NAMES = [
    "absent",
    "faces",
    "../digits",
    "digits/../digits",
    "*",
    "d\N{CYRILLIC SMALL LETTER I}gits",
    "digits ",
    "x" * 500,
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_forbidden_looks_like_what_is_absent_byte_for_byte(scene, token, name):
    scene.world.publish(grants=(grant(), grant(id="g2", resource="dataset/faces", caller="t/acme/other")))
    absent = GetVersionRequest(dataset="certainly-absent", version=PARSED)
    asked = GetVersionRequest(dataset=name, version=PARSED)
    one = scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, request=absent, audited="GRANT_MISSING")
    other = scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, token=token, request=asked, audited="GRANT_MISSING")
    assert said(one) == said(other)
    scene.good(token=token)


def test_a_request_that_names_nothing(scene, token):
    scene.refused(INVALID, Reason.INVALID_FIELD, token=token, request=GetVersionRequest(), audited=False)
    scene.good(token=token)


def test_a_stream_that_turns_to_another_resource(scene, token):
    talk = Talk(scene.served, scene.channel, token)
    assert talk.say() == PARSED
    assert refusal(talk.say, dataset="faces") == (NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    assert scene.world.audit.denials == ["GRANT_MISSING"]
    scene.world.publish(grants=(grant(), grant(id="g2", resource="dataset/faces")))
    twin = Talk(scene.served, scene.channel, token)
    assert [twin.say(), twin.say(dataset="faces"), twin.end()] == [PARSED, PARSED, []]


def test_a_grant_of_another_tenant_opens_nothing_here(scene, token, leaf):
    theirs = leaf("client", tenant="globex", name="trainer")
    other = scene.world.token(theirs, tenant="globex")
    with scene.served.channel(theirs) as channel:
        scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, channel=channel, token=other, audited="GRANT_MISSING")
        # Acme may let them at what is Acme's, by no name that they say: what they name is their own tenant's.
        scene.world.publish(grants=(grant(caller="t/globex/trainer"),))
        scene.refused(NOT_FOUND, Reason.RESOURCE_NOT_FOUND, channel=channel, token=other, audited="GRANT_MISSING")
        own = grant(id="g2", tenant="globex", caller="t/globex/*")
        scene.world.publish(grants=(grant(), own))
        scene.good(channel=channel, token=other)
    scene.good(token=token)


UNLISTED = (
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.channelz.v1.Channelz/GetTopChannels",
    "/nobody.Knows/This",
)


@pytest.mark.parametrize("method", UNLISTED)
def test_what_tells_about_the_server_is_told_to_no_stranger(scene, token, method):
    invoke = scene.channel.unary_unary(method)
    assert refusal(invoke, b"", timeout=LIMIT_S) == (UNAUTHENTICATED, Reason.TOKEN_MISSING)
    assert scene.world.audit.denials == ["TOKEN_MISSING"]
    assert scene.served.health(scene.channel).status == 1  # a certificate is enough for health
    scene.good()


def test_a_large_body_with_a_bad_token_is_not_read(scene, token):
    body = b"\0" * (32 * 1024 * 1024)
    # Refused for its token: whoever had read it would have met the limit of messages first, as the twin does.
    scene.unauthenticated(token="x.y.z", raw=body)
    for method in ("UnaryStream", "StreamUnary", "Absent"):  # on the synchronous server these go another way
        scene.unauthenticated(token="x.y.z", raw=body, method=method)
    assert scene.served.echo.entered == []
    # The twin: with a good token the body is read, as far as the limit of messages.
    with pytest.raises(grpc.RpcError) as read:
        scene.served.call(scene.channel, token=token, raw=body)
    assert read.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    scene.good()


def test_a_handler_that_raises_a_secret(scene, token):
    failing = GetVersionRequest(dataset="digits", version=RAISES)
    with pytest.raises(grpc.RpcError) as raised:
        scene.served.call(scene.channel, token=token, request=failing)
    error = raised.value
    assert (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "internal error")
    everything = f"{error.details()}{error.trailing_metadata()}{error.debug_error_string()}{scene.world.audit.events}"
    assert not any(part in everything for part in (SECRET, "hunter2", "ValueError"))
    assert "casemate-request-id" in dict(error.trailing_metadata())
    scene.good(token=token)


@pytest.mark.parametrize("who", ["a stranger", "a valid client"])
def test_more_bodies_than_threads_that_never_arrive_hold_up_nobody(kind, service_leaf, trainer, mallory, who):
    never = threading.Event()

    def nothing():
        never.wait(6 * LIMIT_S)
        yield b""

    threads = 8
    with serve(kind, World(), service_leaf, threads=threads) as served:
        world = served.world
        with served.channel(mallory) as theirs, served.channel(trainer) as channel:
            text = world.token(mallory, client_id="silent") if who == "a valid client" else "x.y.z"
            open_call = theirs.stream_unary("/test.Echo/Unary")
            try:
                calls = [
                    open_call.future(nothing(), metadata=bearer(text)[1:], timeout=LIMIT_S) for _ in range(threads + 1)
                ]
                scene = Scene(served, channel, trainer, kind)
                for _ in range(20):
                    scene.good()
                if who == "a stranger":
                    assert {call.code() for call in calls} == {UNAUTHENTICATED}
            finally:
                never.set()
        assert served.echo.entered == [PARSED] * 20


def test_a_flood_of_one_tenant_leaves_threads_to_the_others(service_leaf, trainer, leaf):
    """By count: forty calls that stay hold seven of eight threads, and every call of the other tenant is served."""
    theirs, answered = leaf("client", tenant="globex", name="flood"), queue.SimpleQueue()
    request = GetVersionRequest(dataset="digits", version=PARSED).SerializeToString()
    with serve("sync", World(), service_leaf, threads=8) as served:
        served.world.publish(grants=(grant(), grant(id="g2", tenant="globex", caller="t/globex/*")))
        token = served.world.token(theirs, tenant="globex")
        with served.channel(theirs) as flood, served.channel(trainer) as quiet:
            open_call = flood.unary_stream("/test.Echo/UnaryStream")
            calls = [open_call(request, metadata=bearer(token), timeout=6 * LIMIT_S) for _ in range(40)]

            def first(call):
                with suppress(grpc.RpcError):
                    answered.put(next(call))

            readers = [threading.Thread(target=first, args=(call,)) for call in calls]
            for reader in readers:
                reader.start()
            for _ in range(7):
                answered.get(timeout=LIMIT_S)
            scene = Scene(served, quiet, trainer, "sync")
            for _ in range(20):
                scene.good()
            assert answered.empty()  # the flood got no further thread meanwhile
            for call in calls:
                call.cancel()
            served.echo.never.set()
            for reader in readers:
                reader.join(LIMIT_S)
        assert served.echo.entered == [PARSED] * 20
