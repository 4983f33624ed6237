"""The cache of verified tokens: what it may trust, and for how long."""

from __future__ import annotations

import gc
import json
import threading
from contextlib import suppress

import pytest

from casemate.errors import Reason, Unauthenticated
from tests.gate.token_world import CLOCK, Lookup, mint, verify
from tests.gate.world import World, base64url

__all__ = ["mint"]  # fixtures


def test_a_change_of_keys_makes_every_entry_verify_again():
    lookup = Lookup()
    token = lookup.token()
    for epoch in (0, 0, 1, 1):
        lookup.look(token, key_epoch=epoch)
    assert lookup.verified == 2


def test_an_entry_is_trusted_for_less_than_a_minute_however_often_it_is_used():
    lookup = Lookup()
    token = lookup.token()
    counts = []
    for monotonic in (0.0, 30.0, 59.9, 60.0, 60.1, 119.9, 120.0):
        lookup.look(token, monotonic=monotonic)
        counts.append(lookup.verified)
    assert counts == [1, 1, 1, 2, 2, 2, 3]
    lookup.look(token, monotonic=119.0)  # whoever looked at the clock before the last verification was done
    assert lookup.verified == 4


def test_failures_are_never_kept_and_never_push_out_what_is():
    lookup = Lookup()
    token = lookup.token()
    lookup.look(token)
    for number in range(100):
        with pytest.raises(Unauthenticated):
            lookup.look(f"{token}{number}")
    assert len(lookup.cache) == 1
    assert lookup.cache._flights == {}


def test_one_client_pushes_out_only_its_own_tokens():
    lookup = Lookup(max_entries=100, max_per_client=3)
    theirs = lookup.token(client_id="other")
    lookup.look(theirs)
    for _ in range(10):
        lookup.look(lookup.token())
    assert len(lookup.cache) == 4
    before = lookup.verified
    lookup.look(theirs)
    assert lookup.verified == before


def test_memory_is_bounded_and_idle_entries_leave_it():
    lookup = Lookup(max_entries=5)
    for number in range(20):
        lookup.look(lookup.token(client_id=f"client-{number}"))
    assert len(lookup.cache) == 5
    lookup.look(lookup.token(), monotonic=121.0)
    assert len(lookup.cache) == 1
    assert len(lookup.cache._by_client) == 1


def test_when_room_is_made_an_entry_in_use_stays_and_an_unused_one_goes():
    lookup = Lookup(max_entries=2)
    used, unused = (lookup.token(client_id=name) for name in ("used", "unused"))
    for token in (used, unused, used):
        lookup.look(token)
    lookup.look(lookup.token(client_id="new"))
    before = lookup.verified
    lookup.look(used)
    assert lookup.verified == before
    lookup.look(unused)
    assert lookup.verified == before + 1
    assert len(lookup.cache) == 2


def test_entries_that_are_all_in_use_do_not_keep_a_new_one_out():
    lookup = Lookup(max_entries=100)
    for number in range(100):
        token = lookup.token(client_id=f"client-{number}")
        lookup.look(token)
        lookup.look(token)
    new = lookup.token(client_id="new")
    lookup.look(new)
    before = lookup.verified
    lookup.look(new)
    assert lookup.verified == before
    assert len(lookup.cache) == 100


def test_a_thousand_first_uses_at_once_verify_once():
    lookup = Lookup()
    token = lookup.token()
    arrived, everybody, seen = threading.Semaphore(0), 1_000, []

    def slow():
        lookup.verified += 1
        for _ in range(everybody):
            assert arrived.acquire(timeout=30)
        return verify(lookup.mint, token)

    def use():
        arrived.release()
        seen.append(lookup.cache.verified(token, now=CLOCK.now(), monotonic=0.0, key_epoch=0, verify=slow))

    threads = [threading.Thread(target=use) for _ in range(everybody)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert lookup.verified == 1
    assert len(seen) == everybody
    assert len(set(map(id, seen))) == 1


def test_those_who_wait_for_a_bad_token_are_refused_with_it():
    lookup = Lookup()
    waiting, refused = threading.Event(), []

    def fail():
        assert waiting.wait(10)
        raise Unauthenticated("bad", reason=Reason.TOKEN_EXPIRED)

    def use():
        try:
            lookup.cache.verified("text", now=CLOCK.now(), monotonic=0.0, key_epoch=0, verify=fail)
        except Unauthenticated as error:
            refused.append(error.reason)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    waiting.set()
    for thread in threads:
        thread.join(10)
    assert refused == [Reason.TOKEN_EXPIRED] * 5


def test_a_refused_token_leaves_nothing_for_the_garbage_collector_to_find():
    """A flood of them would otherwise grow memory until it runs, and stop every call while it does."""
    world = World()
    texts = [f"{'A' * 40}.{'A' * 40}.{number:040}" for number in range(201)]
    header = base64url(json.dumps({"alg": "EdDSA", "kid": "A" * 43, "typ": "at+jwt"}).encode())
    forged = world.mint.token(world.mint.claims(now=world.clock.now(), thumbprint="x" * 43))
    texts += [f"{header}.e30.{number:086}" for number in range(200)]
    texts += [f"{forged[:-86]}{number:086}" for number in range(200)]

    gc.collect()
    gc.disable()
    try:
        for text in texts:
            with suppress(Unauthenticated):
                world.gate.at_headers("/test.Echo/Unary", (("authorization", f"Bearer {text}"),), request_id="r")
        assert gc.collect() < len(texts)  # not one for each of them
    finally:
        gc.enable()
    assert len(world.audit.denials) == len(texts)
