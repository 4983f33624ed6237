"""Token exchange: a client speaks for a subject, never wider, never longer, never for anyone else."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import jwt
import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.errors import InvalidRequest, NotFound, PermissionDenied, Reason, Unauthenticated
from tests.services.auth.exchange_world import (
    INFERENCE,
    OURS,
    THEIRS,
    chain,
    denied,
    refused,
    seconds_now,
    until_inactive,
)
from tests.services.auth.identities import GIVEN_TO, Signatory, exchange_grant, issuer_message
from tests.services.auth.world import failure, open_shelf


async def test_a_gateway_speaks_for_a_subject_of_an_external_issuer(house):
    ends = seconds_now() + 90
    answer = await house.exchange(house.idp.about("alice", exp=ends))
    token = house.token(answer)
    assert (token.subject, token.client_id, token.tenant) == ("idp:alice", "acme-gateway", "acme")
    assert token.scopes == {"models.infer"} == set(answer.scopes)
    assert token.expires_at.timestamp() == ends
    assert token.session_id
    assert answer.refresh_token == ""
    # Bound to the gateway's certificate, whatever the subject had.
    own = house.world.verified((await house.gateway.token("inference")).access_token, "inference")
    assert token.certificate_thumbprint == own.certificate_thumbprint
    listed = await house.exchange(house.idp.about(aud=["other", GIVEN_TO]))
    assert house.token(listed).subject == "idp:alice"


async def test_e8_a_subject_token_that_is_not_good_is_refused(house):
    now = seconds_now()
    stranger = Signatory(kid="k1")
    wrong = [
        house.idp.about(exp=now - 1),
        house.idp.about(exp=now + 7200),
        house.idp.about(iat=now + 60),
        house.idp.about(iat=None),
        house.idp.about(nbf=now + 60),
        house.idp.about(aud="another-service"),
        house.idp.about(iss="https://idp.acme.example/"),
        house.idp.about(sub=""),
        house.idp.about(sub="with space"),
    ]
    for subject_token in wrong:
        await refused(house.exchange(subject_token))
    await house.exchange(house.idp.about())
    others = house.world.client("acme", "gateway")
    assert stranger.kid == house.idp.kid
    await refused(house.exchange(stranger.about(), by=others))


async def test_e8_a_subject_token_is_only_for_whom_its_issuer_says(house):
    other = {"may_act": {"sub": "acme-other"}}
    await refused(house.exchange(house.idp.about(**other)))
    await refused(house.exchange(house.idp.about(cnf={"x5t#S256": "A" * 43})))
    await refused(house.exchange(house.idp.about(act={"sub": "somebody"})))
    await house.exchange(house.idp.about(may_act={"sub": "acme-gateway"}))


async def test_e8_nobody_exchanges_without_an_operators_grant(house):
    other = await house.world.enlist(house.operator, "acme", "other", **INFERENCE)
    await denied(house.exchange(house.idp.about(), by=other))
    await house.exchange(house.idp.about())
    await house.operator.administer("DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=house.grant))
    await denied(house.exchange(house.idp.about()))


async def test_e8_an_exchange_is_never_wider_than_grant_and_client(house):
    await denied(house.exchange(house.idp.about(), scopes=["models.infer", "reflection"]))
    await denied(house.exchange(house.idp.about(), audience="datasets"))
    await refused(house.exchange(house.idp.about(), audience="billing"), InvalidRequest, Reason.INVALID_FIELD)
    await house.allow(scopes=["models.publish"])
    await denied(house.exchange(house.idp.about(), scopes=["models.publish"]))  # the client has it not
    await house.exchange(house.idp.about(), scopes=["models.infer"])
    await refused(house.exchange(house.idp.about(), kind=0), InvalidRequest, Reason.INVALID_FIELD)


async def test_an_issuer_of_another_tenant_is_nobody(house):
    await house.world.enlist(house.operator, "globex", "gateway", **INFERENCE)
    foreign = house.world.client("globex", "gateway")
    await refused(house.exchange(house.idp.about(), by=foreign))
    grant = exchange_grant(tenant="globex", client_id="globex-gateway")
    assert isinstance(await failure(house.operator.administer("CreateExchangeGrant", grant)), NotFound)


async def test_a_token_of_ours_for_the_gateway_itself_is_exchanged_and_carries_its_session(house):
    frontend = await chain(house)
    given = await frontend.token("acme-gateway")
    subject = house.world.verified(given.access_token, "acme-gateway")
    answer = await house.exchange(given.access_token, kind=OURS)
    token = house.token(answer)
    assert (token.subject, token.client_id) == ("acme-frontend", "acme-gateway")
    assert token.scopes == {"models.infer"}
    assert token.expires_at <= subject.expires_at
    assert token.session_id == subject.token_id
    # The subject takes back its own token, and what was exchanged for it ends too.
    await frontend.revoke_own(given.token_id)
    await until_inactive(house, answer.access_token)


async def test_e8_a_token_of_ours_for_somebody_else_is_no_subject_token(house):
    frontend = await chain(house)
    await refused(house.exchange((await frontend.token("inference")).access_token, kind=OURS))
    good = (await frontend.token("acme-gateway")).access_token
    await refused(house.exchange(good, kind=THEIRS))
    await refused(house.exchange(good + "=", kind=OURS))
    await denied(house.exchange(good, kind=OURS, scopes=["reflection"]))  # the subject has it not
    await denied(house.exchange(good, kind=OURS, request_refresh_token=True))
    await house.exchange(good, kind=OURS)


async def test_e8_a_client_gets_nothing_longer_for_its_own_token(house, tmp_path):
    # The administration lets no client be its own audience, so this one is written past it.
    async with open_shelf(house.world.settings.database, tmp_path) as shelf:
        gateway = await shelf.store.client("acme-gateway")
        async with shelf.pool.acquire() as connection:
            await shelf.tables.clients.replace(connection, replace(gateway, audiences=("acme-gateway", "inference")))
    await chain(house)
    own = await house.gateway.token("acme-gateway")
    await denied(house.exchange(own.access_token, kind=OURS))


async def test_e8_a_revoked_subject_token_is_refused(house):
    frontend = await chain(house)
    given = await frontend.token("acme-gateway")
    await house.exchange(given.access_token, kind=OURS)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value=given.token_id)
    await house.operator.administer("Revoke", revoke)
    async with asyncio.timeout(1):
        while given.token_id not in {
            revocation.value for revocation in house.world.running.trust.current.revocations.by_id.values()
        }:
            await asyncio.sleep(0)
    await refused(house.exchange(given.access_token, kind=OURS))


async def test_e8_three_actors_are_the_most(house):
    names = ["one", "two", "three", "four", "five"]
    callers = {}
    following = "inference"
    for name in reversed(names):  # each may have tokens for the one after it, which has to be there before
        audiences = ("inference", following) if following != "inference" else ("inference",)
        callers[name] = await house.world.enlist(
            house.operator, "acme", name, audiences=audiences, scopes=("models.infer",)
        )
        for audience in audiences:
            source = {"source": "casemate", "refresh": False, "audience": audience}
            await house.allow(client_id=f"acme-{name}", **source)
        following = f"acme-{name}"
    first = await callers["one"].token("acme-two")
    text, token_ids = first.access_token, [first.token_id]
    for name, audience in (("two", "acme-three"), ("three", "acme-four"), ("four", "acme-five")):
        answer = await house.exchange(text, by=callers[name], kind=OURS, audience=audience)
        text = answer.access_token
        token_ids.append(answer.token_id)
    token_ids.pop()
    claims = jwt.decode(text, options={"verify_signature": False})
    assert claims["sub"] == "acme-one"
    actors = claims["act"], claims["act"]["act"], claims["act"]["act"]["act"]
    assert [actor["sub"] for actor in actors] == ["acme-four", "acme-three", "acme-two"]
    assert [actor["jti"] for actor in actors] == list(reversed(token_ids))
    await denied(house.exchange(text, by=callers["five"], kind=OURS))


async def test_a_refresh_token_comes_with_an_exchange_and_ends_with_its_grant(house):
    answer = await house.exchange(house.idp.about(), request_refresh_token=True)
    token = house.token(answer)
    refreshed = await house.gateway.refresh(answer.refresh_token)
    again = house.token(refreshed)
    assert (again.subject, again.session_id) == ("idp:alice", token.session_id)
    await house.operator.administer("DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=house.grant))
    error = await failure(house.gateway.refresh(refreshed.refresh_token))
    assert isinstance(error, PermissionDenied)
    await house.allow()
    await house.gateway.refresh(refreshed.refresh_token)
    await house.operator.administer("RemoveIssuer", credentials.RemoveIssuerRequest(name="idp"))
    listed = await house.operator.administer("ListExchangeGrants", credentials.ListExchangeGrantsRequest(tenant="acme"))
    assert list(listed.grants) == []


async def test_a_refresh_token_comes_only_where_the_grant_says_so(house):
    await house.operator.administer("DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=house.grant))
    await house.allow(refresh=False)
    await denied(house.exchange(house.idp.about(), request_refresh_token=True))
    await house.exchange(house.idp.about())


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("exchange_grant", "client_id = 'acme-other'"),
        ("exchange_grant", "scopes = '{models.infer,models.publish}'"),
        ("external_issuer", "audience = audience || 'x'"),
        ("external_issuer", "keys = keys || keys"),
    ],
)
async def test_what_sql_changed_about_exchange_is_refused_and_sounds_the_alarm(house, table, change):
    await house.world.enlist(house.operator, "acme", "other", **INFERENCE)
    await house.world.sql(f"UPDATE {table} SET {change}")  # noqa: S608  # from above
    for by in (house.gateway, house.world.client("acme", "other")):
        error = await failure(house.exchange(house.idp.about(), by=by))
        assert isinstance(error, Unauthenticated | PermissionDenied)
    assert house.world.alarms


WRONG_GRANTS = [
    ({"source": "nobody"}, NotFound),
    ({"client_id": "nobody"}, NotFound),
    ({"audience": "nobody"}, NotFound),
    ({"scopes": []}, InvalidRequest),
    ({"scopes": ["unheard.of"]}, InvalidRequest),
    ({"source": "casemate", "refresh": True}, InvalidRequest),
    ({"tenant": "globex"}, NotFound),
]


async def test_an_exchange_grant_that_names_what_is_not_there_is_refused(house):
    for change, kind in WRONG_GRANTS:
        error = await failure(house.operator.administer("CreateExchangeGrant", exchange_grant(**change)))
        assert isinstance(error, kind), change


async def test_an_issuer_needs_strong_keys_and_a_name_of_its_own(house):
    weak = issuer_message(house.idp, name="other")
    weak.keys[0].public_key = b"junk"
    twice = issuer_message(house.idp, name="other")
    twice.keys.append(twice.keys[0])
    for issuer in (weak, twice, issuer_message(house.idp, name="casemate"), credentials.ExternalIssuer()):
        request = credentials.RegisterIssuerRequest(issuer=issuer)
        assert isinstance(await failure(house.operator.administer("RegisterIssuer", request)), InvalidRequest)


async def test_grants_of_users_that_ended_do_not_lock_their_gateway_out(house):
    expired = house.idp.about(exp=seconds_now() - 1)
    for _ in range(15):
        await refused(house.exchange(expired))
        await refused(house.gateway.refresh("rt1.x"))
    assert house.token(await house.exchange(house.idp.about())).subject == "idp:alice"
    assert (await house.gateway.token("inference")).access_token
