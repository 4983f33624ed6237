"""Shares: how many at once and how fast, per tenant, caller and resource; fairness by counting, never by the clock."""

from __future__ import annotations

from contextlib import suppress

import pytest

from casemate.errors import Exhausted, NotFound, Unavailable
from casemate.gate.core.quota import ACTIVE_S, LocalQuota, Shares
from tests.gate.test_warm_and_cold import StoppedClock
from tests.gate.world import ECHO, World, auth_context, bearer, grant, thumbprint_of


@pytest.fixture
def clock():
    return StoppedClock()


def entered(quota, tenant, times, *, callers=1):
    """How many of these calls got a place; all of them stay."""
    leases = []
    for number in range(times):
        with suppress(Exhausted):
            leases.append(quota.enter(tenant=tenant, caller=f"{tenant}-{number % callers}"))
    return leases


def test_a_tenant_alone_may_fill_the_server_and_two_have_half_each(clock):
    quota = LocalQuota(clock=clock, shares=Shares(places=8, tenant_concurrency=100, caller_concurrency=100))
    flood = entered(quota, "flood", 20)
    assert len(flood) == 20  # alone: as many as wait
    assert len(entered(quota, "quiet", 4)) == 4  # its half, however full the server is
    assert entered(quota, "quiet", 1) == []
    for lease in flood:
        lease.release()
    assert len(entered(quota, "flood", 20)) == 4


def test_the_share_of_a_tenant_that_went_away_is_given_to_those_who_stay(clock):
    quota = LocalQuota(clock=clock, shares=Shares(places=8, tenant_concurrency=100, caller_concurrency=100))
    (lease,) = entered(quota, "quiet", 1)
    assert len(entered(quota, "flood", 20)) == 4
    clock.steady += 2 * ACTIVE_S
    assert entered(quota, "flood", 1) == []  # its call still runs
    lease.release()
    assert len(entered(quota, "flood", 16)) == 16


def test_however_a_flood_and_a_quiet_tenant_alternate_the_quiet_one_is_never_refused(clock):
    quota = LocalQuota(clock=clock, shares=Shares(places=8))
    served = refused = 0
    quota.enter(tenant="quiet", caller="q").release()
    for _ in range(1_000):
        clock.steady += 0.001
        refused += 5 - len(entered(quota, "flood", 5))
        lease = quota.enter(tenant="quiet", caller="q")
        served += 1
        lease.release()
    assert (served, refused) == (1_000, 5_000 - 4)


@pytest.mark.parametrize(
    "shares",
    [Shares(burst=2, calls_per_second=0.5), Shares(tenant_burst=2, tenant_calls_per_second=0.5)],
    ids=["caller", "tenant"],
)
def test_who_is_too_fast_is_told_when_to_come_again_and_may_then(clock, shares):
    quota = LocalQuota(clock=clock, shares=shares)
    for _ in range(2):
        quota.spend(tenant="acme", caller="one")
    with pytest.raises(Exhausted) as refused:
        quota.spend(tenant="acme", caller="one")
    assert refused.value.retry_after.total_seconds() == 2
    quota.spend(tenant="globex", caller="two")
    clock.steady += 2
    quota.spend(tenant="acme", caller="one")


def test_a_caller_that_is_refused_uses_nothing_of_its_tenants_rate(clock):
    quota = LocalQuota(clock=clock, shares=Shares(burst=1, tenant_burst=3, tenant_calls_per_second=0.001))
    quota.spend(tenant="acme", caller="hasty")
    for _ in range(10):
        with pytest.raises(Exhausted):
            quota.spend(tenant="acme", caller="hasty")
    quota.spend(tenant="acme", caller="calm")
    quota.spend(tenant="acme", caller="other")


def test_a_resource_has_a_rate_of_its_own_whoever_calls(clock):
    quota = LocalQuota(clock=clock, shares=Shares(resource_burst=2, resource_calls_per_second=1))
    for _ in range(2):
        quota.spend_on(tenant="acme", resource="model/digits")
    with pytest.raises(Exhausted) as refused:
        quota.spend_on(tenant="acme", resource="model/digits")
    assert refused.value.retry_after.total_seconds() == 1
    quota.spend_on(tenant="acme", resource="model/faces")
    quota.spend_on(tenant="globex", resource="model/digits")


def test_buckets_that_are_full_again_are_forgotten(clock, monkeypatch):
    monkeypatch.setattr("casemate.gate.core.quota._SWEEP_AT", 10)
    quota = LocalQuota(clock=clock, shares=Shares(burst=10, calls_per_second=10))
    for number in range(100):
        clock.steady += 1
        quota.spend(tenant="acme", caller=f"caller-{number}")
    assert len(quota._callers) <= 11


@pytest.fixture
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


def ask(world, trainer, *, method="Unary", resource="dataset/digits"):
    admission = world.gate.at_headers(ECHO + method, bearer(world.token(trainer)), request_id="r")
    try:
        caller = world.gate.at_message(admission, auth_context(trainer))
        world.gate.authorize(admission, caller, resource)
    finally:
        world.gate.finish(admission, "OK")


def test_a_resource_is_counted_after_its_grant_so_that_strangers_cannot_use_it_up(trainer):
    clock = StoppedClock()
    world = World(clock=clock, quota=LocalQuota(clock=clock, shares=Shares(resource_burst=1)))
    world.publish(grants=())
    for _ in range(5):
        with pytest.raises(NotFound):
            ask(world, trainer)
    world.publish(grants=(grant(),))
    ask(world, trainer)
    with pytest.raises(Exhausted):
        ask(world, trainer)
    assert world.audit.denials == ["GRANT_MISSING"] * 5 + ["RATE_LIMITED"]


def test_a_method_that_must_be_audited_is_refused_while_the_audit_is_down_and_others_are_not(trainer):
    world = World()
    world.audit.down = True
    with pytest.raises(Unavailable):
        ask(world, trainer, method="Open", resource=None)
    ask(world, trainer)
    world.audit.down = False
    ask(world, trainer, method="Open", resource=None)
    denied, allowed = world.audit.events
    assert (denied.decision, denied.reason) == ("denied", "DEPENDENCY_UNAVAILABLE")
    assert allowed.decision == "allowed"
    assert allowed.certificate_thumbprint == thumbprint_of(trainer)
    assert (allowed.tls_version, allowed.key_exchange_group) == ("TLSv1.3", "X25519MLKEM768")
    assert allowed.latency_us is not None
    assert allowed.latency_us >= 0
