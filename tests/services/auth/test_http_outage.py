"""The HTTPS face without its database, and what its log and audit must never hold."""

from __future__ import annotations

import asyncio
import base64
import logging

import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.storage.pool import open_connection
from services.auth.http_forms import ASSERTION_TYPE
from tests.services.auth.http_world import facing
from tests.services.auth.identities import Signatory
from tests.services.auth.world import SOON

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}
ISSUE = {"grant_type": "client_credentials", "audience": "inference"}


@pytest.fixture
async def face(world):
    async with facing(world) as built:
        yield built


async def by_secret(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "batch", authentication=admin.CLIENT_AUTHENTICATION_SECRET, **INFERENCE)
    request = credentials.CreateClientSecretRequest(client_id="acme-batch")
    return (await operator.administer("CreateClientSecret", request)).secret


async def test_without_the_database_it_says_that_it_cannot_now_and_shows_its_keys_all_the_same(
    world, face, embedded_postgres
):
    shown = {**ISSUE, "client_id": "acme-batch", "client_secret": await by_secret(world)}
    batch = await face.client("acme", "batch")
    assert (await batch.post("/oauth2/token", shown)).status == 200
    name, role = world.settings.database.name, world.settings.database.user
    superuser = await open_connection(embedded_postgres.superuser)
    try:
        await superuser.execute(f'ALTER ROLE "{role}" NOLOGIN')
        await superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)
        async with asyncio.timeout(SOON):
            while (reply := await batch.post("/oauth2/token", shown)).status == 200:
                await asyncio.sleep(0.01)
        assert reply.error == (503, "temporarily_unavailable")
        wrong = {**shown, "client_secret": "x"}
        assert (await batch.post("/oauth2/token", wrong)).error == (503, "temporarily_unavailable")
        assert len((await batch.get("/.well-known/jwks.json")).json["keys"]) == 1
    finally:
        await superuser.execute(f'ALTER ROLE "{role}" LOGIN')
        await superuser.close()
    async with asyncio.timeout(SOON):
        while (await batch.post("/oauth2/token", shown)).status != 200:
            await asyncio.sleep(0.05)


async def test_nothing_that_a_client_showed_is_in_any_log_line_nor_in_the_audit(world, face, caplog):
    caplog.set_level(logging.DEBUG)
    secret, assertion = await by_secret(world), Signatory().assertion("acme-batch")
    batch = await face.client("acme", "batch")
    shown = {**ISSUE, "client_id": "acme-batch", "client_secret": secret}
    token = (await batch.post("/oauth2/token", shown)).json["access_token"]
    basic = base64.b64encode(f"acme-batch:{secret}".encode()).decode()
    for form, headers in (
        (ISSUE, {"Authorization": f"Basic {basic}"}),
        (ISSUE, {"Authorization": f"Basic {basic}!"}),
        (ISSUE, {"Authorization": f"Bearer {token}"}),
        ({**shown, "client_id": "acme-other"}, {}),
        ({**shown, "client_secret": secret + "x"}, {}),
        ({**shown, "scope": secret}, {}),
        ({**shown, "audience": secret}, {}),
        ({**ISSUE, "client_assertion": assertion, "client_assertion_type": ASSERTION_TYPE}, {}),
        ({"grant_type": "refresh_token", "refresh_token": secret, "client_id": "acme-batch"}, {}),
        ({"grant_type": secret}, {}),
        (f"client_secret={secret}&client_secret={secret}", {}),
        (f"client_secret={secret}%zz", {}),
    ):
        await batch.post("/oauth2/token", form, **headers)
    await batch.post("/oauth2/introspect", {"token": token, "client_id": "acme-batch", "client_secret": secret})
    await batch.post("/oauth2/revoke", {"token": token[:-3], "client_id": "acme-batch", "client_secret": secret})
    await batch.get(f"/oauth2/{secret}")
    for malformed in (f"POST /{secret} HTTP/9.9\r\n\r\n", f"{secret}\r\n\r\n", f"GET / HTTP/1.1\r\n{secret}\r\n\r\n"):
        line = await face.client("acme", "batch")
        await line.say(malformed)
        assert (await line.hear()).status == 400
    text = caplog.text + world.settings.audit_file.read_text()
    for hidden in (secret, basic, token, assertion):
        assert hidden not in text
        assert hidden.rsplit(".", 1)[-1] not in text
