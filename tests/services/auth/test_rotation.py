"""Keys rotate under load: no call fails, on the service itself and on one that follows its feed."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.clock import SystemClock
from casemate.errors import Unauthenticated, Unavailable
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import FOREIGN, PolicyTable
from casemate.gate.core.quota import LocalQuota
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from services.auth.key_schedule import KeySchedule
from tests.services.auth.test_key_ring import build_ring
from tests.services.auth.world import SOON, open_shelf
from tests.support.authority import TRUST_DOMAIN

CLOCK = SystemClock()
LIST_GRANTS = admin.ListGrantsRequest(tenant="casemate")
QUICK = KeySchedule(
    lifetime=timedelta(seconds=6), known_before=timedelta(seconds=1), verified_after=timedelta(seconds=3)
)


async def test_keys_rotate_under_load_without_one_failed_call(world, tmp_path):
    operator = world.operator()
    kids, calls = set(), 0
    done = asyncio.Event()

    async def load():
        nonlocal calls
        while not done.is_set():
            issued = await operator.token("auth")
            token = world.verified(issued.access_token, "auth")
            await operator.administer("ListGrants", LIST_GRANTS, token=issued.access_token)
            kids.add(token.kid)
            calls += 1

    async with open_shelf(world.settings.database, tmp_path) as shelf:
        # Another replica, which turns the keys that this one signs with.
        ring = build_ring(shelf, SystemClock(), QUICK)
        await ring.prepare()
        loading = [asyncio.create_task(load()) for _ in range(4)]
        try:
            async with asyncio.timeout(60):
                while len(kids) < 3:
                    await ring.turn()
                    await asyncio.sleep(0.05)
        finally:
            done.set()
        await asyncio.gather(*loading)
    assert calls > 3


class Follower:
    """A protected service as far as its gate judges headers: its own feed, state and cache of verified tokens."""

    def __init__(self, world, service):
        self._source = CertificateSource(world.leaf("service", service=service))
        target = f"127.0.0.1:{world.running.port}"
        self._channel = RotatingChannel(target=target, service_name="auth", source=self._source)
        self.state, self.looked_up = TrustState(), []
        services = [admin.DESCRIPTOR.services_by_name["AdminService"]]
        self.gate = Gate(
            policies=PolicyTable.from_descriptors(services, FOREIGN),
            verifier=TokenVerifier(issuer=world.settings.issuer, audience="auth"),
            cache=TokenCache(observe=self.looked_up.append),
            trust=self.state,
            peers=PeerVerifier(trust_domain=TRUST_DOMAIN),
            quota=LocalQuota(clock=CLOCK),
            audit=NoAudit(),
            clock=CLOCK,
        )
        self._feed = TrustFeed(self._channel, self.state, CLOCK)
        self._feed.start()

    def admits(self, token):
        """Whether a call with this token passes the headers, and how the cache found it."""
        before = len(self.looked_up)
        metadata = (("authorization", f"Bearer {token}"),)
        try:
            admission = self.gate.at_headers("/casemate.auth.v1.AdminService/ListGrants", metadata, request_id="r")
        except Unauthenticated:
            return False, self.looked_up[before:]
        self.gate.finish(admission, "OK")
        return True, self.looked_up[before:]

    def close(self):
        self._feed.close()
        self._channel.close()
        self._source.close()


async def _issued(caller):
    """A token; asked for again while the successor of a key that was just revoked is being opened."""
    while True:
        try:
            return (await caller.token("auth")).access_token
        except Unavailable:
            continue


async def test_an_emergency_empties_the_cache_of_every_follower_and_a_new_key_is_verified_anew(world):
    operator = world.operator()
    followers = [Follower(world, name) for name in ("datasets", "inference", "datasets")]
    try:
        async with asyncio.timeout(SOON):
            while not all(one.state.current.keys for one in followers):
                await asyncio.sleep(0)
            token, other = await _issued(operator), await _issued(operator)
            for one in followers:
                assert [one.admits(token)[1] for _ in range(3)] == [["miss"], ["hit"], ["hit"]]
                assert one.admits(other) == (True, ["miss"])
            epochs = [one.state.key_epoch for one in followers]
            kid = world.verified(token, "auth").kid
            await operator.administer("Revoke", admin.RevokeRequest(kind="REVOCATION_KIND_KEY", value=kid), token=token)
            while any(one.state.key_epoch == before for one, before in zip(followers, epochs, strict=True)):
                await asyncio.sleep(0)
            fresh = await _issued(operator)
            while not all(world.verified(fresh, "auth").kid in one.state.current.keys for one in followers):
                await asyncio.sleep(0)
        for one in followers:
            # Not by the cache, whatever it still holds: no entry of before counts.
            assert [one.admits(each)[0] for each in (token, other)] == [False, False]
            assert "hit" not in one.looked_up[-2:]
            assert one.admits(fresh) == (True, ["miss"])
    finally:
        for one in followers:
            await asyncio.to_thread(one.close)
