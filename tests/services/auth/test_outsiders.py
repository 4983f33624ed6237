"""Another team's service: tokens for it, its part of the trust feed, and the example against a running auth."""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import trust_service_pb2 as feed
from casemate.client.interceptors import BearerInterceptor, aio_bearer_interceptors
from casemate.client.session import Endpoints, Session
from casemate.errors import ConfigurationError, InvalidRequest, PermissionDenied, Reason
from casemate.gate.core.policy import FOREIGN, PolicyTable
from casemate.settings import load_settings
from casemate.transport.certificates import CertificateSource
from casemate.transport.status import from_rpc_error
from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc
from services.auth.scopes import audiences
from services.auth.settings import AuthSettings
from tests.services.auth import world as auth_world
from tests.services.auth.processes import build_environment
from tests.services.auth.world import build_world, client_message, failure, grant_message
from tests.support.authority import TRUST_DOMAIN

ROOT = Path(__file__).parents[3]
OTHERS = "greeter=greetings.read,greetings.write;billing=bills.read"
LIMIT_S = 20.0


@pytest_asyncio.fixture
async def world(database, leaf, tmp_path, monkeypatch):
    plain = auth_world.build_settings
    monkeypatch.setattr(
        auth_world, "build_settings", lambda *parts: replace(plain(*parts), audiences=audiences(OTHERS))
    )
    async with build_world(database, leaf, tmp_path) as built:
        yield built


async def enlist(world, name="guest", scopes=("greetings.read",)):
    operator = world.operator()
    return operator, await world.enlist(operator, "acme", name, audiences=("greeter",), scopes=scopes)


async def test_a_client_gets_tokens_for_another_teams_service_with_that_services_scopes(world):
    operator, guest = await enlist(world, scopes=("greetings.read", "models.infer"))
    token = world.verified((await guest.token("greeter")).access_token, "greeter")
    assert token.scopes == {"greetings.read"}  # and not what the client may elsewhere
    assert isinstance(await failure(guest.token("billing")), PermissionDenied)
    assert isinstance(await failure(guest.token("nobody")), InvalidRequest)
    for odd in (("greeter", ("no.such",)), ("nobody", ("greetings.read",))):
        client = client_message("acme", "odd", (odd[0],), odd[1])
        refused = await failure(operator.administer("CreateClient", admin.CreateClientRequest(client=client)))
        assert isinstance(refused, InvalidRequest)
    taken = client_message("acme", "odd", ("greeter",), ("greetings.read",))
    taken.client_id = "greeter"  # it would be its own audience
    refused = await failure(operator.administer("CreateClient", admin.CreateClientRequest(client=taken)))
    assert isinstance(refused, InvalidRequest)


async def _first(world, service):
    return (await world.service(service).watch(feed.WatchTrustRequest()).read()).snapshot


async def test_each_watcher_is_told_its_own_part_and_nobody_else_watches(world):
    operator, _ = await enlist(world)
    for resource in ("model/digits", "dataset/digits", "greeter/hall", "billing/march"):
        grant = grant_message("acme", "t/acme/guest", "read", resource)
        await operator.administer("CreateGrant", admin.CreateGrantRequest(grant=grant))
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value="x" * 32)
    await operator.administer("Revoke", revoke)
    parts = {name: await _first(world, name) for name in ("datasets", "inference", "greeter", "billing")}
    assert {name: [grant.resource for grant in part.grants] for name, part in parts.items()} == {
        "datasets": ["dataset/digits"],
        "inference": ["model/digits"],
        "greeter": ["greeter/hall"],
        "billing": ["billing/march"],
    }
    assert all(part.token_keys and "x" * 32 in {each.value for each in part.revocations} for part in parts.values())
    assert not parts["greeter"].signers
    assert not parts["greeter"].releases
    for stranger in (world.service("printer"), world.service("auth"), world.operator()):
        with pytest.raises(grpc.RpcError) as refused:
            await stranger.watch(feed.WatchTrustRequest()).read()
        assert from_rpc_error(refused.value).reason is Reason.CALLER_NOT_ALLOWED


async def test_a_change_reaches_the_service_that_it_concerns_and_moves_the_others_numbers(world):
    operator, _ = await enlist(world)
    watches = {name: world.service(name).watch(feed.WatchTrustRequest()) for name in ("inference", "greeter")}
    began = {name: await watch.read() for name, watch in watches.items()}
    grant = grant_message("acme", "t/acme/guest", "read", "greeter/hall")
    await operator.administer("CreateGrant", admin.CreateGrantRequest(grant=grant))

    async def until(name, sequence):
        told = []
        async with asyncio.timeout(LIMIT_S):
            while True:
                news = await watches[name].read()
                told += [change.grant.resource for change in news.delta.changes]
                if news.sequence > sequence:
                    return told

    assert await until("greeter", began["greeter"].sequence) == ["greeter/hall"]
    assert await until("inference", began["inference"].sequence) == []


