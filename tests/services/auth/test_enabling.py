"""A client that was disabled is enabled again: it, and nothing that it held."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.clock import SystemClock
from casemate.errors import NotFound, PermissionDenied, Reason
from services.auth.records import Client
from services.auth.replay import LastEntries, sha256
from tests.services.auth.test_cli import Operator
from tests.services.auth.world import SOON, build_world, failure

ADMIN = {"audiences": ("auth",), "scopes": ("admin",)}
LIST = admin.ListClientsRequest()


class AheadClock(SystemClock):
    """The machine's clock, put ahead by as much as is said."""

    ahead = timedelta(0)

    def now(self):
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock():
    return AheadClock()


@pytest_asyncio.fixture
async def world(database, leaf, tmp_path, clock):
    async with build_world(database, leaf, tmp_path, clock=clock) as built:
        yield built


def _named(request, name):
    return request(client_id=name)


async def test_an_enabled_client_has_tokens_again_and_those_of_before_stay_dead(world, clock):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "admin", **ADMIN)
    held = (await caller.token("auth")).access_token
    await caller.administer("ListClients", LIST, token=held)
    await operator.administer("DisableClient", _named(admin.DisableClientRequest, "acme-admin"))
    assert (await failure(caller.token("auth"))).reason is Reason.CLIENT_UNKNOWN

    enabled = await operator.administer("EnableClient", _named(admin.EnableClientRequest, "acme-admin"))
    early = (await caller.token("auth")).access_token
    until = enabled.tokens_count_from.ToDatetime(tzinfo=UTC)
    assert timedelta(0) < until - clock.now() <= timedelta(minutes=1)
    clock.ahead = until - datetime.now(UTC) + timedelta(seconds=2)
    later = (await caller.token("auth")).access_token
    for dead in (held, early):
        assert (await failure(caller.administer("ListClients", LIST, token=dead))).reason is Reason.TOKEN_REVOKED
    await caller.administer("ListClients", LIST, token=later)
    status = await operator.administer("GetClient", _named(admin.GetClientRequest, "acme-admin"))
    assert status.client.enabled
    # By now nothing is dead at birth any more, and that it is enabled already is no error.
    again = await operator.administer("EnableClient", _named(admin.EnableClientRequest, "acme-admin"))
    assert not again.HasField("tokens_count_from")


async def test_a_client_is_enabled_by_whoever_may_disable_it_and_by_nobody_else(world):
    operator = world.operator()
    await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    stranger = await world.enlist(operator, "globex", "admin", **ADMIN)
    reader = await world.enlist(operator, "acme", "reader", audiences=("auth",), scopes=("admin", "reflection"))
    await operator.administer("DisableClient", _named(admin.DisableClientRequest, "acme-caller"))
    request = _named(admin.EnableClientRequest, "acme-caller")
    refused = await failure(stranger.administer("EnableClient", request))
    absent = await failure(stranger.administer("EnableClient", _named(admin.EnableClientRequest, "acme-nobody")))
    assert isinstance(refused, NotFound)
    assert (refused.public_message, refused.violations) == (absent.public_message, absent.violations)
    narrow = (await reader.token("auth", ("reflection",))).access_token
    assert isinstance(await failure(reader.administer("EnableClient", request, token=narrow)), PermissionDenied)
    caller = world.client("acme", "caller")
    assert (await failure(caller.token("inference"))).reason is Reason.CLIENT_UNKNOWN
    await reader.administer("EnableClient", request)
    await caller.token("inference")


async def test_a_revoked_name_stays_revoked_when_its_client_is_enabled(world):
    operator = world.operator()
    caller = await world.enlist(operator, "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    [row] = await world.sql("SELECT spiffe_id FROM client WHERE client_id = 'acme-caller'")
    await operator.administer("DisableClient", _named(admin.DisableClientRequest, "acme-caller"))
    revoke = admin.RevokeRequest(kind="REVOCATION_KIND_SPIFFE_ID", value=row["spiffe_id"])
    revocation = (await operator.administer("Revoke", revoke)).id
    await operator.administer("EnableClient", _named(admin.EnableClientRequest, "acme-caller"))
    async with asyncio.timeout(SOON):
        while revocation not in world.running.trust.current.revocations.by_id:
            await asyncio.sleep(0)
    assert (await failure(caller.token("inference"))).reason is Reason.PEER_REFUSED


async def test_the_command_enables_and_says_from_when_tokens_count(world, clock, tmp_path):
    operator = Operator(world, tmp_path)
    await world.enlist(world.operator(), "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    await operator.say("client", "disable", "acme-caller")
    assert "disabled" in (await operator.say("client", "show", "acme-caller")).split()
    said = (await operator.say("client", "enable", "acme-caller")).splitlines()
    assert said[0] == "client acme-caller enabled"
    assert "refused all the same" in said[1]
    assert "enabled" in (await operator.say("client", "show", "acme-caller")).split()
    clock.ahead = timedelta(minutes=2)
    assert (await operator.say("client", "enable", "acme-caller")).splitlines() == said[:1]


def _log(*entries):
    last = LastEntries()
    for sequence, (kind, body) in enumerate(entries, start=1):
        key = ["c"] if kind == "client" else [f"r-{sequence}"]
        last.take(kind, {"record": key, "sequence": sequence, **body})
    return last


def test_after_a_restore_a_client_counts_as_disabled_by_what_was_said_of_it_last():
    client = Client(
        client_id="c",
        tenant="acme",
        spiffe_id="spiffe://x/t/acme/c",
        audiences=(),
        scopes=(),
        enabled=True,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    said = {of: ("revocation", {"of": of, "value_sha256": sha256("c")}) for of in ("client", "subject")}
    disabled = [("client", {"enabled": False}), said["client"], said["subject"]]
    enabled = ("client", {"enabled": True})
    assert _log(*disabled).was_disabled(client)
    assert not _log(*disabled, enabled).was_disabled(client)
    assert _log(*disabled, enabled, *disabled).was_disabled(client)
    # The entry is of the record as it is when the log is told, so this one may say what came later.
    assert _log(enabled, *disabled[1:]).was_disabled(client)
    assert not _log(enabled, *disabled[1:], enabled).was_disabled(client)
    assert not _log(enabled).was_disabled(client)
