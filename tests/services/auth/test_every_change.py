"""Every rpc that changes the authority is audited, and has the transparency log told; a new one cannot forget."""

from __future__ import annotations

import asyncio
import json

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import release_service_pb2 as releases
from casemate.auth.v1 import trust_pb2
from services.auth import log_entries
from services.auth.store.changes import EventKind
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.services.auth.test_labels import register
from tests.services.auth.test_labels import request as label_request
from tests.services.auth.world import SOON, client_message, grant_message

SERVICES = (admin, credentials, releases)
CHANGES = {
    "CreateTenant": {EventKind.TENANT},
    "CreateClient": {EventKind.CLIENT},
    "DisableClient": {EventKind.CLIENT, EventKind.REVOCATION},
    "EnableClient": {EventKind.CLIENT},
    "CreateGrant": {EventKind.GRANT},
    "DeleteGrant": {EventKind.GRANT},
    "RegisterSigner": {EventKind.SIGNER},
    "RevokeSigner": {EventKind.SIGNER, EventKind.RELEASE},
    "Revoke": {EventKind.REVOCATION},
    "CreateClientSecret": {EventKind.CLIENT_SECRET},
    "DeleteClientSecret": {EventKind.CLIENT_SECRET},
    "AddClientKey": {EventKind.CLIENT_KEY},
    "RemoveClientKey": {EventKind.CLIENT_KEY},
    "RegisterIssuer": {EventKind.ISSUER},
    "RemoveIssuer": {EventKind.ISSUER, EventKind.REVOCATION, EventKind.EXCHANGE_GRANT},
    "CreateExchangeGrant": {EventKind.EXCHANGE_GRANT},
    "DeleteExchangeGrant": {EventKind.EXCHANGE_GRANT},
    "RecordRelease": {EventKind.RELEASE},
    "SetLabel": {EventKind.RELEASE},
}


def _methods():
    for module in SERVICES:
        for service in module.DESCRIPTOR.services_by_name.values():
            yield from service.methods


def test_every_rpc_of_the_administration_that_does_not_only_read_is_in_this_table():
    assert {method.name for method in _methods() if not method.name.startswith(("List", "Get"))} == CHANGES.keys()


def test_every_kind_of_change_has_its_kind_of_entry_in_the_log():
    assert log_entries.KINDS.keys() == set(EventKind)


class _Witnessed:
    """Makes changes, and notes which kinds of events each had."""

    def __init__(self, world):
        self._world = world
        self.found = {}

    async def __call__(self, name, change):
        before = await self._world.sql("SELECT sequence FROM trust_head")
        answer = await change
        rows = await self._world.sql("SELECT kind FROM trust_event WHERE sequence > $1", before[0]["sequence"])
        self.found[name] = self.found.get(name, set()) | {EventKind(row["kind"]) for row in rows}
        return answer

    async def do(self, operator, name, request):
        return await self(name, operator.administer(name, request))


async def test_every_change_is_told_to_the_log_and_audited(world):
    operator, noted = world.operator(), _Witnessed(world)
    await operator.token("auth", ("admin",))
    await noted.do(operator, "CreateTenant", admin.CreateTenantRequest(tenant="acme"))
    await _clients(operator, noted)
    grant = await noted.do(operator, "CreateGrant", admin.CreateGrantRequest(grant=grant_message("acme", "t/acme/a")))
    await noted.do(operator, "DeleteGrant", admin.DeleteGrantRequest(id=grant.id))
    await noted.do(operator, "Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value="a-token"))
    await _exchange(operator, noted)
    await _releases(world, operator, noted)
    assert noted.found == CHANGES
    await _audited(world, CHANGES.keys())


async def _clients(operator, noted):
    for name, method in (("batch", 3), ("job", 2), ("gateway", 1)):
        client = client_message("acme", name)
        client.authentication = method
        await noted.do(operator, "CreateClient", admin.CreateClientRequest(client=client))
    of_batch = {"client_id": "acme-batch"}
    made = await noted.do(operator, "CreateClientSecret", credentials.CreateClientSecretRequest(**of_batch))
    await noted.do(operator, "DeleteClientSecret", credentials.DeleteClientSecretRequest(id=made.id, **of_batch))
    key = credentials.AddClientKeyRequest(client_id="acme-job", public_key=Signatory().der)
    added = await noted.do(operator, "AddClientKey", key)
    removed = credentials.RemoveClientKeyRequest(client_id="acme-job", key_id=added.key_id)
    await noted.do(operator, "RemoveClientKey", removed)
    await noted.do(operator, "DisableClient", admin.DisableClientRequest(client_id="acme-job"))
    await noted.do(operator, "EnableClient", admin.EnableClientRequest(client_id="acme-job"))


async def _exchange(operator, noted):
    issuer = credentials.RegisterIssuerRequest(issuer=issuer_message(Signatory(kid="k1")))
    await noted.do(operator, "RegisterIssuer", issuer)
    first = await noted.do(operator, "CreateExchangeGrant", exchange_grant())
    await noted.do(operator, "DeleteExchangeGrant", credentials.DeleteExchangeGrantRequest(id=first.id))
    await noted.do(operator, "CreateExchangeGrant", exchange_grant())
    await noted.do(operator, "RemoveIssuer", credentials.RemoveIssuerRequest(name="idp"))


async def _releases(world, operator, noted):
    publisher = await noted("RegisterSigner", register(world, "publisher"))
    labeller = await register(world, "operator")
    inference = world.service("inference")
    version = trust_pb2.ReleasedVersion(number=1, manifest_sha256=b"\x01" * 32, signer_key_id=publisher.public.key_id)
    release = releases.RecordReleaseRequest(tenant="acme", model="digits", version=version)
    await noted("RecordRelease", inference.record(release))
    await noted("SetLabel", operator.set_label(label_request(labeller)))
    revoked = admin.RevokeSignerRequest(key_id=labeller.public.key_id)
    await noted.do(operator, "RevokeSigner", revoked)


async def _audited(world, names):
    """Returns once the audit has an allowed call of each of these methods."""
    async with asyncio.timeout(SOON):
        while True:
            lines = [json.loads(line) for line in world.settings.audit_file.read_text().splitlines()]
            allowed = {line["method"].rpartition("/")[2] for line in lines if line.get("decision") == "allowed"}
            if names <= allowed:
                return
            await asyncio.sleep(0.01)