@pytest.mark.parametrize(
    "value",
    ["datasets=x.read", "model=x.read", "casemate=x.y", "greeter", "greeter=", "greeter=admin", "greeter=a b", "G=x",
     "greeter=a.b;greeter=c.d", "../x=a.b"],
)  # fmt: skip
def test_a_setting_that_would_be_one_of_ours_or_says_nothing_is_refused(database, leaf, tmp_path, value):
    environment = build_environment(database, leaf("service", service="auth"), tmp_path)

    def load(text):
        return load_settings(AuthSettings, {**environment, "CASEMATE_AUTH_AUDIENCES": text}, component="auth")

    with pytest.raises(ConfigurationError, match="CASEMATE_AUTH_AUDIENCES"):
        load(value)
    assert set(load(OTHERS).audiences.others) == {"greeter", "billing"}


def test_only_a_method_for_named_services_can_be_opened_to_further_ones():
    services = feed.DESCRIPTOR.services_by_name.values()
    method = "/casemate.auth.v1.TrustService/WatchTrust"
    table = PolicyTable.from_descriptors(services, FOREIGN)
    assert table.admitting(method, ["greeter"]).of(method).access.services == {"datasets", "inference", "greeter"}
    assert table.of(method).access.services == {"datasets", "inference"}
    for other in ("/grpc.health.v1.Health/Check", "/nobody.Knows/This"):
        with pytest.raises(ConfigurationError):
            table.admitting(other, ["greeter"])


@asynccontextmanager
async def example(module, leaf, port, audit):
    """The example, started as its README says, against auth at this port."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"examples.protect_your_own_service.{module}"),
        *(str(leaf("service", service="greeter")), f"127.0.0.1:{port}", "127.0.0.1:0", str(audit)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield int(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))
    finally:
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), LIMIT_S) == 0


async def answered(call, *, until=None):
    """What a call answers; tried again while the service has no news yet, or until it is refused for `until`."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                answer = await call()
            except grpc.RpcError as error:
                reason = from_rpc_error(error).reason
                if reason is until:
                    return reason
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                if until is None:
                    return answer.greeting
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("module", ["serve_sync", "serve_aio"])
async def test_the_example_stands_behind_the_gate_of_a_running_auth(world, leaf, module, tmp_path):
    """A token of auth's own opens it; revoked at auth, it is refused there too: nothing is scripted."""
    operator, _ = await enlist(world)
    identity = leaf("client", tenant="acme", name="guest")
    request = greeter_pb2.GreetRequest(name="Ada")
    with ExitStack() as stack:
        auth = f"127.0.0.1:{world.running.port}"
        source = CertificateSource(identity)
        session = stack.enter_context(
            closing(
                Session(
                    source=source,
                    endpoints=Endpoints(auth=auth, inference=auth, datasets=auth),
                    trust_domain=TRUST_DOMAIN,
                )
            )
        )
        async with example(module, leaf, world.running.port, tmp_path / "audit.jsonl") as port:
            files = [(identity / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem")]
            options = (("grpc.ssl_target_name_override", f"greeter.{TRUST_DOMAIN}"), ("grpc.enable_http_proxy", 0))
            channel = stack.enter_context(
                grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*files), options)
            )
            ours = grpc.intercept_channel(channel, BearerInterceptor(session, audience="greeter"))
            greet = greeter_pb2_grpc.GreeterStub(ours).Greet
            said = await answered(lambda: asyncio.to_thread(greet, request, timeout=LIMIT_S))
            assert said == "Hello, Ada"
            async with grpc.aio.secure_channel(
                f"127.0.0.1:{port}",
                grpc.ssl_channel_credentials(*files),
                options,
                interceptors=aio_bearer_interceptors(session, audience="greeter"),
            ) as aio:
                greeted = await greeter_pb2_grpc.GreeterStub(aio).Greet(request, timeout=LIMIT_S)
                assert greeted.greeting == "Hello, Ada"
            issued = await world.caller(identity).token("greeter")
            metadata = (("authorization", f"Bearer {issued.access_token}"),)
            bare = greeter_pb2_grpc.GreeterStub(channel).Greet

            def with_token():
                return asyncio.to_thread(bare, request, metadata=metadata, timeout=LIMIT_S)

            assert await answered(with_token) == "Hello, Ada"
            revoke = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value=issued.token_id)
            await operator.administer("Revoke", revoke)
            assert await answered(with_token, until=Reason.TOKEN_REVOKED) is Reason.TOKEN_REVOKED
