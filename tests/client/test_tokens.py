from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from casemate.client.tokens import AccessToken, TokenKey, TokenSource
from casemate.errors import Unavailable
from casemate.secret import Secret

KEY = TokenKey("inference", (), "thumbprint")


class HandClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()


class Issuer:
    """Counts what was asked, and makes tokens of five minutes."""

    def __init__(self, clock: HandClock) -> None:
        self.clock = clock
        self.asked: list[TokenKey] = []
        self.failing = False
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key: TokenKey) -> AccessToken:
        self.asked.append(key)
        assert self.gate.wait(10)
        if self.failing:
            raise Unavailable("down")
        now = self.clock.now()
        name = f"token-{len(self.asked)}"
        return AccessToken(Secret(name), name, fetched_at=now, expires_at=now + timedelta(minutes=5))


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def issuer(clock):
    return Issuer(clock)


@pytest.fixture
def tokens(issuer, clock):
    return TokenSource(fetch=issuer, clock=clock)


def test_token_is_used_until_four_fifths_of_its_life_and_then_replaced(tokens, issuer, clock):
    assert tokens.token(KEY).token_id == "token-1"
    clock.time += timedelta(seconds=239)
    assert tokens.token(KEY).token_id == "token-1"
    clock.time += timedelta(seconds=1)
    assert tokens.token(KEY).token_id == "token-2"
    assert len(issuer.asked) == 2


def test_many_threads_that_need_a_token_at_once_cause_one_request(tokens, issuer):
    issuer.gate.clear()
    got = []
    threads = [threading.Thread(target=lambda: got.append(tokens.token(KEY).token_id)) for _ in range(50)]
    for thread in threads:
        thread.start()
    issuer.gate.set()
    for thread in threads:
        thread.join(10)
    assert got == ["token-1"] * 50
    assert len(issuer.asked) == 1


def test_failed_request_is_told_and_the_next_one_succeeds(tokens, issuer):
    issuer.failing = True
    with pytest.raises(Unavailable):
        tokens.token(KEY)
    issuer.failing = False
    assert tokens.token(KEY).token_id == "token-2"


def test_renewed_certificate_gets_a_token_of_its_own_and_the_old_one_is_kept_for_calls_on_the_way(tokens, issuer):
    renewed = TokenKey("inference", (), "renewed")
    assert tokens.token(KEY).token_id == "token-1"
    assert tokens.token(renewed).token_id == "token-2"
    assert tokens.token(KEY).token_id == "token-1"
    assert issuer.asked == [KEY, renewed]


def test_tokens_of_certificates_long_gone_are_forgotten(tokens, issuer):
    for number in range(100):
        tokens.token(TokenKey("inference", (), f"certificate {number}"))
    assert len(tokens._tokens) <= 2


def test_token_does_not_show_itself():
    token = AccessToken(Secret("canary"), "id", datetime.now(UTC), datetime.now(UTC))
    assert "canary" not in repr(token)
    assert token.text.reveal() == "canary"
