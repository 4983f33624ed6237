"""What operators may change, how far an administrator reaches, and what every change must be like."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.timestamp_pb2 import Timestamp

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import trust_pb2
from casemate.errors import AlreadyExists, InvalidRequest, NotFound, PermissionDenied, Reason, SignatureInvalid
from casemate.gate.core.records import Revocation, RevocationKind
from casemate.signing.keys import SigningKey
from casemate.signing.statements import sign_registration
from services.auth.listing import Listing, Place
from services.auth.store.listing import ListingStore
from tests.services.auth.identities import Signatory, issuer_message
from tests.services.auth.lines import HandClock
from tests.services.auth.world import client_message, failure, grant_message, spiffe_id
from tests.support.authority import TRUST_DOMAIN

AUDIENCE = f"auth.{TRUST_DOMAIN}"


async def _tenant_admin(world, tenant):
    return await world.enlist(world.operator(), tenant, "admin", audiences=("auth",), scopes=("admin",))


def _registration(key, *, tenant="acme", role="supplier", proof=None):
    return admin.RegisterSignerRequest(
        tenant=tenant,
        role=trust_pb2.SIGNER_ROLE_SUPPLIER if role == "supplier" else trust_pb2.SIGNER_ROLE_PUBLISHER,
        public_key=key.public.der,
        proof=proof if proof is not None else sign_registration(tenant, role, key, AUDIENCE),
    )


def _named(client_id, tenant, name):
    message = client_message(tenant, name)
    message.client_id = client_id
    return message


def _creation(client_id, tenant, name):
    return admin.CreateClientRequest(client=_named(client_id, tenant, name))


def _issuer(name, tenant):
    issuer = issuer_message(Signatory(kid="k1"), name=name, tenant=tenant)
    return credentials.RegisterIssuerRequest(issuer=issuer)


def _fields(error):
    return {violation.field for violation in error.violations}


async def test_an_operator_makes_a_tenant_once(world):
    operator = world.operator()
    await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant="acme"))
    error = await failure(operator.administer("CreateTenant", admin.CreateTenantRequest(tenant="acme")))
    assert isinstance(error, AlreadyExists)


async def test_an_administrator_of_a_tenant_makes_no_tenants(world):
    administrator = await _tenant_admin(world, "acme")
    error = await failure(administrator.administer("CreateTenant", admin.CreateTenantRequest(tenant="globex")))
    assert isinstance(error, PermissionDenied)
    assert error.reason is Reason.CALLER_NOT_ALLOWED


async def test_a_tenant_of_another_form_is_refused_by_its_field(world):
    operator = world.operator()
    for name in ("", "Acme", "a/b", "-acme", "acme\n", "a" * 64, "ácme", "acme\x00"):
        error = await failure(operator.administer("CreateTenant", admin.CreateTenantRequest(tenant=name)))
        assert isinstance(error, InvalidRequest), name
        assert _fields(error) == {"tenant"}
    await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant="a" * 63))


FOREIGN_NAMES = (
    spiffe_id("globex", "caller"),
    f"spiffe://{TRUST_DOMAIN}/svc/auth",
    "spiffe://elsewhere.example/t/acme/caller",
    f"spiffe://{TRUST_DOMAIN}/t/acme/",
    f"spiffe://{TRUST_DOMAIN}/t/acme/../globex/caller",
    f"spiffe://{TRUST_DOMAIN}/t/acmecorp/caller",
    "",
)


async def test_a_client_outside_its_tenants_path_is_refused(world):
    operator = world.operator()
    await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant="acme"))
    for name in FOREIGN_NAMES:
        message = client_message("acme", "caller")
        message.spiffe_id = name
        error = await failure(operator.administer("CreateClient", admin.CreateClientRequest(client=message)))
        assert isinstance(error, InvalidRequest), name
        assert _fields(error) == {"client.spiffe_id"}
    await operator.administer("CreateClient", admin.CreateClientRequest(client=client_message("acme", "caller")))


async def test_everything_that_is_wrong_with_a_client_is_named_at_once(world):
    message = admin.Client(client_id="", tenant="Acme", spiffe_id="x", audiences=("billing",), scopes=("everything",))
    error = await failure(world.operator().administer("CreateClient", admin.CreateClientRequest(client=message)))
    assert _fields(error) == {
        "client.client_id",
        "client.tenant",
        "client.spiffe_id",
        "client.audiences",
        "client.scopes",
    }


async def test_a_client_of_a_tenant_that_does_not_exist_is_not_found(world):
    request = admin.CreateClientRequest(client=client_message("acme", "caller"))
    assert isinstance(await failure(world.operator().administer("CreateClient", request)), NotFound)


async def test_a_spiffe_id_and_an_identifier_belong_to_one_client(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    same_name = client_message("acme", "caller")
    same_name.client_id = "other"
    same_id = client_message("acme", "caller")
    same_id.spiffe_id = spiffe_id("acme", "other")
    for message in (same_name, same_id):
        error = await failure(operator.administer("CreateClient", admin.CreateClientRequest(client=message)))
        assert isinstance(error, AlreadyExists)


async def test_an_administrator_reaches_its_own_tenant_and_no_other(world):
    operator = world.operator()
    administrator = await _tenant_admin(world, "acme")
    await world.enlist(operator, "globex", "caller", audiences=("inference",), scopes=("models.infer",))
    foreign_grant = admin.CreateGrantRequest(grant=grant_message("globex", "t/globex/caller"))
    granted = await operator.administer("CreateGrant", foreign_grant)
    key = SigningKey.generate()
    registered = await operator.administer("RegisterSigner", _registration(key, tenant="globex"))
    outside = {
        "CreateClient": admin.CreateClientRequest(client=_named("globex.second", "globex", "second")),
        "DisableClient": admin.DisableClientRequest(client_id="globex-caller"),
        "CreateGrant": foreign_grant,
        "DeleteGrant": admin.DeleteGrantRequest(id=granted.id),
        "ListGrants": admin.ListGrantsRequest(tenant="globex"),
        "RegisterSigner": _registration(SigningKey.generate(), tenant="globex"),
        "RevokeSigner": admin.RevokeSignerRequest(key_id=registered.key_id),
        "Revoke": admin.RevokeRequest(kind="REVOCATION_KIND_CLIENT", value="globex-caller"),
    }
    for name, request in outside.items():
        assert isinstance(await failure(administrator.administer(name, request)), NotFound), name
    named = admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=spiffe_id("globex", "caller"))
    assert isinstance(await failure(administrator.administer("Revoke", named)), NotFound)
    for name, request in outside.items():
        await operator.administer(name, request)


async def test_an_administrator_does_in_its_own_tenant_what_it_may_not_elsewhere(world):
    administrator = await _tenant_admin(world, "acme")
    named = _named("acme.caller", "acme", "caller")
    await administrator.administer("CreateClient", admin.CreateClientRequest(client=named))
    request = admin.CreateGrantRequest(grant=grant_message("acme", "t/acme/*", resource="model/*"))
    made = await administrator.administer("CreateGrant", request)
    listed = await administrator.administer("ListGrants", admin.ListGrantsRequest(tenant="acme"))
    assert [grant.id for grant in listed.grants] == [made.id]
    await administrator.administer("DeleteGrant", admin.DeleteGrantRequest(id=made.id))
    again = await failure(administrator.administer("DeleteGrant", admin.DeleteGrantRequest(id=made.id)))
    assert isinstance(again, NotFound)
    await administrator.administer(
        "Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=spiffe_id("acme", "caller"))
    )
    await administrator.administer("DisableClient", admin.DisableClientRequest(client_id="acme.caller"))


async def test_nobody_learns_of_another_tenants_names_by_trying_them(world):
    """What is taken and what is free is refused alike, by its form; in one's own names "taken" is said."""
    operator = world.operator()
    administrator = await _tenant_admin(world, "acme")
    await world.enlist(operator, "globex", "caller", audiences=("inference",), scopes=("models.infer",))
    await operator.administer("CreateClient", _creation("globex.batch", "globex", "batch"))
    idp = issuer_message(Signatory(kid="k1"), name="globex.idp", tenant="globex")
    await operator.administer("RegisterIssuer", credentials.RegisterIssuerRequest(issuer=idp))
    tried = ("globex-caller", "globex-nobody", "globex.batch", "globex.nobody", "operator", "nobody", "nobody.x")
    refusals = []
    for name in tried:
        error = await failure(administrator.administer("CreateClient", _creation(name, "acme", "caller")))
        refusals.append((type(error), error.reason, error.public_message, error.violations))
        refused = await failure(administrator.administer("RegisterIssuer", _issuer(name, "acme")))
        assert isinstance(refused, InvalidRequest), name
    assert len(set(refusals)) == 1
    assert refusals[0][0] is InvalidRequest
    for create, request in (
        ("CreateClient", _creation("acme.caller", "acme", "caller")),
        ("RegisterIssuer", _issuer("acme.idp", "acme")),
    ):
        await administrator.administer(create, request)
        assert isinstance(await failure(administrator.administer(create, request)), AlreadyExists), create


