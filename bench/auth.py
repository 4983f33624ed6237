"""What the token service does in a second, and how soon a revocation is everywhere: `make bench-auth`.

Load and server share the machine's cores, so what is quoted per core is reckoned from the
processor time of the measured process. Sides take turns in short rounds, and ratios are of
the rounds' medians. What each side does for a token stands in `bench.auth_sides`.

The peer is node's oidc-provider, installed with npm beside the bench's other temporary files
if it is not there, or taken from the folder that OIDC_PROVIDER names. Without npm it is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from bench.auth_peer import MUTUAL, find_provider, oidc_provider
from bench.auth_served import Served, running_auth
from bench.auth_sides import (
    Sample,
    Side,
    introspecting_by_https,
    introspecting_by_rpc,
    issuing_by_https,
    issuing_by_rpc,
    percentile,
    sample,
)
from bench.auth_trust import key_emergencies, revocations
from bench.report import Result, publish

CALLERS: Final = (1, 32)
ROUNDS: Final = 5
SECONDS: Final = 2.0


async def main(*, as_json: bool, given: str | None) -> None:
    """Measures everything once and prints it; beside the peer, where that is to be had."""
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        if os.geteuid() == 0:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103  # PostgreSQL is another user, and only passes through
        async with AsyncExitStack() as stack:
            served = await stack.enter_async_context(running_auth(directory))
            results = [Result("cold start to serving", served.start_s, "s", "≤ 2", met=served.start_s <= 2)]
            results += await _issuing(served, await asyncio.to_thread(find_provider, given))
            introspecting = [introspecting_by_rpc(served), introspecting_by_https(served)]
            for callers in CALLERS:
                results += _shown("introspected", callers, await _in_turn(introspecting, callers))
            results += await revocations(served)
            results += await key_emergencies(served)
    publish("auth", results, as_json=as_json)


async def _issuing(served: Served, provider: Path | None) -> list[Result]:
    results: list[Result] = []
    ours = [issuing_by_rpc(served), issuing_by_https(served)]
    async with AsyncExitStack() as stack:
        sides = list(ours)
        if provider is not None:
            sides.append(await stack.enter_async_context(oidc_provider(provider)))
            sides.append(await stack.enter_async_context(oidc_provider(provider, mutual=served)))
        for callers in CALLERS:
            found = await _in_turn(sides, callers)
            results += _shown("issued", callers, found)
            for side, peer in itertools.product(ours, sides[len(ours) :]):
                ahead = _per_core(found[side.name]) / _per_core(found[peer.name])
                name = f"{side.name} beside {peer.name} per core, {callers} at once"
                # The goal is the plain one's, which proves less; the other is told for what it does is what ours does.
                goal, met = ("> 1", ahead > 1) if peer.name != MUTUAL else (None, None)
                results.append(Result(name, ahead, "×", goal, met=met))
    return results


async def _in_turn(sides: Sequence[Side], callers: int) -> dict[str, list[Sample]]:
    """Rounds of all sides, one after the other, each with so many callers."""
    found: dict[str, list[Sample]] = {side.name: [] for side in sides}
    async with AsyncExitStack() as stack:
        calls = {}
        for side in sides:
            calls[side.name] = [await side.connect(stack) for _ in range(callers)]
            # Not counted: V8 compiles what is often called while it is called.
            await sample(side, calls[side.name], seconds=SECONDS)
        for _ in range(ROUNDS):
            for side in sides:
                found[side.name].append(await sample(side, calls[side.name], seconds=SECONDS))
    return found


def _shown(what: str, callers: int, found: dict[str, list[Sample]]) -> list[Result]:
    results = []
    for side, samples in found.items():
        name = f"{what}, {side}, {callers} at once"
        took = [one for each in samples for one in each.took]
        results += [
            Result(name, statistics.median(each.per_second for each in samples), "1/s"),
            Result(f"{name}, per core", _per_core(samples), "1/s"),
            Result(f"{name}, p99", percentile(took, 99) * 1000, "ms"),
        ]
    return results


def _per_core(samples: Sequence[Sample]) -> float:
    return statistics.median(each.per_core for each in samples)


if __name__ == "__main__":
    named = os.environ.get("OIDC_PROVIDER")  # noqa: TID251  # where it enters
    json_wanted = bool(os.environ.get("JSON"))  # noqa: TID251  # as above
    asyncio.run(main(as_json=json_wanted, given=named))
