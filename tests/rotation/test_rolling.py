"""Everything that is replaced in a year, replaced under load on two replicas of each service: no call fails."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from casemate.cli.certificates import OPERATOR, Certificates
from casemate.cli.children import DATABASES
from casemate.cli.state import SERVICES
from casemate.client.keys import ServiceKeys
from casemate.clock import SystemClock
from casemate.pki.succession import Succession
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import write_file
from casemate.secret import Secret
from tests.rotation.replicas import DOMAIN, Load, Replicas

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


async def test_a_year_of_rotations_in_minutes_fails_no_call(tmp_path, capsys):
    async with Replicas(tmp_path).running() as replicas:
        with Load(replicas) as load:
            await load.goes_on()
            for name, step in (
                ("rolling restart", replicas.roll),
                (
                    "upgrade to N+1",
                    lambda: replicas.roll("auth", "datasets", checkout=replicas.next_version(tmp_path / "next")),
                ),
                ("rollback to N", lambda: replicas.roll("auth", "datasets")),
                ("every leaf, five times", lambda: _leaves(replicas, load)),
                ("the root", lambda: _root(replicas, load)),
                ("every key-encryption key", lambda: _keks(replicas)),
                ("every database password", lambda: _passwords(replicas, load)),
                ("rolling restart with all of that", replicas.roll),
            ):
                before, failed = sum(load.counts.values()), len(load.failures)
                await step()
                await load.goes_on()
                with capsys.disabled():
                    made = sum(load.counts.values()) - before
                    print(f"\n{name}: {made} calls, {len(load.failures) - failed} failed", end="")
                    print(
                        "".join(f"\n  {kind}: {error!r}"[:300] for kind, error in load.failures[failed : failed + 3]),
                        end="",
                    )
        with capsys.disabled():
            print(f"\nin all: {dict(load.counts)}, failed: {len(load.failures)}")
    assert load.failures == []


async def _leaves(replicas: Replicas, load: Load) -> None:
    for _ in range(5):
        _certificates(replicas).reissue_all()
        await _taken_up(replicas, load)


async def _root(replicas: Replicas, load: Load) -> None:
    state = replicas.state
    ring = LocalKeyRing.load(state.kek("pki"))
    change = Succession(directory=state.authority, trust_domain=DOMAIN, key_encryption=ring, clock=SystemClock())
    change.prepare()
    _certificates(replicas).give_roots()
    await _taken_up(replicas, load)
    change.switch()
    _certificates(replicas).reissue_all()
    await _taken_up(replicas, load)
    change.finish()
    _certificates(replicas).give_roots()
    await _taken_up(replicas, load)


def _certificates(replicas: Replicas) -> Certificates:
    return Certificates.open(replicas.state, trust_domain=DOMAIN, report=lambda _: None)


async def _taken_up(replicas: Replicas, load: Load) -> None:
    """Returns when every service and every caller has read its folder again: two looks of a second each."""
    await asyncio.sleep(2.5)
    await load.goes_on(5)


async def _keks(replicas: Replicas) -> None:
    session = replicas.session(*OPERATOR)
    try:
        for service in SERVICES:
            LocalKeyRing.rotate(replicas.state.kek(service))
            keys = ServiceKeys(session, service)
            done = [progress async for progress in _each(keys)]
            assert done[-1].failed == 0
            assert keys.status().due == 0
    finally:
        session.close()
        session.source.close()


async def _each(keys: ServiceKeys):
    for progress in await asyncio.to_thread(lambda: list(keys.rewrap())):
        yield progress


async def _passwords(replicas: Replicas, load: Load) -> None:
    for name in (name for names in DATABASES.values() for name in names):
        new = Secret(secrets.token_urlsafe(32))
        write_file(replicas.state.password_file(name), new.reveal().encode())
        await load.goes_on(5)
        await replicas.cluster.postgres.ensure_database(name, new)
        await load.goes_on(5)