async def test_what_is_taken_is_named_by_its_field(world):
    operator = world.operator()
    administrator = await _tenant_admin(world, "acme")
    await administrator.administer("CreateClient", _creation("acme.caller", "acme", "caller"))
    taken = {
        ("acme.caller", "other"): {"client.client_id"},
        ("acme.other", "caller"): {"client.spiffe_id"},
        ("acme.caller", "caller"): {"client.client_id", "client.spiffe_id"},
    }
    for caller in (administrator, operator):
        for (client_id, name), fields in taken.items():
            error = await failure(caller.administer("CreateClient", _creation(client_id, "acme", name)))
            assert (type(error), _fields(error)) == (AlreadyExists, fields), client_id
    shared = _creation("acme.third", "acme", "caller")
    shared.client.authentication = admin.CLIENT_AUTHENTICATION_SECRET  # which several may share
    await administrator.administer("CreateClient", shared)


async def test_what_another_tenant_took_by_sql_is_not_named(world):
    """By the application alone no name reaches over: such a row tells its own tenant's administrator nothing."""
    operator = world.operator()
    administrator = await _tenant_admin(world, "acme")
    await world.enlist(operator, "globex", "caller", audiences=("inference",), scopes=("models.infer",))
    await world.sql(
        "UPDATE client SET client_id = 'acme.caller', spiffe_id = $1 WHERE client_id = 'globex-caller'",
        spiffe_id("acme", "caller"),
    )
    error = await failure(administrator.administer("CreateClient", _creation("acme.caller", "acme", "caller")))
    assert (type(error), error.violations) == (AlreadyExists, ())
    await administrator.administer("CreateClient", _creation("acme.other", "acme", "other"))


