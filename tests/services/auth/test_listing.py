"""What operators see: page by page, inside their reach, without secrets, and of verified rows alone."""

from __future__ import annotations

import base64
import json
import secrets

import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import release_service_pb2 as releases
from casemate.auth.v1 import trust_pb2
from casemate.errors import InvalidRequest, NotFound, PermissionDenied
from casemate.secret import Secret
from casemate.signing.keys import SigningKey
from casemate.signing.registration import sign_registration
from services.auth.listing import LARGEST_PAGE, _encode
from tests.services.auth.identities import Signatory, issuer_message
from tests.services.auth.test_cli import Operator
from tests.services.auth.world import build_world, client_message, failure, grant_message, spiffe_id
from tests.support.authority import TRUST_DOMAIN

pytestmark = pytest.mark.asyncio(loop_scope="module")

TENANTS = ("acme", "globex")
LISTS = {
    "ListClients": (admin.ListClientsRequest, "clients", lambda one: one.client.client_id),
    "ListGrants": (admin.ListGrantsRequest, "grants", lambda one: one.id),
    "ListSigners": (admin.ListSignersRequest, "signers", lambda one: one.key_id),
    "ListRevocations": (admin.ListRevocationsRequest, "revocations", lambda one: one.id),
    "ListIssuers": (credentials.ListIssuersRequest, "issuers", lambda one: one.name),
    "ListExchangeGrants": (credentials.ListExchangeGrantsRequest, "grants", lambda one: one.id),
    "ListReleases": (releases.ListReleasesRequest, "releases", lambda one: f"{one.tenant}/{one.model}"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(embedded_postgres, leaf, tmp_path_factory):
    """Two tenants of one shape: each with an administrator, three models and one or two of everything else."""
    database = await embedded_postgres.ensure_database(
        f"test_{secrets.token_hex(8)}", Secret(secrets.token_urlsafe(24))
    )
    async with build_world(database, leaf, tmp_path_factory.mktemp("listing")) as world:
        operator = world.operator()
        administrators = {}
        for tenant in TENANTS:
            enlisted = {"audiences": ("auth",), "scopes": ("admin",)}
            administrators[tenant] = await world.enlist(operator, tenant, "admin", **enlisted)
            await _furnish(operator, world, tenant)
        yield world, operator, administrators


async def _furnish(operator, world, tenant):
    batch = client_message(tenant, "batch")
    batch.authentication = admin.CLIENT_AUTHENTICATION_SECRET
    job = client_message(tenant, "job")
    job.authentication = admin.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT
    for message in (batch, job):
        await operator.administer("CreateClient", admin.CreateClientRequest(client=message))
    for caller in ("one", "two"):
        await operator.administer(
            "CreateGrant", admin.CreateGrantRequest(grant=grant_message(tenant, f"t/{tenant}/{caller}"))
        )
    for name in ("gone", "lost"):
        revoked = admin.RevokeRequest(kind=trust_pb2.REVOCATION_KIND_SPIFFE_ID, value=spiffe_id(tenant, name))
        await operator.administer("Revoke", revoked)
    issuer = issuer_message(Signatory(kid="k1"))
    issuer.name, issuer.tenant = f"{tenant}-idp", tenant
    await operator.administer("RegisterIssuer", credentials.RegisterIssuerRequest(issuer=issuer))
    allowed = credentials.ExchangeGrant(
        tenant=tenant, client_id=f"{tenant}-batch", source=issuer.name, audience="inference", scopes=["models.infer"]
    )
    await operator.administer("CreateExchangeGrant", credentials.CreateExchangeGrantRequest(grant=allowed))
    key = SigningKey.generate()
    registration = admin.RegisterSignerRequest(
        tenant=tenant,
        role=trust_pb2.SIGNER_ROLE_PUBLISHER,
        public_key=key.public.der,
        proof=sign_registration(tenant, "publisher", key, f"auth.{TRUST_DOMAIN}"),
    )
    await operator.administer("RegisterSigner", registration)
    for model in ("a", "b", "c"):
        version = trust_pb2.ReleasedVersion(number=1, manifest_sha256=bytes(32), signer_key_id=key.public.key_id)
        await world.service("inference").record(
            releases.RecordReleaseRequest(tenant=tenant, model=model, version=version)
        )


async def _all(caller, name, *, tenant="", size=0):
    """Every record of a list, and how many pages they were on."""
    request, field, key = LISTS[name]
    found, token, pages = [], "", 0
    while True:
        page = await caller.administer(name, request(tenant=tenant, page_size=size, page_token=token))
        found += [key(one) for one in getattr(page, field)]
        pages += 1
        token = page.next_page_token
        if not token:
            return found, pages


async def test_every_list_goes_through_all_its_pages_once(house):
    _, operator, _ = house
    for name in LISTS:
        whole, pages = await _all(operator, name)
        assert pages == 1, name
        singly, pages = await _all(operator, name, size=1)
        assert (singly, pages) == (whole, len(whole)), name
        assert len(set(whole)) == len(whole) >= 2, name
        assert whole == sorted(whole), name


async def test_an_administrator_sees_its_own_tenant_and_no_other(house):
    _, operator, administrators = house
    for name in LISTS:
        own, _ = await _all(administrators["acme"], name)
        assert own, name
        assert own == (await _all(operator, name, tenant="acme"))[0], name
        assert own == (await _all(administrators["acme"], name, tenant="acme"))[0], name
        others, _ = await _all(operator, name, tenant="globex")
        assert not set(own) & set(others), name
        request = LISTS[name][0]
        assert isinstance(await failure(administrators["acme"].administer(name, request(tenant="globex"))), NotFound)
        # A token of another's pages says only where to go on: what comes is one's own all the same.
        first = await operator.administer(name, request(page_size=1))
        reached = await administrators["globex"].administer(name, request(page_token=first.next_page_token))
        assert {LISTS[name][2](one) for one in getattr(reached, LISTS[name][1])} <= set(others), name


async def test_a_tenant_sees_the_revocations_of_its_names_and_the_house_all_of_them(house):
    _, operator, administrators = house
    own = {"client": "acme-batch", "subject": "acme-job"}
    others = {"token": "some-token", "session": "some-session", "certificate": "some-leaf", "client": "globex-batch"}
    foreign = [("subject", "globex-idp:bob"), ("session", "acme-batch")]  # the name of a client, and not one here
    for kind, value in (*own.items(), ("subject", "acme-idp:alice"), *others.items(), *foreign):
        number = getattr(trust_pb2, f"REVOCATION_KIND_{kind.upper()}")
        await operator.administer("Revoke", admin.RevokeRequest(kind=number, value=value))
    lists, kinds = {}, {}
    for name, caller in (("acme", administrators["acme"]), ("house", operator)):
        page = await caller.administer("ListRevocations", admin.ListRevocationsRequest())
        lists[name] = {one.value for one in page.revocations}
        kinds[name] = {one.kind for one in page.revocations}
    gone = {spiffe_id("acme", name) for name in ("gone", "lost")}
    assert lists["acme"] == {*own.values(), "acme-idp:alice", *gone}
    assert lists["house"] > lists["acme"] | set(others.values()) | {"globex-idp:bob"}
    assert kinds["house"] - kinds["acme"] >= {trust_pb2.REVOCATION_KIND_SESSION, trust_pb2.REVOCATION_KIND_TOKEN}


async def test_tenants_are_all_for_the_house_and_one_for_another(house):
    _, operator, administrators = house
    seen = await operator.administer("ListTenants", admin.ListTenantsRequest(page_size=2))
    assert [tenant.name for tenant in seen.tenants] == ["acme", "casemate"]
    seen = await operator.administer(
        "ListTenants", admin.ListTenantsRequest(page_size=2, page_token=seen.next_page_token)
    )
    assert ([tenant.name for tenant in seen.tenants], seen.next_page_token) == (["globex"], "")
    own = await administrators["acme"].administer("ListTenants", admin.ListTenantsRequest())
    assert [tenant.name for tenant in own.tenants] == ["acme"]


async def test_what_is_listed_of_one_client_is_its_own_and_no_secret(house):
    _, operator, administrators = house
    made = await operator.administer(
        "CreateClientSecret", credentials.CreateClientSecretRequest(client_id="acme-batch")
    )
    key = SigningKey.generate().public
    await operator.administer("AddClientKey", credentials.AddClientKeyRequest(client_id="acme-job", public_key=key.der))
    asked = {
        "GetClient": admin.GetClientRequest(client_id="acme-batch"),
        "ListClientSecrets": credentials.ListClientSecretsRequest(client_id="acme-batch"),
        "ListClientKeys": credentials.ListClientKeysRequest(client_id="acme-job"),
    }
    seen = {name: await administrators["acme"].administer(name, request) for name, request in asked.items()}
    status = seen["GetClient"].client
    assert (status.client.spiffe_id, status.enabled) == (spiffe_id("acme", "batch"), True)
    assert [secret.id for secret in seen["ListClientSecrets"].secrets] == [made.id]
    assert made.secret.encode() not in b"".join(answer.SerializeToString() for answer in seen.values())
    assert [(one.key_id, one.public_key) for one in seen["ListClientKeys"].keys] == [(key.key_id, key.der)]
    for name, request in asked.items():
        foreign = await failure(administrators["globex"].administer(name, request))
        request.client_id = "nobody"
        absent = await failure(administrators["globex"].administer(name, request))
        assert isinstance(foreign, NotFound), name
        assert (foreign.public_message, foreign.reason) == (absent.public_message, absent.reason), name


async def test_a_page_that_cannot_be_is_refused_by_its_field(house):
    _, operator, _ = house
    wrong = ("%", "====", "AAA", _encode(("a", "b", "c")), _encode(("a\x00",)), "A" * 600, "é")
    for name, (request, _, _) in LISTS.items():
        for token in wrong:
            error = await failure(operator.administer(name, request(page_token=token)))
            assert isinstance(error, InvalidRequest), (name, token)
            assert {violation.field for violation in error.violations} == {"page_token"}
    error = await failure(operator.administer("ListClients", admin.ListClientsRequest(tenant="Acme")))
    assert {violation.field for violation in error.violations} == {"tenant"}
    nothing = base64.urlsafe_b64encode(b"zz").decode()
    assert not (await operator.administer("ListClients", admin.ListClientsRequest(page_token=nothing))).clients
    await operator.administer("ListClients", admin.ListClientsRequest(page_size=2**32 - 1))


async def test_lists_need_the_scope_of_an_administrator(house):
    world, operator, _ = house
    inspector = await world.enlist(operator, "acme", "inspector", audiences=("auth",), scopes=("admin", "reflection"))
    narrow = (await inspector.token("auth", ("reflection",))).access_token
    for name, (request, _, _) in LISTS.items():
        assert isinstance(await failure(inspector.administer(name, request(), token=narrow)), PermissionDenied), name
        await inspector.administer(name, request())


async def test_a_row_that_sql_made_is_not_listed_and_does_not_end_a_list(house):
    world, operator, _ = house
    before, _ = await _all(operator, "ListClients")
    await world.sql(
        "INSERT INTO client (client_id, tenant, spiffe_id, audiences, scopes, enabled, created_at, mac)"
        " SELECT 'acme-a', tenant, spiffe_id || '/a', audiences, scopes, enabled, created_at, mac"
        " FROM client WHERE client_id = 'acme-admin'"
    )
    sounded = world.alarms
    assert (await _all(operator, "ListClients", size=1))[0] == before
    assert world.alarms > sounded
    await world.sql("DELETE FROM client WHERE client_id = 'acme-a'")


async def test_no_page_is_larger_than_the_largest(house):
    world, operator, _ = house
    await world.sql(
        "INSERT INTO tenant (name, created_at, mac) SELECT 'zz' || n, now(), '\\x00' FROM generate_series(1, $1) AS n",
        LARGEST_PAGE,
    )
    page = await operator.administer("ListTenants", admin.ListTenantsRequest(page_size=10_000))
    assert page.next_page_token
    await world.sql("DELETE FROM tenant WHERE name LIKE 'zz%'")
    assert not (await operator.administer("ListTenants", admin.ListTenantsRequest(page_size=10_000))).next_page_token


async def test_the_commands_list_what_there_is_as_lines_and_as_json(house, tmp_path):
    world, _, _ = house
    operator = Operator(world, tmp_path)
    denied = ("--tenant", "acme", "--caller", "t/acme/one", "--verb", "infer", "--resource", "model/a", "--deny")
    grant = await operator.say("grant", "create", *denied)
    expected = {
        ("tenant", "list"): ("tenant", "acme"),
        ("client", "list", "--tenant", "acme"): ("client_id", "acme-batch"),
        ("operator", "list"): ("client_id", "operator"),
        ("client", "show", "acme-batch"): ("spiffe_id", spiffe_id("acme", "batch")),
        ("grant", "list", "--tenant", "acme"): ("id", grant),
        ("signer", "list"): ("role", "publisher"),
        ("issuer", "list"): ("name", "globex-idp"),
        ("issuer", "allowed", "--tenant", "globex"): ("client_id", "globex-batch"),
        ("release", "list", "--tenant", "globex"): ("model", "c"),
        ("revocation", "list", "--tenant", "acme"): ("value", spiffe_id("acme", "gone")),
        ("revocation", "list"): ("kind", "spiffe-id"),
        ("token-key", "list"): ("state", "active"),
    }
    for words, (name, value) in expected.items():
        assert value in (await operator.say(*words)).replace(",", " ").split(), words
        found = [json.loads(line) for line in (await operator.say(*words, "--json")).splitlines()]
        assert value in {one[name] for one in found}, words
    effects = {one["id"]: one["effect"] for one in map(json.loads, (await _lines(operator, "grant", "list")))}
    assert (effects.pop(grant), set(effects.values())) == ("deny", {"allow"})
    made = (await operator.say("client", "secret", "create", "globex-batch")).splitlines()[-1]
    for words in (("client", "secret", "list", "globex-batch"), ("client", "show", "globex-batch")):
        text = await operator.say(*words)
        assert "secret-" in text
        assert made not in text
    assert (await operator.say("client", "key", "list", "globex-job")) == ""


async def _lines(operator, *words):
    return (await operator.say(*words, "--json")).splitlines()
