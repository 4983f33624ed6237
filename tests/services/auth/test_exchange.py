"""Token exchange: a client speaks for a subject, never wider, never longer, never for anyone else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import jwt
import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import InvalidRequest, NotFound, PermissionDenied, Reason, Unauthenticated
from casemate.gate.core.records import RevocationKind
from tests.services.auth.identities import GIVEN_TO, Signatory, exchange_grant, issuer_message
from tests.services.auth.world import SOON, failure, open_shelf, spiffe_id

OURS = tokens.SUBJECT_TOKEN_TYPE_ACCESS_TOKEN
THEIRS = tokens.SUBJECT_TOKEN_TYPE_JWT
INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer", "reflection")}


@pytest_asyncio.fixture
async def house(world):
    """An external issuer, a gateway that may speak for its subjects, and the operator."""
    house = House(world)
    await house.build()
    return house


class House:
    def __init__(self, world):
        self.world = world
        self.operator = world.operator()
        self.idp = Signatory(kid="k1")

    async def build(self):
        self.gateway = await self.world.enlist(self.operator, "acme", "gateway", **INFERENCE)
        register = credentials.RegisterIssuerRequest(issuer=issuer_message(self.idp))
        await self.operator.administer("RegisterIssuer", register)
        self.grant = (await self.operator.administer("CreateExchangeGrant", exchange_grant())).id

    async def allow(self, **change):
        return (await self.operator.administer("CreateExchangeGrant", exchange_grant(**change))).id

    async def exchange(self, subject_token, *, by=None, kind=THEIRS, **change):
        wish = {"audience": "inference", "subject_token_type": kind, **change}
        request = tokens.ExchangeTokenRequest(subject_token=subject_token, **wish)
        return await (by or self.gateway).ask("ExchangeToken", request)

    async def look(self, token):
        request = tokens.IntrospectTokenRequest(token=token)
        return (await self.gateway.ask("IntrospectToken", request)).active

    def token(self, answer, audience="inference"):
        return self.world.verified(answer.access_token, audience)


def _now():
    return int(datetime.now(UTC).timestamp())


async def _refused(call, kind=Unauthenticated, reason=Reason.GRANT_INVALID):
    error = await failure(call)
    assert (type(error), error.reason) == (kind, reason)


async def _seen(world, kind, value):
    """Waits until the service heard of a revocation."""
    async with asyncio.timeout(SOON):
        while not any((one.kind, one.value) == (kind, value) for one in _revocations(world)):
            await asyncio.sleep(0.01)


def _revocations(world):
    return world.running.trust.current.revocations.by_id.values()


async def _denied(call):
    await _refused(call, PermissionDenied, Reason.SCOPE_NOT_GRANTED)


async def test_a_gateway_speaks_for_a_subject_of_an_external_issuer(house):
    ends = _now() + 90
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
    now = _now()
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
        await _refused(house.exchange(subject_token))
    await house.exchange(house.idp.about())
    others = house.world.client("acme", "gateway")
    assert stranger.kid == house.idp.kid
    await _refused(house.exchange(stranger.about(), by=others))


async def test_e8_a_subject_token_is_only_for_whom_its_issuer_says(house):
    other = {"may_act": {"sub": "acme-other"}}
    await _refused(house.exchange(house.idp.about(**other)))
    await _refused(house.exchange(house.idp.about(cnf={"x5t#S256": "A" * 43})))
    await _refused(house.exchange(house.idp.about(act={"sub": "somebody"})))
    await house.exchange(house.idp.about(may_act={"sub": "acme-gateway"}))


async def test_e8_nobody_exchanges_without_an_operators_grant(house):
    other = await house.world.enlist(house.operator, "acme", "other", **INFERENCE)
    await _denied(house.exchange(house.idp.about(), by=other))
    await house.exchange(house.idp.about())
    await house.operator.administer("DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=house.grant))
    await _denied(house.exchange(house.idp.about()))


async def test_e8_an_exchange_is_never_wider_than_grant_and_client(house):
    await _denied(house.exchange(house.idp.about(), scopes=["models.infer", "reflection"]))
    await _denied(house.exchange(house.idp.about(), audience="datasets"))
    await _refused(house.exchange(house.idp.about(), audience="billing"), InvalidRequest, Reason.INVALID_FIELD)
    await house.allow(scopes=["models.publish"])
    await _denied(house.exchange(house.idp.about(), scopes=["models.publish"]))  # the client has it not
    await house.exchange(house.idp.about(), scopes=["models.infer"])
    await _refused(house.exchange(house.idp.about(), kind=0), InvalidRequest, Reason.INVALID_FIELD)


async def test_an_issuer_of_another_tenant_is_nobody(house):
    await house.world.enlist(house.operator, "globex", "gateway", **INFERENCE)
    foreign = house.world.client("globex", "gateway")
    await _refused(house.exchange(house.idp.about(), by=foreign))
    grant = exchange_grant(tenant="globex", client_id="globex-gateway")
    assert isinstance(await failure(house.operator.administer("CreateExchangeGrant", grant)), NotFound)


async def _chain(house):
    """A front end whose tokens the gateway may exchange."""
    front = {"audiences": ("inference", "acme-gateway"), "scopes": ("models.infer",)}
    frontend = await house.world.enlist(house.operator, "acme", "frontend", **front)
    await house.allow(source="casemate", refresh=False, scopes=["models.infer", "reflection"])
    return frontend


async def test_a_token_of_ours_for_the_gateway_itself_is_exchanged_and_carries_its_session(house):
    frontend = await _chain(house)
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
    await _until_inactive(house, answer.access_token)


async def test_what_speaks_for_a_client_ends_when_that_client_is_disabled(house):
    frontend = await _chain(house)
    answer = await house.exchange((await frontend.token("acme-gateway")).access_token, kind=OURS)
    request = tokens.IntrospectTokenRequest(token=answer.access_token)
    assert (await house.gateway.ask("IntrospectToken", request)).active
    await house.operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-frontend"))
    await _until_inactive(house, answer.access_token)


async def _until_inactive(house, token):
    request = tokens.IntrospectTokenRequest(token=token)
    async with asyncio.timeout(1):
        while (await house.gateway.ask("IntrospectToken", request)).active:
            await asyncio.sleep(0)


async def test_e8_a_token_of_ours_for_somebody_else_is_no_subject_token(house):
    frontend = await _chain(house)
    await _refused(house.exchange((await frontend.token("inference")).access_token, kind=OURS))
    good = (await frontend.token("acme-gateway")).access_token
    await _refused(house.exchange(good, kind=THEIRS))
    await _refused(house.exchange(good + "=", kind=OURS))
    await _denied(house.exchange(good, kind=OURS, scopes=["reflection"]))  # the subject has it not
    await _denied(house.exchange(good, kind=OURS, request_refresh_token=True))
    await house.exchange(good, kind=OURS)


async def test_e8_a_client_gets_nothing_longer_for_its_own_token(house, tmp_path):
    # The administration lets no client be its own audience, so this one is written past it.
    async with open_shelf(house.world.settings.database, tmp_path) as shelf:
        gateway = await shelf.store.client("acme-gateway")
        async with shelf.pool.acquire() as connection:
            await shelf.tables.clients.replace(connection, replace(gateway, audiences=("acme-gateway", "inference")))
    await _chain(house)
    own = await house.gateway.token("acme-gateway")
    await _denied(house.exchange(own.access_token, kind=OURS))


async def test_e8_a_revoked_subject_token_is_refused(house):
    frontend = await _chain(house)
    given = await frontend.token("acme-gateway")
    await house.exchange(given.access_token, kind=OURS)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value=given.token_id)
    await house.operator.administer("Revoke", revoke)
    async with asyncio.timeout(1):
        while given.token_id not in {
            revocation.value for revocation in house.world.running.trust.current.revocations.by_id.values()
        }:
            await asyncio.sleep(0)
    await _refused(house.exchange(given.access_token, kind=OURS))


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
    await _denied(house.exchange(text, by=callers["five"], kind=OURS))


async def test_a_revoked_subject_begins_no_new_session_by_an_older_token(house):
    older = house.idp.about("alice", iat=_now() - 1)
    await house.exchange(older)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="idp:alice")
    await house.operator.administer("Revoke", revoke)
    async with asyncio.timeout(1):
        while not house.world.running.trust.current.revocations.by_id:
            await asyncio.sleep(0)
    await _refused(house.exchange(older))
    await house.exchange(house.idp.about("bob"))
    unknown = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="nobody:alice")
    assert isinstance(await failure(house.operator.administer("Revoke", unknown)), NotFound)


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


async def test_a_revoked_subject_refreshes_nothing(house):
    answer = await house.exchange(house.idp.about(), request_refresh_token=True)
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SUBJECT", value="idp:alice")
    await house.operator.administer("Revoke", revoke)
    await _refused(house.gateway.refresh(answer.refresh_token))


async def test_a_refresh_token_comes_only_where_the_grant_says_so(house):
    await house.operator.administer("DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=house.grant))
    await house.allow(refresh=False)
    await _denied(house.exchange(house.idp.about(), request_refresh_token=True))
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
    expired = house.idp.about(exp=_now() - 1)
    for _ in range(15):
        await _refused(house.exchange(expired))
        await _refused(house.gateway.refresh("rt1.x"))
    assert house.token(await house.exchange(house.idp.about())).subject == "idp:alice"
    assert (await house.gateway.token("inference")).access_token


async def test_what_an_issuer_said_ends_when_it_is_removed_and_does_not_come_back_with_its_name(house):
    again = Signatory(kid="k1")
    alone = await house.exchange(house.idp.about("bob"))
    begun = await house.exchange(house.idp.about(), request_refresh_token=True)
    own = await house.gateway.token("inference")
    await house.operator.administer("RemoveIssuer", credentials.RemoveIssuerRequest(name="idp"))
    await _seen(house.world, RevocationKind.SUBJECT, "idp:")
    look = [await house.look(token.access_token) for token in (alone, begun, own)]
    assert look == [False, False, True]
    await _refused(house.gateway.refresh(begun.refresh_token))
    register = credentials.RegisterIssuerRequest(issuer=issuer_message(again))
    await house.operator.administer("RegisterIssuer", register)
    await house.allow()
    await _refused(house.gateway.refresh(begun.refresh_token))
    await _refused(house.exchange(house.idp.about()))
    await _refused(house.exchange(again.about()))


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
    frontend = await _chain(house)
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
    await _until_inactive(house, third.access_token)
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
