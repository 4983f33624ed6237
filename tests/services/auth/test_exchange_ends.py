"""What was exchanged ends with what it rests on: its subject, its issuer, its client, the middle of its chain."""

from __future__ import annotations

import asyncio

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import NotFound
from casemate.gate.core.records import RevocationKind
from tests.services.auth.exchange_world import (
    INFERENCE,
    OURS,
    chain,
    refused,
    seconds_now,
    seen,
    until_inactive,
)
from tests.services.auth.identities import Signatory, issuer_message
from tests.services.auth.world import SOON, failure, spiffe_id


async def test_what_speaks_for_a_client_ends_when_that_client_is_disabled(house):
    frontend = await chain(house)
    answer = await house.exchange((await frontend.token("acme-gateway")).access_token, kind=OURS)
    request = tokens.IntrospectTokenRequest(token=answer.access_token)
    assert (await house.gateway.ask("IntrospectToken", request)).active
    await house.operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-frontend"))
    await until_inactive(house, answer.access_token)


async def test_a_revoked_subject_begins_no_new_session_by_an_older_token(house):
    older = house.idp.about("alice", iat=seconds_now() - 1)
    await house.exchange(older)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="idp:alice")
    await house.operator.administer("Revoke", revoke)
    async with asyncio.timeout(1):
        while not house.world.running.trust.current.revocations.by_id:
            await asyncio.sleep(0)
    await refused(house.exchange(older))
    await house.exchange(house.idp.about("bob"))
    unknown = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="nobody:alice")
    assert isinstance(await failure(house.operator.administer("Revoke", unknown)), NotFound)


async def test_a_revoked_subject_refreshes_nothing(house):
    answer = await house.exchange(house.idp.about(), request_refresh_token=True)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="idp:alice")
    await house.operator.administer("Revoke", revoke)
    await refused(house.gateway.refresh(answer.refresh_token))


async def test_what_an_issuer_said_ends_when_it_is_removed_and_does_not_come_back_with_its_name(house):
    again = Signatory(kid="k1")
    alone = await house.exchange(house.idp.about("bob"))
    begun = await house.exchange(house.idp.about(), request_refresh_token=True)
    own = await house.gateway.token("inference")
    await house.operator.administer("RemoveIssuer", credentials.RemoveIssuerRequest(name="idp"))
    await seen(house.world, RevocationKind.SUBJECT, "idp:")
    look = [await house.look(token.access_token) for token in (alone, begun, own)]
    assert look == [False, False, True]
    await refused(house.gateway.refresh(begun.refresh_token))
    register = credentials.RegisterIssuerRequest(issuer=issuer_message(again))
    await house.operator.administer("RegisterIssuer", register)
    await house.allow()
    await refused(house.gateway.refresh(begun.refresh_token))
    await refused(house.exchange(house.idp.about()))
    await refused(house.exchange(again.about()))


async def test_an_operator_revokes_a_subject_whose_issuer_is_gone_and_an_administrator_does_not(house):
    await house.operator.administer("RemoveIssuer", credentials.RemoveIssuerRequest(name="idp"))
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="idp:alice")
    assert (await house.operator.administer("Revoke", revoke)).id
    wide = {"audiences": ("auth",), "scopes": ("admin",)}
    administrator = await house.world.enlist(house.operator, "acme", "admin", **wide)
    error = await failure(administrator.administer("Revoke", revoke))
    assert isinstance(error, NotFound)


@pytest.mark.parametrize("ended", ["token", "client", "spiffe id"])
async def test_what_was_exchanged_further_ends_with_the_middle_of_its_chain(house, ended):
    frontend = await chain(house)
    middle = {"audiences": ("inference", "acme-gateway"), "scopes": ("models.infer",)}
    between = await house.world.enlist(house.operator, "acme", "between", **middle)
    await house.allow(client_id="acme-between", source="casemate", refresh=False, audience="acme-gateway")
    front = {"audiences": ("acme-between",), "scopes": ("models.infer",)}
    caller = await house.world.enlist(house.operator, "acme", "front", **front)
    first = await caller.token("acme-between")
    second = await house.exchange(first.access_token, by=between, kind=OURS, audience="acme-gateway")
    third = await house.exchange(second.access_token, kind=OURS)
    beside = await house.exchange((await frontend.token("acme-gateway")).access_token, kind=OURS)
    assert await house.look(third.access_token)
    if ended == "token":
        await between.revoke_own(second.token_id)
    elif ended == "client":
        await house.operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-between"))
    else:
        name = spiffe_id("acme", "between")
        revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=name)
        await house.operator.administer("Revoke", revoke)
    await until_inactive(house, third.access_token)
    assert await house.look(beside.access_token)
    assert await caller.token("acme-between")


async def test_a_token_bound_to_a_revoked_spiffe_id_is_not_active_to_a_service(house):
    request = tokens.IntrospectTokenRequest(token=(await house.gateway.token("inference")).access_token)
    service = house.world.service("inference")
    other = await house.world.enlist(house.operator, "acme", "other", **INFERENCE)
    beside = tokens.IntrospectTokenRequest(token=(await other.token("inference")).access_token)
    assert (await service.ask("IntrospectToken", request)).active
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=spiffe_id("acme", "gateway"))
    await house.operator.administer("Revoke", revoke)
    async with asyncio.timeout(SOON):
        while (await service.ask("IntrospectToken", request)).active:
            await asyncio.sleep(0.01)
    assert (await service.ask("IntrospectToken", beside)).active
