"""How soon a revocation is everywhere, and how soon no cached verification counts when a signing key is revoked."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import Any, Final

import grpc
import jwt

from bench.auth_served import Served, channel_to
from bench.auth_sides import percentile
from bench.report import Result
from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.clock import SystemClock
from casemate.gate.adapters.feed import TrustFeed
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel

REVOCATIONS: Final = 200
EMERGENCIES: Final = 20
REPLICAS: Final = 3


async def revocations(served: Served) -> list[Result]:
    """From the administrator's call to the trust state of three followers, by which a gate refuses the next call."""
    async with channel_to(served, "operator") as channel:
        token = (await TokenServiceStub(channel).IssueToken(tokens.IssueTokenRequest(audience="auth"))).access_token
        metadata = (("authorization", f"Bearer {token}"),)
        replicas = [Replica(served, number) for number in range(REPLICAS)]
        try:
            while not all(replica.state.current.keys for replica in replicas):  # noqa: ASYNC110  # set by other threads
                await asyncio.sleep(0.05)
            took = []
            for _ in range(REVOCATIONS):
                value = secrets.token_hex(16)
                start = time.perf_counter()
                request = admin.RevokeRequest(kind="REVOCATION_KIND_TOKEN", value=value)
                await AdminServiceStub(channel).Revoke(request, metadata=metadata)
                while not all(value in replica.seen for replica in replicas):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.001)
                took += [replica.seen[value] - start for replica in replicas]
        finally:
            for replica in replicas:
                await asyncio.to_thread(replica.close)
    name = f"revocation seen by {REPLICAS} warm replicas"
    return _told(name, took)


async def key_emergencies(served: Served) -> list[Result]:
    """From the call that revokes the key that signs to the moment when no cached verification of a follower counts."""
    async with channel_to(served, "operator") as channel:
        stub = TokenServiceStub(channel)
        replicas = [Replica(served, number) for number in range(REPLICAS)]
        took = []
        try:
            for _ in range(EMERGENCIES):
                token = await _token(stub)
                kid = jwt.get_unverified_header(token)["kid"]
                while not all(kid in replica.state.current.keys for replica in replicas):  # noqa: ASYNC110  # other threads
                    await asyncio.sleep(0.01)
                start = time.perf_counter()
                request = admin.RevokeRequest(kind="REVOCATION_KIND_KEY", value=kid)
                await AdminServiceStub(channel).Revoke(request, metadata=(("authorization", f"Bearer {token}"),))
                while not all(kid in replica.emptied for replica in replicas):  # noqa: ASYNC110  # as above
                    await asyncio.sleep(0.001)
                took += [replica.emptied[kid] - start for replica in replicas]
        finally:
            for replica in replicas:
                await asyncio.to_thread(replica.close)
    return _told(f"signing key revoked, caches of {REPLICAS} replicas empty", took)


async def _token(stub: Any) -> str:  # noqa: ANN401  # the stubs' own type forgets what a call of grpc.aio has
    """A token; asked for again while the successor of a key that was revoked a moment ago is being opened."""
    while True:
        call = stub.IssueToken(tokens.IssueTokenRequest(audience="auth"))
        if await call.code() is not grpc.StatusCode.UNAVAILABLE:
            return str((await call).access_token)


def _told(name: str, took: list[float]) -> list[Result]:
    p99, most = percentile(took, 99) * 1000, max(took) * 1000
    return [
        Result(f"{name}, median", statistics.median(took) * 1000, "ms"),
        Result(f"{name}, p99", p99, "ms", "≤ 250", met=p99 <= 250),
        Result(f"{name}, longest", most, "ms", "≤ 1000", met=most <= 1000),
    ]


class Replica:
    """What a protected service knows, by the feed that it follows."""

    def __init__(self, served: Served, number: int) -> None:
        leaf = served.directory / "leaves" / ("inference" if number % 2 else "datasets")
        self._source = CertificateSource(leaf)
        self._channel = RotatingChannel(target=f"127.0.0.1:{served.port}", service_name="auth", source=self._source)
        self.state = TrustState()
        self.seen: dict[str, float] = {}
        self.emptied: dict[str, float] = {}
        self._keys: frozenset[str] = frozenset()
        self.state.subscribe(self._look)
        self._feed = TrustFeed(self._channel, self.state, SystemClock())
        self._feed.start()

    def _look(self, snapshot: TrustSnapshot) -> None:
        now = time.perf_counter()
        for revocation in snapshot.revocations.by_id.values():
            self.seen.setdefault(revocation.value, now)
        # A key that goes moves the key epoch, under which every cached verification was kept.
        for kid in self._keys - snapshot.keys.keys():
            self.emptied.setdefault(kid, now)
        self._keys = frozenset(snapshot.keys)

    def close(self) -> None:
        """Stops following."""
        self._feed.close()
        self._channel.close()
        self._source.close()
