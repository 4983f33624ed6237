"""Refresh tokens over the wire: live access tokens end with their family, and a lost answer costs nothing."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.admin_service_pb2 import DisableClientRequest, ListGrantsRequest
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.clock import SystemClock
from casemate.errors import CasemateError, PermissionDenied, Reason, Unauthenticated, Unavailable
from services.auth.credential_records import ExchangeGrant
from services.auth.store.credentials import CredentialStore
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.services.auth.lines import begin_line, enlist
from tests.services.auth.processes import build_environment, port_of, start_process
from tests.services.auth.world import World, failure, open_shelf, ours


async def _family(world, *, audience="inference", scopes=("models.infer",)):
    """A client that an exchange has given a refresh token."""
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "gateway", audiences=(audience,), scopes=scopes)
    idp = Signatory(kid="k1")
    register = credentials.RegisterIssuerRequest(issuer=issuer_message(idp))
    await operator.administer("RegisterIssuer", register)
    await operator.administer("CreateExchangeGrant", exchange_grant(audience=audience, scopes=scopes))
    request = tokens.ExchangeTokenRequest(
        subject_token=idp.about(),
        subject_token_type=tokens.SUBJECT_TOKEN_TYPE_JWT,
        audience=audience,
        request_refresh_token=True,
    )
    return caller, (await caller.ask("ExchangeToken", request)).refresh_token


async def test_a_refresh_over_the_wire_is_bound_to_the_present_certificate(world):
    caller, first = await _family(world)
    one = await caller.refresh(first)
    renewed = world.client("acme", "gateway")  # another certificate of the same name
    two = await renewed.refresh(one.refresh_token)
    thumbprints = {world.verified(answer.access_token, "inference").certificate_thumbprint for answer in (one, two)}
    assert len(thumbprints) == 2
    assert two.refresh_expires_at.seconds > two.expires_at.seconds
    error = await failure(caller.refresh(two.refresh_token, ("models.publish",)))
    assert isinstance(error, PermissionDenied)


async def test_reuse_ends_a_live_access_token_within_a_second(world):
    caller, first = await _family(world, audience="auth", scopes=("admin",))
    one = await caller.refresh(first)
    two = await caller.refresh(one.refresh_token)
    request = tokens.RefreshTokenRequest(refresh_token=first)
    grants = ListGrantsRequest(tenant="acme")
    await caller.administer("ListGrants", grants, token=two.access_token)
    error = await failure(ours(TokenServiceStub(caller.channel).RefreshToken(request)))
    assert (type(error), error.reason) == (Unauthenticated, Reason.GRANT_INVALID)
    async with asyncio.timeout(1):
        while True:
            try:
                await caller.administer("ListGrants", grants, token=two.access_token)
            except CasemateError as refused:
                reason = refused.reason
                break
    assert reason is Reason.TOKEN_REVOKED
    assert world.running.metrics.value("refresh_total", outcome="reused") == 1


async def test_a_client_ends_its_own_family_by_its_refresh_token(world):
    caller, first = await _family(world)
    revoke = tokens.RevokeTokenRequest(refresh_token=first)
    stranger = await world.enlist(world.operator(), "acme", "other", audiences=("inference",), scopes=("models.infer",))
    await ours(TokenServiceStub(stranger.channel).RevokeToken(revoke))
    current = (await caller.refresh(first)).refresh_token
    await ours(TokenServiceStub(caller.channel).RevokeToken(tokens.RevokeTokenRequest(refresh_token="nonsense")))
    await ours(TokenServiceStub(caller.channel).RevokeToken(revoke))
    assert (await failure(caller.refresh(current))).reason is Reason.GRANT_INVALID


async def test_what_hangs_on_a_disabled_client_is_not_refreshed(world):
    caller, first = await _family(world)
    current = (await caller.refresh(first)).refresh_token
    await world.operator().administer("DisableClient", DisableClientRequest(client_id="acme-gateway"))
    assert (await failure(caller.refresh(current))).reason is Reason.GRANT_INVALID
    assert (await world.sql("SELECT ended_at IS NOT NULL FROM refresh_family WHERE audience = 'inference'"))[-1][0]


async def test_r7_after_a_kill_between_commit_and_reply_the_retry_gets_the_same_successor(database, leaf, tmp_path):
    async with open_shelf(database, tmp_path) as shelf:
        await enlist(shelf)
        line = await begin_line(shelf, SystemClock())
        grant = ExchangeGrant(
            id="exchange-1",
            tenant="acme",
            client_id="acme-gateway",
            source="idp",
            audience="inference",
            scopes=("models.infer", "reflection"),
            refresh=True,
        )
        await CredentialStore(pool=shelf.pool, tables=shelf.tables).add_exchange_grant(grant, within=None)
    environment = build_environment(database, leaf("service", service="auth"), tmp_path)
    outside = World(None, None, leaf)
    directory = leaf("client", tenant="acme", name="gateway")
    try:
        async with start_process(environment, module="tests.services.auth.killed") as process:
            caller = outside.caller(directory, port=await port_of(process))
            assert isinstance(await failure(caller.refresh(line.first)), Unavailable)
            assert await process.wait() == -signal.SIGKILL
        async with open_shelf(database, tmp_path) as shelf:
            committed = await replace(line, shelf=shelf).row()
        assert committed.generation == 2
        async with start_process(environment) as process:
            caller = outside.caller(directory, port=await port_of(process))
            answers = [await caller.refresh(line.first) for _ in range(2)]
            assert {answer.refresh_token.split(".")[2] for answer in answers} == {"2"}
            assert answers[0].refresh_token == answers[1].refresh_token
            await caller.refresh(answers[0].refresh_token)
    finally:
        for channel in outside.channels:
            await channel.close()
