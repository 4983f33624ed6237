"""Starting, saying how one is, and ending."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.gate.core.trust import TrustState
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.storage.pool import open_pool
from tests.services.datasets.world import OPTIONS, credentials

CHECKOUT = Path(__file__).parents[3]
SERVICES = ("", "casemate.datasets.v1.DatasetService", "casemate.datasets.v1.LogService")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_service_without_news_of_trust_does_not_serve(stopped_world):
    stopped_world.trust = TrustState()

    async with stopped_world.serve(fresh=False) as world:
        assert [world.running.health.status(name) for name in SERVICES] == [NOT_SERVING] * 3


async def test_a_service_with_fresh_news_and_both_databases_serves(world):
    assert [world.running.health.status(name) for name in SERVICES] == [SERVING] * 3


async def test_decisions_are_counted_and_written_down(world):
    trainer = world.actor()
    await trainer.push_all(world.signed())
    with pytest.raises(grpc.RpcError):
        await trainer.datasets.GetVersion(messages.GetVersionRequest(dataset="digits"))

    metrics = world.running.metrics
    push = "/casemate.datasets.v1.DatasetService/PushDataset"
    assert metrics.value("calls_total", method=push, code="OK") == 1
    assert metrics.value("token_cache_total", outcome="miss") == 1
    assert metrics.value("denied_total", reason="TOKEN_MISSING") == 1


def _environment(world, identity: Path) -> dict[str, str]:
    values = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'src'}",
        "CASEMATE_DATASETS_LISTEN": "127.0.0.1:0",
        "CASEMATE_DATASETS_METRICS_LISTEN": "127.0.0.1:0",
        "CASEMATE_DATASETS_IDENTITY_DIR": str(identity),
        "CASEMATE_DATASETS_AUTH_ADDRESS": "127.0.0.1:1",
        "CASEMATE_DATASETS_KEK_FILE": str(world.settings.kek.kek_file),
        "CASEMATE_DATASETS_AUDIT_FILE": str(world.settings.audit_file),
    }
    for prefix, database in (("", world.settings.database), ("DATAKEYS_", world.settings.data_keys)):
        values |= {
            f"CASEMATE_DATASETS_{prefix}DATABASE_HOST": database.host,
            f"CASEMATE_DATASETS_{prefix}DATABASE_NAME": database.name,
            f"CASEMATE_DATASETS_{prefix}DATABASE_USER": database.user,
            f"CASEMATE_DATASETS_{prefix}DATABASE_PASSWORD": database.password.reveal(),
        }
    return values


def _start(environment: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "services.datasets", *arguments],
        cwd=CHECKOUT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_program_starts_without_auth_says_that_it_does_not_serve_and_ends_on_a_signal(stopped_world):
    identity = stopped_world.settings.identity.directory
    with _start(_environment(stopped_world, identity)) as process:
        try:
            lines = []
            for line in process.stderr:
                lines.append(json.loads(line)["message"])
                if lines[-1].startswith("ready"):
                    break
            port = int(lines[-1].split()[4].rstrip(","))
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials(identity), OPTIONS) as channel:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        finally:
            process.send_signal(signal.SIGTERM)
            rest = process.stderr.read()

    assert answer.status == NOT_SERVING
    assert "not serving: the trust feed is silent" in lines
    assert process.returncode == 0, rest


def test_a_missing_setting_is_one_clear_text_and_no_traceback(stopped_world):
    environment = _environment(stopped_world, stopped_world.settings.identity.directory)
    del environment["CASEMATE_DATASETS_KEK_FILE"]

    with _start(environment) as process:
        text = process.stderr.read()

    assert process.returncode == 1
    assert "CASEMATE_DATASETS_KEK_FILE" in text
    assert "Traceback" not in text


async def test_migrations_run_ahead_of_the_service_and_again_change_nothing(stopped_world):
    environment = _environment(stopped_world, stopped_world.settings.identity.directory)
    pool = await open_pool(stopped_world.settings.database)
    try:
        assert await pool.fetchval("SELECT to_regclass('uploads') IS NULL") is True
        for _ in range(2):
            with _start(environment, "migrate") as process:
                text = process.stderr.read()
            assert process.returncode == 0, text
            assert await pool.fetchval("SELECT to_regclass('uploads') IS NOT NULL") is True
    finally:
        await pool.close()


def test_an_authority_key_for_replicas_is_printed_sealed_and_is_the_one_that_they_use(stopped_world, tmp_path):
    environment = _environment(stopped_world, stopped_world.settings.identity.directory)
    file = tmp_path / "authority.json"
    with _start(environment, "seal-authority-key") as process:
        file.write_bytes(base64.b64decode(process.stdout.read()))
    assert process.returncode == 0
    file.chmod(0o640)
    ring = LocalKeyRing.load(stopped_world.settings.kek.kek_file)
    first, second = (asyncio.run(AuthorityKey.load_or_create(ring, file, create=False)) for _ in range(2))
    assert first.mac("t", "k", {"a": 1}) == second.mac("t", "k", {"a": 1})
