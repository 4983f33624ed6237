"""The service as it is run: its own process, told everything by its environment."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

import services.auth
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.sealing.local import LocalKeyRing
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE
from tests.services.auth.world import SOON, spiffe_id
from tests.support.authority import TRUST_DOMAIN

CHECKOUT = Path(services.auth.__file__).parents[2]
BOOTSTRAP = ("bootstrap-operator", "--client-id", "operator", "--spiffe-id", spiffe_id("casemate", "operator"))


@pytest.fixture
def environment(database, leaf, tmp_path):
    LocalKeyRing.create(tmp_path / "auth.json")
    password = tmp_path / "password"
    password.touch(mode=0o600)
    password.write_text(database.password.reveal())
    return {
        CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
        "PYTHONPATH": str(CHECKOUT),
        "CASEMATE_AUTH_LISTEN": "127.0.0.1:0",
        "CASEMATE_AUTH_METRICS_LISTEN": "127.0.0.1:0",
        "CASEMATE_AUTH_IDENTITY_DIR": str(leaf("service", service="auth")),
        "CASEMATE_AUTH_DATABASE_HOST": database.host,
        "CASEMATE_AUTH_DATABASE_PORT": str(database.port),
        "CASEMATE_AUTH_DATABASE_NAME": database.name,
        "CASEMATE_AUTH_DATABASE_USER": database.user,
        "CASEMATE_AUTH_DATABASE_PASSWORD_FILE": str(password),
        "CASEMATE_AUTH_KEK_FILE": str(tmp_path / "auth.json"),
        "CASEMATE_AUTH_AUDIT_FILE": str(tmp_path / "audit.jsonl"),
    }


@asynccontextmanager
async def _process(environment, *arguments):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.auth",
        *arguments,
        cwd=CHECKOUT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _end(process):
    """Exit status and everything that was said."""
    async with asyncio.timeout(SOON):
        _, said = await process.communicate()
    return process.returncode, said.decode()


async def _ready(process):
    """The port, from the line that says so."""
    async with asyncio.timeout(SOON):
        async for line in process.stderr:
            found = re.match(r"ready: rpcs on port (\d+)", json.loads(line)["message"])
            if found:
                return int(found[1])
    raise AssertionError("ended before it was ready")


async def test_it_serves_the_operator_that_was_bootstrapped_and_ends_when_told(environment, leaf):
    for _ in range(2):
        async with _process(environment, *BOOTSTRAP) as process:
            assert (await _end(process))[0] == 0
    directory = leaf("client", tenant="casemate", name="operator")
    credentials = grpc.ssl_channel_credentials(
        *((directory / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    async with _process(environment) as process:
        port = await _ready(process)
        options = (("grpc.ssl_target_name_override", f"auth.{TRUST_DOMAIN}"),)
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            issued = await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))
        assert "admin" in issued.scopes
        process.send_signal(signal.SIGTERM)
        status, said = await _end(process)
    assert status == 0, said
    assert issued.access_token not in said


async def test_another_first_operator_is_refused_in_one_line(environment):
    async with _process(environment, *BOOTSTRAP) as process:
        assert (await _end(process))[0] == 0
    other = (*BOOTSTRAP[:2], "second", "--spiffe-id", spiffe_id("casemate", "second"))
    async with _process(environment, *other) as process:
        status, said = await _end(process)
    assert status == 1
    assert said.splitlines()[-1] == "auth: this database already had its first operator"


async def test_a_setting_that_is_missing_is_named(environment):
    del environment["CASEMATE_AUTH_KEK_FILE"]
    async with _process(environment) as process:
        status, said = await _end(process)
    assert status == 1
    assert "CASEMATE_AUTH_KEK_FILE" in said.splitlines()[-1]
    assert "Traceback" not in said


async def test_a_key_encryption_key_of_another_database_is_refused(environment, tmp_path):
    async with _process(environment, *BOOTSTRAP) as process:
        assert (await _end(process))[0] == 0
    LocalKeyRing.create(tmp_path / "other.json")
    environment["CASEMATE_AUTH_KEK_FILE"] = str(tmp_path / "other.json")
    environment["CASEMATE_AUTH_AUTHORITY_KEY_FILE"] = str(tmp_path / "auth.authority.json")
    async with _process(environment) as process:
        status, said = await _end(process)
    assert status == 1
    assert "Traceback" not in said
