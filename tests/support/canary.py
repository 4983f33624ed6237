"""A canary for the whole suite: no data key that a test made or opened is in anything that the test printed.

Every `DataKey` and every `Secret` of 32 bytes that comes into being in this process is
noted; what a test captured on stdout, stderr and in its log, and the text of its failure,
is searched for each in the ways in which bytes get written down. A hit fails the test.
Keys of fixtures that several tests share are searched for in each of those tests.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

import pytest

from casemate.sealing.keys import DATA_KEY_BYTES
from casemate.secret import Secret

MOST_KEYS: Final = 2000
"""Noted a test: property tests make very many."""

_noted: list[bytes] = []
_shared: list[tuple[str, bytes]] = []  # with where their fixture belongs: it begins the name of each test that has it


def spellings(key: bytes) -> tuple[str, ...]:
    """How a key could be written into text."""
    return (
        key.hex(),
        key.hex().upper(),
        base64.b64encode(key).decode().rstrip("="),
        base64.urlsafe_b64encode(key).decode().rstrip("="),
        repr(key)[2:-1],
        str(list(key))[1:-1],
    )


def shown_keys(text: str, keys: Iterable[bytes]) -> int:
    """How many of the keys the text shows. Keys of one repeated byte are a test's own, and shown on purpose."""
    return sum(any(spelling in text for spelling in spellings(key)) for key in keys if len(set(key)) > 1)


def pytest_configure() -> None:
    """Notes every key from here on. A data key is a secret of 32 bytes."""
    made = Secret.__init__

    def noting(self: Secret, value: str | bytes) -> None:
        made(self, value)
        if len(_noted) < MOST_KEYS and isinstance(value, bytes) and len(value) == DATA_KEY_BYTES:
            _noted.append(value)

    Secret.__init__ = noting  # type: ignore[method-assign]  # for this process of tests alone


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test answers for its own keys, and for those of the fixtures that it may share."""
    _noted.clear()
    _shared[:] = [(place, key) for place, key in _shared if item.nodeid.startswith(place)]
    _noted.extend(key for _, key in _shared)


@pytest.hookimpl(hookwrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef, request: pytest.FixtureRequest):  # as above
    """Keeps in mind what a fixture made that outlives its first test."""
    before = len(_noted)
    yield
    if fixturedef.scope != "function" and len(_shared) < MOST_KEYS:
        _shared.extend((request.node.nodeid, key) for key in _noted[before:])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # pytest's own generator protocol
    """Fails a test whose output shows a key."""
    outcome = yield
    report = outcome.get_result()
    text = "".join(content for _, content in report.sections) + report.longreprtext
    if text and shown_keys(text, _noted):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: its output shows a data key"