async def test_a_tenants_prefix_is_nobody_elses_not_even_by_an_operator(world):
    operator = world.operator()
    await _tenant_admin(world, "acme")
    await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant="globex"))
    for name in ("acme.caller", "later.caller"):
        error = await failure(operator.administer("CreateClient", _creation(name, "globex", "caller")))
        assert _fields(error) == {"client.client_id"}, name
        error = await failure(operator.administer("RegisterIssuer", _issuer(name, "globex")))
        assert _fields(error) == {"issuer.name"}, name
    for name in ("globex.caller", "globex-second", "Later.third"):
        await operator.administer("CreateClient", _creation(name, "globex", name.lower()))
    await operator.administer("RegisterIssuer", _issuer("globex.idp", "globex"))


async def test_what_names_no_tenant_is_revoked_by_operators_alone(world):
    administrator = await _tenant_admin(world, "acme")
    operator = world.operator()
    for kind in ("TOKEN", "SESSION", "CERTIFICATE"):
        request = admin.RevokeRequest(kind=f"REVOCATION_KIND_{kind}", value="unknown")
        error = await failure(administrator.administer("Revoke", request))
        assert error.reason is Reason.CALLER_NOT_ALLOWED, kind
        first = await operator.administer("Revoke", request)
        second = await operator.administer("Revoke", request)
        assert first.id.startswith("revocation-"), kind
        # A later revocation of the same that would end later is one more; of one token or session it is the same.
        assert (first.id == second.id) == (kind != "CERTIFICATE"), kind
    unknown_key = admin.RevokeRequest(kind="REVOCATION_KIND_KEY", value="unknown")
    assert (await failure(administrator.administer("Revoke", unknown_key))).reason is Reason.CALLER_NOT_ALLOWED
    assert isinstance(await failure(operator.administer("Revoke", unknown_key)), NotFound)


UNSOUND_GRANTS = (
    ({"caller": "t/globex/*"}, "grant.caller"),
    ({"caller": "t/*/caller"}, "grant.caller"),
    ({"caller": "t/acme"}, "grant.caller"),
    ({"caller": "svc/datasets"}, "grant.caller"),
    ({"caller": "*"}, "grant.caller"),
    ({"caller": "t/acme//caller"}, "grant.caller"),
    ({"verb": "steal"}, "grant.verb"),
    ({"verb": ""}, "grant.verb"),
    ({"resource": "model"}, "grant.resource"),
    ({"resource": "*/*"}, "grant.resource"),
    ({"resource": "model/a/b"}, "grant.resource"),
    ({"effect": trust_pb2.EFFECT_UNSPECIFIED}, "grant.effect"),
    ({"id": "grant-mine"}, "grant.id"),
    ({"expires_at": Timestamp(seconds=1)}, "grant.expires_at"),
    ({"expires_at": Timestamp(seconds=2**60)}, "grant.expires_at"),
)


async def test_a_grant_that_reaches_too_far_or_says_nothing_is_refused(world):
    administrator = await _tenant_admin(world, "acme")
    for change, field in UNSOUND_GRANTS:
        message = grant_message("acme", "t/globex/caller", verb="*", resource="model/*")
        sound = admin.CreateGrantRequest(grant=message)
        for name, value in change.items():
            if isinstance(value, Timestamp):
                getattr(message, name).CopyFrom(value)
            else:
                setattr(message, name, value)
        error = await failure(administrator.administer("CreateGrant", admin.CreateGrantRequest(grant=message)))
        assert isinstance(error, InvalidRequest), change
        assert _fields(error) == {field}, change
        await administrator.administer("CreateGrant", sound)


