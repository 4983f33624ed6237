"""Several hosts: one is lost, all are rolled, and inference is cut off from auth. What callers are told is counted."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from casemate.cli import digits
from tests.deploy.hosts import Callers, Hosts, cluster_on_hosts, require_namespaces

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


async def test_hosts_are_lost_rolled_and_cut_off_and_callers_are_told_nothing_false(
    tmp_path_factory: pytest.TempPathFactory, tell_record: Callable[[str], None]
) -> None:
    """One cluster, three disasters, and between them all is well again."""
    require_namespaces()
    _, held_out = digits.split()
    pixels = np.ascontiguousarray(held_out.pixels[:8], dtype=np.float32)
    async with cluster_on_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        with Callers(hosts, pixels) as callers:
            await asyncio.to_thread(callers.wait_for, "OK", times=200)
            for name, disaster in (
                ("every replica rolled", _roll_all),
                ("a replica of inference killed", _kill_one),
                ("each replica of auth killed", _kill_each_auth),
                ("inference cut off from auth", _cut_off),
                ("a host unplugged", _unplug_one),
            ):
                told = await asyncio.to_thread(disaster, hosts, callers)
                tell_record(f"{name}: {dict(told)}")


def _roll_all(hosts: Hosts, callers: Callers) -> Counter[str]:
    """One after the other, each back before the next goes. No call fails."""
    callers.taken()
    told = Counter[str]()
    for host in hosts.hosts:
        assert host.end() == 0, host.log.read_text()[-500:]
        told += callers.wait_for("OK")
        host.start()
        hosts.wait_serving(host)
        hosts.wait_connected(host)
        told += callers.wait_for("OK")
    assert set(told) == {"OK"}, told
    return told


def _kill_one(hosts: Hosts, callers: Callers) -> Counter[str]:
    """Calls in flight are asked of the other: predictions have no effect to repeat. No call fails."""
    callers.taken()
    (lost, _) = hosts.of("inference")
    lost.end(signal.SIGKILL)
    told = callers.wait_for("OK", times=300)
    lost.start()
    hosts.wait_serving(lost)
    hosts.wait_connected(lost)
    told += callers.wait_for("OK")
    assert set(told) == {"OK"}, told
    return told


def _kill_each_auth(hosts: Hosts, callers: Callers) -> Counter[str]:
    """One after the other, so that whichever a feed hangs on is lost once: it goes on from the other. No call fails."""
    callers.taken()
    told = Counter[str]()
    for lost in hosts.of("auth"):
        lost.end(signal.SIGKILL)
        told += callers.wait_for("OK", times=500)
        lost.start()
        hosts.wait_serving(lost)
        hosts.wait_connected(lost)
        told += callers.wait_for("OK")
    assert set(told) == {"OK"}, told
    return told


def _cut_off(hosts: Hosts, callers: Callers) -> Counter[str]:
    """Without news of trust, calls go on for `trust_staleness`; then replicas say that they do not serve.

    Callers are told to come back, and never that they are nobody.
    """
    callers.taken()
    hosts.part("inference", "auth")
    told = callers.wait_for("UNAVAILABLE", times=20)
    assert told["OK"] > 100, told
    hosts.join("inference", "auth")
    told += callers.wait_for("OK", times=200)
    assert set(told) == {"OK", "UNAVAILABLE"}, told
    return told


def _unplug_one(hosts: Hosts, callers: Callers) -> Counter[str]:
    """Nothing is refused: packets vanish. What was on its way there ends by its deadline; the rest goes elsewhere."""
    callers.taken()
    (_, lost) = hosts.of("inference")
    hosts.unplug(lost)
    told = callers.wait_for("OK", times=500)
    lost.end(signal.SIGKILL)
    assert told["OK"] >= 500
    assert set(told) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, told
    assert told["OK"] > 20 * (told.total() - told["OK"]), told
    return told
