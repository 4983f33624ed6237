"""Everything that is replaced in a year, replaced under load on two replicas of each service: no call fails."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from datetime import datetime, timedelta

import jwt
import pytest

from casemate.cli.certificates import OPERATOR, Certificates
from casemate.cli.children import DATABASES
from casemate.cli.state import SERVICES
from casemate.client.admin import Administration
from casemate.client.keys import ServiceKeys
from casemate.client.session import Session
from casemate.clock import SystemClock
from casemate.pki.succession import Succession
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import write_file
from casemate.secret import Secret
from casemate.storage.pool import open_pool
from services.auth.key_ring import TokenKeyRing
from services.auth.store.authority import AuthorityStore
from services.auth.store.table import Alarms
from services.auth.store.tables import AuthorityTables
from services.auth.store.token_keys import TokenKeyStore
from tests.rotation.replicas import DOMAIN, Load, Replicas

RENEWALS = 30

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
                ("every leaf, every second", lambda: _leaves(replicas, load)),
                ("the root", lambda: _root(replicas, load)),
                ("the key that signs tokens", lambda: _token_key(replicas, load)),
                ("every key-encryption key", lambda: _keks(replicas)),
                ("every database password", lambda: _passwords(replicas, load)),
                ("rolling restart with all of that", replicas.roll),
            ):
                before, failed = sum(load.counts.values()), len(load.failures)
                how = await step()
                await load.goes_on()
                with capsys.disabled():
                    made = sum(load.counts.values()) - before
                    what = f"{name} ({how})" if how else name
                    print(f"\n{what}: {made} calls, {len(load.failures) - failed} failed", end="")
                    print(
                        "".join(f"\n  {kind}: {error!r}"[:300] for kind, error in load.failures[failed : failed + 3]),
                        end="",
                    )
        with capsys.disabled():
            print(f"\nin all: {dict(load.counts)}, failed: {len(load.failures)}")
    assert load.failures == []


async def _leaves(replicas: Replicas, load: Load) -> str:
    """Each second all of them, services' and callers': nobody is given time to take one up before the next."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for second in range(RENEWALS):
        # In a thread: the load is counted meanwhile.
        await asyncio.to_thread(_certificates(replicas).reissue_all)
        await asyncio.sleep(max(0.05, begun + second + 1 - loop.time()))
    await load.goes_on(20)
    # A slow disk may need more than a second for all of them; the record says so.
    return f"{RENEWALS} times in {loop.time() - begun:.0f} s"


async def _token_key(replicas: Replicas, load: Load) -> None:
    """As the schedule turns it, by a replica whose clock is weeks ahead: published, known to all, then active.

    The key before goes on verifying what it signed.
    """
    session = replicas.session(*OPERATOR)
    clock = Ahead()
    ring = LocalKeyRing.load(replicas.state.kek("auth"))
    key = await AuthorityKey.load_or_create(ring, replicas.state.kek("auth").with_suffix(".authority.json"))
    password = replicas.state.password("casemate_auth")
    database = replace(
        replicas.cluster.postgres.superuser, name="casemate_auth", user="casemate_auth", password=password
    )
    try:
        before = _states(session)
        async with await open_pool(database) as pool:
            tables = AuthorityTables(key=key, alarms=Alarms(count=lambda: None))
            store, keys = AuthorityStore(pool=pool, tables=tables), TokenKeyStore(pool=pool, tables=tables)
            turning = TokenKeyRing(store=store, keys=keys, kek=ring, clock=clock)
            await turning.prepare()
            for ahead in (timedelta(days=16), timedelta(days=26)):
                clock.by = ahead
                while await _changed_by(turning, session):
                    pass
                await _taken_up(replicas, load)
        after = _states(session)
        (old,) = (kid for kid, state in before.items() if state == "active")
        (new,) = (kid for kid, state in after.items() if state == "active")
        assert old != new
        assert after[old] == "retiring"
        kids = set()
        while kids != {new}:  # both replicas sign by it from now on
            session.forget_tokens()
            kids = {jwt.get_unverified_header(session.token("inference").text.reveal())["kid"] for _ in range(4)}
    finally:
        session.close()
        session.source.close()


async def _changed_by(turning: TokenKeyRing, session: Session) -> bool:
    before = _states(session)
    await turning.turn()
    return _states(session) != before


def _states(session: Session) -> dict[str, str]:
    return {one.kid: one.state for one in Administration(session).list_token_keys()}


class Ahead:
    """A clock that is ahead of ours."""

    def __init__(self) -> None:
        self.by = timedelta(0)

    def now(self) -> datetime:
        return SystemClock().now() + self.by

    def monotonic(self) -> float:
        return SystemClock().monotonic() + self.by.total_seconds()


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
