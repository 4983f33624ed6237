"""The whole of `casemate up`, in process: real services, real database, free ports."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casemate.cli.attacks import offer_tls_1_2
from casemate.cli.certificates import OPERATOR, Certificates
from casemate.cli.cluster import Cluster
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory
from casemate.client.admin import Administration
from casemate.client.session import Session
from casemate.errors import ConfigurationError, NotFound
from casemate.pki.leaves import describe

DOMAIN = "casemate.internal"


class DaysAgo:
    """A clock that is some days behind."""

    def __init__(self, days: float) -> None:
        self._behind = timedelta(days=days)

    def now(self) -> datetime:
        return datetime.now(UTC) - self._behind

    def monotonic(self) -> float:
        return time.monotonic()


def cluster_on(state: StateDirectory, told: list[str]) -> Cluster:
    return Cluster(state=state, ports=Ports.free(), trust_domain=DOMAIN, report=told.append)


@asynccontextmanager
async def started(state: StateDirectory, told: list[str]):
    cluster = cluster_on(state, told)
    try:
        await cluster.start()
        yield cluster
    finally:
        await cluster.stop()


@asynccontextmanager
async def state_in(tmp_path: Path):
    state = StateDirectory(tmp_path / "state")
    try:
        yield state
    finally:
        await Cluster(state=state, ports=Ports.free(), trust_domain=DOMAIN, report=print).postgres.erase()


def operator(cluster: Cluster) -> Session:
    return Session(
        source=cluster.certificates.require_client(*OPERATOR), endpoints=cluster.endpoints, trust_domain=DOMAIN
    )


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.05)


async def test_state_survives_a_stop_and_a_stop_leaves_no_process(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state:
        async with started(state, told) as cluster:
            pids = [cluster.child(service).process.pid for service in SERVICES] + [cluster.postgres.pid]
            session = operator(cluster)
            await asyncio.to_thread(Administration(session).create_tenant, "acme")
            session.close()
        assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        async with started(state, told) as cluster:
            session = operator(cluster)
            assert await asyncio.to_thread(Administration(session).list_grants, "acme") == []
            session.close()


async def test_killed_service_is_started_again_and_serves(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state, started(state, told) as cluster:
        victim = cluster.child("auth").process
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: cluster.child("auth").process is not victim)
        await cluster.wait_healthy()
        assert any(line.startswith("auth ended (signal 9)") for line in told)
        session = operator(cluster)
        await asyncio.to_thread(Administration(session).create_tenant, "acme")
        session.close()


async def test_three_days_switched_off_recovers_with_new_certificates(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state:
        state.create()
        Certificates.open(state, trust_domain=DOMAIN, report=told.append, clock=DaysAgo(3)).renew_due()
        expired = describe(state.service_leaf("auth"))
        assert expired.not_after < datetime.now(UTC)
        async with started(state, told):
            assert describe(state.service_leaf("auth")).not_after > datetime.now(UTC)
        assert "certificate renewed: pki/leaves/svc/auth" in told


async def test_second_supervisor_on_one_state_is_refused_and_names_the_first(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state, started(state, told):
        with pytest.raises(ConfigurationError, match=f"already running on .* \\(process {os.getpid()}\\)"):
            await cluster_on(state, told).start()


async def test_every_port_refuses_tls_1_2(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state, started(state, told) as cluster:
        source = cluster.certificates.require_client(*OPERATOR)
        identity = state.client_leaf(*OPERATOR)
        for port in cluster.ports.all():
            assert await asyncio.to_thread(offer_tls_1_2, port, source, identity) == "refused"
        session = operator(cluster)  # the same certificate, by TLS 1.3
        with pytest.raises(NotFound):
            await asyncio.to_thread(Administration(session).delete_grant, "none")
        session.close()


async def test_lost_database_refuses_to_start_on_an_empty_one_and_a_restored_one_starts(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state:
        async with started(state, told):
            pass
        data = cluster_on(state, told).postgres.data_directory
        aside = data.with_name("aside")
        data.rename(aside)
        for _ in range(2):  # the refusal itself makes no new one
            cluster = cluster_on(state, told)
            with pytest.raises(ConfigurationError, match=r"is gone; restore it"):
                await cluster.start()
            await cluster.stop()
        aside.rename(data)
        async with started(state, told):
            pass


async def test_service_that_cannot_start_says_why_at_once(tmp_path):
    told: list[str] = []
    async with state_in(tmp_path) as state:
        async with started(state, told):
            pass
        state.password_file("casemate_auth").chmod(0o666)
        cluster = cluster_on(state, told)
        with pytest.raises(ConfigurationError, match=r"auth does not start: CASEMATE_AUTH_DATABASE_PASSWORD: "):
            await cluster.start()
        await cluster.stop()
        state.password_file("casemate_auth").chmod(0o600)
        async with started(state, told):
            pass


@pytest.mark.parametrize("service", ["auth", "datasets"])
async def test_lost_authority_key_is_named_and_a_restored_one_starts(tmp_path, service):
    told: list[str] = []
    async with state_in(tmp_path) as state:
        async with started(state, told):
            pass
        key = state.root / "kek" / f"{service}.authority.json"
        kept = key.read_bytes()
        key.unlink()
        cluster = cluster_on(state, told)
        with pytest.raises(ConfigurationError, match=rf"{service} does not start: .*{key.name} is gone"):
            await cluster.start()
        await cluster.stop()
        assert not key.exists()
        key.touch(mode=0o600)
        key.write_bytes(kept)
        async with started(state, told):
            pass
