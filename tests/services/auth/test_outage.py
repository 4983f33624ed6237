"""Without its database auth issues nothing, and nothing that it cannot decide is decided; it comes back alone."""

from __future__ import annotations

import asyncio
import logging

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import credential_service_pb2 as credentials
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.errors import CasemateError, Unavailable
from casemate.storage.pool import open_connection
from tests.services.auth.identities import Signatory, exchange_grant, issuer_message
from tests.services.auth.world import SOON, failure


async def _superuser(embedded_postgres, statement, *values):
    connection = await open_connection(embedded_postgres.superuser)
    try:
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def _refusal(caller):
    """The error of the first token that is not issued: until the loss is noticed, who is known is known."""
    async with asyncio.timeout(SOON):
        while True:
            try:
                await caller.token("auth")
            except CasemateError as error:
                return error


async def test_c11_without_the_database_new_tokens_are_unavailable_and_live_ones_go_on(world, embedded_postgres):
    operator = world.operator()
    issued = await operator.token("auth")
    name, role = world.settings.database.name, world.settings.database.user
    await _superuser(embedded_postgres, f'ALTER ROLE "{role}" NOLOGIN')
    await _superuser(
        embedded_postgres, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
    )
    try:
        assert isinstance(await _refusal(operator), Unavailable)
        assert isinstance(await failure(operator.refresh("rt1." + "A" * 22 + ".1." + "A" * 43)), Unavailable)
        # The gate verifies what was issued before, without the database.
        assert world.verified(issued.access_token, "auth").client_id == "operator"
        key_set = await operator.ask("GetJsonWebKeySet", tokens.GetJsonWebKeySetRequest())
        assert len(key_set.keys) == 1
    finally:
        await _superuser(embedded_postgres, f'ALTER ROLE "{role}" LOGIN')
    async with asyncio.timeout(SOON):
        while True:
            try:
                await operator.token("auth")
            except CasemateError:
                await asyncio.sleep(0.05)
            else:
                break


async def test_c8_no_secret_is_in_any_log_line_nor_in_the_audit(world, caplog):
    caplog.set_level(logging.DEBUG)
    operator = world.operator()
    idp = Signatory(kid="k1")
    allowed = {"audiences": ("inference",), "scopes": ("models.infer",)}
    caller = await world.enlist(
        operator, "acme", "gateway", authentication=admin.CLIENT_AUTHENTICATION_SECRET, **allowed
    )
    made = await operator.administer(
        "CreateClientSecret", credentials.CreateClientSecretRequest(client_id="acme-gateway")
    )
    await operator.administer("RegisterIssuer", credentials.RegisterIssuerRequest(issuer=issuer_message(idp)))
    await operator.administer("CreateExchangeGrant", exchange_grant())
    shown = tokens.ClientCredential(client_id="acme-gateway", secret=made.secret)
    subject_token = idp.about()
    exchanged = await caller.ask(
        "ExchangeToken",
        tokens.ExchangeTokenRequest(
            subject_token=subject_token,
            subject_token_type=tokens.SUBJECT_TOKEN_TYPE_JWT,
            audience="inference",
            request_refresh_token=True,
            credential=shown,
        ),
    )
    stolen = tokens.RefreshTokenRequest(refresh_token=exchanged.refresh_token)
    await failure(world.client("acme", "mallory").ask("RefreshToken", stolen))
    await failure(caller.token("inference", client_id="acme-gateway", secret=made.secret + "x"))
    await failure(caller.token("inference", assertion=subject_token))
    held = operator.held["auth"].access_token
    secrets = (made.secret, subject_token, exchanged.access_token, exchanged.refresh_token, held)
    for said in (caplog.text, world.settings.audit_file.read_text()):
        assert said
        for secret in secrets:
            assert secret not in said
            assert secret.rsplit(".", 1)[-1] not in said