async def test_a_signer_is_registered_on_proof_that_its_key_is_held(world):
    administrator = await _tenant_admin(world, "acme")
    key = SigningKey.generate()
    made = await administrator.administer("RegisterSigner", _registration(key))
    assert made.key_id == key.public.key_id
    rows = await world.sql("SELECT tenant, role, valid_until - valid_from AS life FROM signer")
    assert [(row["tenant"], row["role"], row["life"]) for row in rows] == [("acme", "supplier", timedelta(days=365))]
    again = await failure(administrator.administer("RegisterSigner", _registration(key)))
    assert isinstance(again, AlreadyExists)


async def test_a_proof_about_something_else_is_none(world):
    administrator = await _tenant_admin(world, "acme")
    key, other = SigningKey.generate(), SigningKey.generate()
    proofs = [
        sign_registration("acme", "supplier", other, AUDIENCE),
        sign_registration("globex", "supplier", key, AUDIENCE),
        sign_registration("acme", "publisher", key, AUDIENCE),
        sign_registration("acme", "supplier", key, "auth.elsewhere.example"),
    ]
    for proof in proofs:
        error = await failure(administrator.administer("RegisterSigner", _registration(key, proof=proof)))
        assert isinstance(error, SignatureInvalid)
    await administrator.administer("RegisterSigner", _registration(key))


async def test_a_weak_key_is_no_signer(world):
    administrator = await _tenant_admin(world, "acme")
    weak = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    request = _registration(SigningKey.generate())
    request.public_key = weak.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    error = await failure(administrator.administer("RegisterSigner", request))
    assert error.reason is Reason.WEAK_KEY


async def test_a_signers_compromise_moves_back_in_time_and_never_forward(world):
    administrator = await _tenant_admin(world, "acme")
    key = SigningKey.generate()
    await administrator.administer("RegisterSigner", _registration(key))
    for month in (3, 2, 4):
        request = admin.RevokeSignerRequest(key_id=key.public.key_id)
        request.compromised_since.FromDatetime(datetime(2026, month, 1, tzinfo=UTC))
        await administrator.administer("RevokeSigner", request)
    assert (await world.sql("SELECT compromised_since FROM signer"))[0][0] == datetime(2026, 2, 1, tzinfo=UTC)
    await administrator.administer("RevokeSigner", admin.RevokeSignerRequest(key_id=key.public.key_id))
    assert (await world.sql("SELECT compromised_since FROM signer"))[0][0] == datetime(1970, 1, 1, tzinfo=UTC)


async def test_a_grant_inserted_by_sql_is_not_even_listed(world):
    administrator = await _tenant_admin(world, "acme")
    request = admin.CreateGrantRequest(grant=grant_message("acme", "t/acme/caller"))
    made = await administrator.administer("CreateGrant", request)
    await world.sql(
        "INSERT INTO access_grant SELECT 'grant-forged', tenant, 't/acme/mallory', verb, resource, effect, expires_at,"
        " mac FROM access_grant"
    )
    before = world.alarms
    listed = await administrator.administer("ListGrants", admin.ListGrantsRequest(tenant="acme"))
    assert [grant.id for grant in listed.grants] == [made.id]
    assert world.alarms == before + 1


async def test_changes_and_refusals_are_audited(world):
    administrator = await _tenant_admin(world, "acme")
    await failure(administrator.administer("CreateTenant", admin.CreateTenantRequest(tenant="globex")))
    events = [json.loads(line) for line in await _audited(world, 5)]
    assert {"/casemate.auth.v1.AdminService/CreateClient", "/casemate.auth.v1.TokenService/IssueToken"} <= {
        event["method"] for event in events
    }
    assert any(event.get("client_id") == "acme-admin" for event in events)


async def _audited(world, count):
    """The lines of the audit once there are so many; they are written beside the calls."""
    while True:
        lines = world.settings.audit_file.read_text().splitlines()
        if len(lines) >= count:
            return lines
        await asyncio.sleep(0)


async def test_a_revocation_that_can_match_nothing_any_more_is_not_listed(shelf):
    clock = HandClock()
    ends = clock.now() + timedelta(minutes=6)
    for name, expires_at in (("a", ends), ("b", None)):
        revocation = Revocation(id=name, kind=RevocationKind.TOKEN, value=name, expires_at=expires_at)
        await shelf.store.revoke(revocation, now=clock.now())
    listing = Listing(store=ListingStore(pool=shelf.pool, tables=shelf.tables), clock=clock)
    for expected in ({"a", "b"}, {"b"}):
        assert {one.value for one in (await listing.revocations("casemate", Place())).records} == expected
        clock.pass_by(timedelta(minutes=6))
