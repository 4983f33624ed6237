"""What an answer costs must not tell what it does not say: unknown, wrong and disabled do the same work over HTTPS."""

from __future__ import annotations

from datetime import timedelta

import asyncpg
import pytest

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from services.auth.http_forms import ASSERTION_TYPE
from tests.services.auth.http_world import facing
from tests.services.auth.identities import Signatory
from tests.services.auth.world import build_world

INFERENCE = {"audiences": ("inference",), "scopes": ("models.infer",)}
ISSUE = {"grant_type": "client_credentials", "audience": "inference"}


@pytest.fixture
async def asked(monkeypatch, database, leaf, tmp_path):
    """A service, and all that it asks of its database about clients, from now on."""
    statements: list[str] = []
    make = asyncpg.create_pool

    def recording(*arguments, **options):
        async def begin(connection):
            connection.add_query_logger(lambda record: statements.append(record.query))

        assert "init" not in options
        return make(*arguments, init=begin, **options)

    monkeypatch.setattr(asyncpg, "create_pool", recording)
    async with build_world(database, leaf, tmp_path, heartbeat=timedelta(hours=1)) as world, facing(world) as face:
        yield face, statements


def about_clients(statements):
    return [one for one in statements if "FROM client" in one or "INTO used_assertion" in one]


async def test_unknown_wrong_and_disabled_secrets_and_assertions_cost_the_same_statements(asked):
    face, statements = asked
    world, operator = face.world, face.world.operator()
    secret, assertions = {}, Signatory()
    for name, how in (
        ("batch", admin.CLIENT_AUTHENTICATION_SECRET),
        ("job", admin.CLIENT_AUTHENTICATION_PRIVATE_KEY_JWT),
    ):
        await world.enlist(operator, "acme", name, authentication=how, **INFERENCE)
    for name in ("acme-batch", "acme-off"):
        if name == "acme-off":
            off = admin.Client(client_id=name, tenant="acme", spiffe_id="spiffe://casemate.internal/t/acme/batch")
            off.audiences.append("inference")
            off.scopes.append("models.infer")
            off.authentication = admin.CLIENT_AUTHENTICATION_SECRET
            await operator.administer("CreateClient", admin.CreateClientRequest(client=off))
        made = await operator.administer("CreateClientSecret", credentials.CreateClientSecretRequest(client_id=name))
        secret[name] = made.secret
    await operator.administer("DisableClient", admin.DisableClientRequest(client_id="acme-off"))
    register = credentials.AddClientKeyRequest(client_id="acme-job", public_key=assertions.der)
    await operator.administer("AddClientKey", register)
    batch, job = await face.client("acme", "batch"), await face.client("acme", "job")

    async def work(line, status, **shown):
        statements.clear()
        reply = await line.post("/oauth2/token", {**ISSUE, **shown})
        assert reply.status == status
        return about_clients(statements)

    right = await work(batch, 200, client_id="acme-batch", client_secret=secret["acme-batch"])
    assert len(right) >= 2
    for client_id, shown in (
        ("nobody", secret["acme-batch"]),
        ("acme-batch", "x" * 52),
        ("acme-off", secret["acme-off"]),
    ):
        assert await work(batch, 401, client_id=client_id, client_secret=shown) == right, client_id

    def signed(by, client_id):
        return {"client_assertion": by.assertion(client_id), "client_assertion_type": ASSERTION_TYPE}

    forged = await work(job, 401, **signed(Signatory(), "acme-job"))
    assert len(forged) >= 2
    assert await work(job, 401, **signed(Signatory(), "nobody")) == forged
    assert (await work(job, 200, **signed(assertions, "acme-job")))[: len(forged)] == forged
