"""The service as it is run: its own process, told everything by its environment."""

from __future__ import annotations

import asyncio
import json
import signal

import grpc
import pytest

from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.gate.adapters.audit_lines import verify_file
from casemate.sealing.local import LocalKeyRing
from casemate.storage.pool import open_pool
from tests.gate.attacks import scene
from tests.gate.attacks.test_wire import answer
from tests.services.auth.processes import build_environment, ended, port_of, start_process
from tests.services.auth.world import SOON, spiffe_id
from tests.support.authority import TRUST_DOMAIN

BOOTSTRAP = ("bootstrap-operator", "--client-id", "operator", "--spiffe-id", spiffe_id("casemate", "operator"))


@pytest.fixture
def environment(database, leaf, tmp_path):
    LocalKeyRing.create(tmp_path / "kek.json")
    return build_environment(database, leaf("service", service="auth"), tmp_path)


async def test_it_serves_the_operator_that_was_bootstrapped_and_ends_when_told(environment, leaf):
    for _ in range(2):
        async with start_process(environment, *BOOTSTRAP) as process:
            assert (await ended(process))[0] == 0
    directory = leaf("client", tenant="casemate", name="operator")
    credentials = grpc.ssl_channel_credentials(
        *((directory / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    async with start_process(environment) as process:
        port = await port_of(process)
        options = (("grpc.ssl_target_name_override", f"auth.{TRUST_DOMAIN}"),)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            issued = await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))
        assert "admin" in issued.scopes
        process.send_signal(signal.SIGTERM)
        status, said = await ended(process)
    assert status == 0, said
    assert issued.access_token not in said


async def test_where_the_operator_asks_for_it_a_key_exchange_without_ml_kem_is_refused(environment, leaf):
    """Two grpcio peers use the hybrid by themselves; the other client speaks P-256, as older ones do."""
    async with start_process({**environment, "CASEMATE_TRUST_POST_QUANTUM": "true"}, *BOOTSTRAP) as process:
        assert (await ended(process))[0] == 0
    directory = leaf("client", tenant="casemate", name="operator")
    credentials = grpc.ssl_channel_credentials(
        *((directory / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    answers = {}
    for demanded in ("true", "false"):
        async with start_process({**environment, "CASEMATE_TRUST_POST_QUANTUM": demanded}) as process:
            port = await port_of(process)
            options = (("grpc.ssl_target_name_override", f"auth.{TRUST_DOMAIN}"),)
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
                assert await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))
            answers[demanded] = await asyncio.to_thread(status_over_p256, port, directory)
    assert answers == {"true": "16", "false": "0"}


def status_over_p256(port, directory):
    context = scene.tls(directory)
    context.set_ecdh_curve("prime256v1")
    with scene.connected(port, context, name=f"auth.{TRUST_DOMAIN}") as secure:
        client = scene.RawClient(secure)
        body = tokens.IssueTokenRequest(audience="auth").SerializeToString()
        client.send(
            scene.frame(
                scene.HEADERS, scene.END_HEADERS, 1, scene.headers_of("/casemate.auth.v1.TokenService/IssueToken")
            ),
            scene.frame(scene.DATA, scene.END_STREAM, 1, b"\0" + len(body).to_bytes(4, "big") + body),
        )
        return answer(client)


async def test_migrations_run_ahead_of_the_service_and_again_change_nothing(environment, database):
    for _ in range(2):
        async with start_process(environment, "migrate") as process:
            assert (await ended(process))[0] == 0
        pool = await open_pool(database)
        try:
            assert await pool.fetchval("SELECT to_regclass('client') IS NOT NULL") is True
        finally:
            await pool.close()


async def test_another_first_operator_is_refused_in_one_line(environment):
    async with start_process(environment, *BOOTSTRAP) as process:
        assert (await ended(process))[0] == 0
    other = (*BOOTSTRAP[:2], "second", "--spiffe-id", spiffe_id("casemate", "second"))
    async with start_process(environment, *other) as process:
        status, said = await ended(process)
    assert status == 1
    assert said.splitlines()[-1] == "auth: this database already had its first operator"


async def test_a_setting_that_is_missing_is_named(environment):
    del environment["CASEMATE_AUTH_KEK_FILE"]
    async with start_process(environment) as process:
        status, said = await ended(process)
    assert status == 1
    assert "CASEMATE_AUTH_KEK_FILE" in said.splitlines()[-1]
    assert "Traceback" not in said


async def test_a_key_encryption_key_of_another_database_is_refused(environment, tmp_path):
    async with start_process(environment, *BOOTSTRAP) as process:
        assert (await ended(process))[0] == 0
    LocalKeyRing.create(tmp_path / "other.json")
    environment["CASEMATE_AUTH_KEK_FILE"] = str(tmp_path / "other.json")
    environment["CASEMATE_AUTH_AUTHORITY_KEY_FILE"] = str(tmp_path / "kek.authority.json")
    async with start_process(environment) as process:
        status, said = await ended(process)
    assert status == 1
    assert "Traceback" not in said


async def test_the_glass_is_broken_beside_a_running_service_which_follows_and_it_is_audited(
    environment, leaf, tmp_path
):
    async with start_process(environment, *BOOTSTRAP) as process:
        assert (await ended(process))[0] == 0
    named = ("--client-id", "second", "--spiffe-id", spiffe_id("casemate", "second"))
    async with start_process(environment) as process:
        port = await port_of(process)
        await _issued(port, leaf("client", tenant="casemate", name="operator"))
        for reason, status in (("", 1), ("its key was stolen", 0)):
            replacing = ("bootstrap-operator", *named, "--replace", "--reason", reason)
            async with start_process(environment, *replacing) as command:
                assert (await ended(command))[0] == status
        assert "admin" in (await _issued(port, leaf("client", tenant="casemate", name="second"))).scopes
        async with asyncio.timeout(SOON):
            while await _issued(port, leaf("client", tenant="casemate", name="operator")) is not None:
                pass
        process.send_signal(signal.SIGTERM)
        await ended(process)
    audit = tmp_path / "audit.operators.jsonl"
    assert verify_file(audit).head.number == 2
    last = json.loads(audit.read_text().splitlines()[-1])
    assert (last["client_id"], last["resource"]) == ("second", "client/operator")
    assert last["method"] == "operator bootstrap --replace"


async def _issued(port, directory):
    """A token for this certificate, None if it gets none."""
    credentials = grpc.ssl_channel_credentials(
        *((directory / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    options = (("grpc.ssl_target_name_override", f"auth.{TRUST_DOMAIN}"),)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        call = TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))
        refused = await call.code() is grpc.StatusCode.UNAUTHENTICATED
        return None if refused else await call
