"""The two attacks on memory that need great numbers: in process, since the wire would take an hour."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from casemate.errors import Unauthenticated
from casemate.gate.core.cache import TokenCache
from tests.gate.world import ECHO, World, auth_context, bearer, thumbprint_of

GARBAGE, CYCLED = 1_000_000, 100_000
MOST_MIB = 8
"""Measured: nothing at all. What an allocator may take in steps besides."""


def resident_mib():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Forgetful(World):
    """A world whose audit keeps no events: what is measured is the gate."""

    def __init__(self):
        super().__init__()
        self.audit.record = lambda _event: None


@pytest.mark.long
def test_a_million_distinct_garbage_tokens_leave_memory_flat(trainer):
    world, numbers = Forgetful(), count()
    head, payload, _ = world.token(trainer).split(".")
    strange, _, _ = world.mint.token({}, kid="A" * 43).split(".")

    def refuse(times):
        for number in range(times):
            text = f"{head if number % 20 == 0 else strange}.{payload}.{next(numbers):086}"
            with suppress(Unauthenticated):
                world.gate.at_headers(ECHO + "Unary", bearer(text), request_id="r")

    refuse(GARBAGE // 10)
    before = resident_mib()
    refuse(GARBAGE)
    assert resident_mib() - before < MOST_MIB
    assert len(world.cache) == 0


@pytest.mark.long
def test_a_hundred_thousand_good_tokens_of_one_client_leave_the_others_in_memory(trainer):
    world, outcomes = Forgetful(), []
    world.cache = TokenCache(observe=outcomes.append)
    world.gate = world.build_gate(world.cache)
    others = [world.token(trainer, client_id=f"other-{number}") for number in range(100)]

    def call(text):
        world.hear()
        admission = world.gate.at_headers(ECHO + "Open", bearer(text), request_id="r")
        world.gate.at_message(admission, auth_context(trainer))
        world.gate.finish(admission, "OK")

    for text in others:
        call(text)
    claims = world.mint.claims(now=world.clock.now(), thumbprint=thumbprint_of(trainer), client_id="busy")
    for number in range(CYCLED // 10):
        call(world.mint.token({**claims, "jti": f"warm-{number}"}))
    before = resident_mib()
    for number in range(CYCLED):
        call(world.mint.token({**claims, "jti": f"busy-{number}"}))
        if number % 5_000 == 0:
            claims = world.mint.claims(now=world.clock.now(), thumbprint=thumbprint_of(trainer), client_id="busy")
    assert resident_mib() - before < MOST_MIB
    outcomes.clear()
    for text in others:
        call(text)
    assert set(outcomes) <= {"hit", "miss"}  # verified again after a minute, and never pushed out
    assert len(world.cache) == 100 + 64
