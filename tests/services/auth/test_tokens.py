"""Who gets a token, what it says, and what it is worth in other hands."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.errors import Exhausted, InvalidRequest, PermissionDenied, Reason, Unauthenticated, Unavailable
from casemate.transport.certificates import load_pair
from tests.services.auth.world import SOON, failure, grant_message, spiffe_id
from tests.support.authority import OddProfile

LIST_GRANTS = admin.ListGrantsRequest(tenant="casemate")


async def test_a_client_gets_a_token_that_is_bound_to_its_certificate_for_five_minutes(world):
    directory = world.leaf("client", tenant="casemate", name="operator")
    issued = await world.caller(directory).token("auth")

    token = world.verified(issued.access_token, "auth")
    assert token.certificate_thumbprint == load_pair(directory).thumbprint
    assert token.expires_at - token.issued_at == timedelta(minutes=5)
    assert (token.tenant, token.client_id, token.subject) == ("casemate", "operator", "operator")
    assert token.scopes == {"admin", "reflection"} == set(issued.scopes)
    assert token.token_id == issued.token_id
    assert token.expires_at.timestamp() == issued.expires_at.seconds


async def test_a_token_for_one_audience_is_not_one_for_another(world):
    issued = await world.operator().token("datasets")
    assert world.verified(issued.access_token, "datasets").scopes == {"admin", "log.read", "reflection"}
    with pytest.raises(Unauthenticated):
        world.verified(issued.access_token, "auth")


async def test_a_token_dies_with_its_certificate(world):
    uri = spiffe_id("casemate", "operator")
    dying = world.leaf("profile", profile=OddProfile(uris=(uri,), end=timedelta(seconds=90)))
    issued = await world.caller(dying).token("auth")
    token = world.verified(issued.access_token, "auth")
    assert token.expires_at <= load_pair(dying).not_after
    assert token.expires_at - token.issued_at <= timedelta(seconds=90)


async def test_a_certificate_that_no_client_has_gets_no_token(world):
    for nobody in (world.client("casemate", "nobody"), world.client("acme", "operator"), world.service("inference")):
        error = await failure(nobody.token("auth"))
        assert isinstance(error, Unauthenticated)
        assert error.reason is Reason.CLIENT_UNKNOWN
    await world.client("casemate", "operator").token("auth")


TOO_WIDE = (
    ("billing", (), InvalidRequest, Reason.INVALID_FIELD),
    ("", (), InvalidRequest, Reason.INVALID_FIELD),
    ("auth", (), PermissionDenied, Reason.SCOPE_NOT_GRANTED),
    ("inference", ("models.publish",), PermissionDenied, Reason.SCOPE_NOT_GRANTED),
    ("inference", ("models.infer", "admin"), PermissionDenied, Reason.SCOPE_NOT_GRANTED),
    ("datasets", ("models.infer",), PermissionDenied, Reason.SCOPE_NOT_GRANTED),
)


async def test_a_token_is_never_wider_than_its_client(world):
    granted = {"audiences": ("inference",), "scopes": ("models.infer", "reflection")}
    caller = await world.enlist(world.operator(), "acme", "caller", **granted)
    for audience, scopes, kind, reason in TOO_WIDE:
        error = await failure(caller.token(audience, scopes))
        assert isinstance(error, kind), (audience, scopes)
        assert error.reason is reason, (audience, scopes)
    narrower = await caller.token("inference", ("models.infer",))
    assert list(narrower.scopes) == ["models.infer"]
    assert list((await caller.token("inference")).scopes) == ["models.infer", "reflection"]


async def test_a_disabled_client_gets_no_token_and_loses_those_it_holds(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "admin", audiences=("auth",), scopes=("admin",))
    await caller.administer("ListGrants", admin.ListGrantsRequest(tenant="acme"))

    await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-admin"))
    await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-admin"))

    assert (await failure(caller.token("auth"))).reason is Reason.CLIENT_UNKNOWN
    await _until_refused(caller, admin.ListGrantsRequest(tenant="acme"))
    # What is issued while a client is disabled, after it was read as enabled, is revoked as well.
    row = (await world.sql("SELECT not_before - now() AS ahead, expires_at - not_before AS life FROM revocation"))[0]
    assert row["ahead"] > timedelta(0)
    assert row["life"] >= timedelta(minutes=4, seconds=59)


async def test_a_stolen_token_is_refused_with_another_certificate(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "mallory", audiences=("auth",), scopes=("admin",))
    stolen = (await operator.token("auth")).access_token
    error = await failure(world.client("acme", "mallory").administer("ListGrants", LIST_GRANTS, token=stolen))
    assert isinstance(error, Unauthenticated)
    assert error.reason is Reason.CERTIFICATE_MISMATCH
    await operator.administer("ListGrants", LIST_GRANTS, token=stolen)


async def test_a_client_inserted_by_sql_gets_no_token_and_sounds_the_alarm(world):
    await world.sql(
        "INSERT INTO client SELECT 'forged', tenant, $1, audiences, scopes, enabled, created_at, mac FROM client",
        spiffe_id("casemate", "forged"),
    )
    before = world.alarms
    error = await failure(world.client("casemate", "forged").token("auth"))
    assert error.reason is Reason.CLIENT_UNKNOWN
    assert world.alarms > before
    await world.operator().token("auth")


async def test_a_client_revokes_its_own_token(world):
    operator = world.operator()
    issued = await operator.token("auth")
    await operator.administer("ListGrants", LIST_GRANTS, token=issued.access_token)
    await operator.revoke_own(issued.token_id)
    await operator.revoke_own(issued.token_id)
    assert len(await world.sql("SELECT 1 FROM revocation WHERE kind = 'token'")) == 1
    await _until_refused(operator, LIST_GRANTS, token=issued.access_token)


async def test_revoking_a_token_of_somebody_else_has_no_effect(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    issued = await operator.token("auth")
    for token_id in (issued.token_id, "unknown", "", "é", issued.token_id + "==", "A" * 1000):
        await caller.revoke_own(token_id)
    assert await world.sql("SELECT 1 FROM revocation") == []
    await operator.administer("ListGrants", LIST_GRANTS, token=issued.access_token)


async def test_a_revoked_token_key_stops_all_its_tokens_and_its_successor_signs(world):
    operator = world.operator()
    issued = await operator.token("auth")
    old = world.verified(issued.access_token, "auth").kid
    await operator.administer("Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_KEY", value=old))

    await _until_refused(operator, LIST_GRANTS, token=issued.access_token)
    successor = await _from_the_successor(operator)
    assert world.verified(successor.access_token, "auth").kid != old
    await operator.administer("ListGrants", LIST_GRANTS, token=successor.access_token)
    states = await world.sql("SELECT state FROM token_key ORDER BY state")
    assert [row["state"] for row in states] == ["active", "revoked"]


async def _from_the_successor(caller):
    """A token; asked for again, as callers do, while the new key is being opened."""
    async with asyncio.timeout(SOON):
        while True:
            try:
                return await caller.token("auth")
            except Unavailable:
                continue


async def test_a_revoked_certificate_gets_no_token_and_a_new_one_of_the_same_name_does(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    lost = world.leaf("client", tenant="acme", name="caller")
    caller = world.caller(lost)
    await caller.token("inference")
    thumbprint = load_pair(lost).thumbprint
    await operator.administer("Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_CERTIFICATE", value=thumbprint))
    await _until_peer_refused(caller)
    await world.client("acme", "caller").token("inference")

    name = spiffe_id("acme", "caller")
    await operator.administer("Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=name))
    await _until_peer_refused(world.client("acme", "caller"))
    assert (await world.sql("SELECT expires_at FROM revocation WHERE kind = 'spiffe_id'"))[0][0] is None


async def test_a_scope_for_administration_is_needed_to_administer(world):
    operator = world.operator()
    reading = await operator.token("auth", ("reflection",))
    request = admin.CreateGrantRequest(grant=grant_message("casemate", "t/casemate/operator"))
    error = await failure(operator.administer("CreateGrant", request, token=reading.access_token))
    assert isinstance(error, PermissionDenied)
    assert error.reason is Reason.INSUFFICIENT_SCOPE
    await operator.administer("CreateGrant", request)


async def _until_refused(caller, request, *, token=None):
    """Waits, bounded by the test's own limit, until the feed has told; every answer before that is a success."""
    while True:
        try:
            await caller.administer("ListGrants", request, token=token)
        except Unauthenticated as error:
            refusal = error
            break
    # A token of a key that is gone is not told apart from any other that does not verify.
    assert refusal.reason in {Reason.TOKEN_REVOKED, Reason.TOKEN_INVALID}


async def _until_peer_refused(caller):
    while True:
        try:
            await caller.token("inference")
        except Unauthenticated as error:
            refusal = error
            break
    assert refusal.reason is Reason.PEER_REFUSED


async def test_a_token_that_is_revoked_again_and_again_changes_nothing_and_a_flood_is_slowed(world):
    caller = await world.enlist(world.operator(), "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    issued, other = await caller.token("inference"), await caller.token("inference")
    sequence = "SELECT (SELECT sequence FROM trust_head), (SELECT count(*) FROM revocation)"
    await caller.revoke_own(issued.token_id)
    before = await world.sql(sequence)
    for _ in range(5):
        await caller.revoke_own(issued.token_id)
    assert await world.sql(sequence) == before
    await caller.revoke_own(other.token_id)  # the twin: another token is another change
    assert await world.sql(sequence) != before
    outcomes = await asyncio.gather(*(caller.revoke_own(issued.token_id) for _ in range(400)), return_exceptions=True)
    slowed = [outcome for outcome in outcomes if outcome is not None]
    assert slowed
    assert {type(outcome) for outcome in slowed} == {Exhausted}
    assert len(slowed) < 300
