"""A canary for the whole suite: no data key that a test made or opened is in anything that the test printed.

Every `DataKey` and every `Secret` of 32 bytes that comes into being in this process is
noted; what a test captured on stdout, stderr and in its log, and the text of its failure,
is searched for each in the ways in which bytes get written down. A hit fails the test.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

import pytest

from casemate.sealing.keys import DATA_KEY_BYTES, DataKey

MOST_KEYS: Final = 2000
"""Noted a test: property tests make very many."""

_noted: list[bytes] = []


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
    """Notes every data key from here on."""
    made = DataKey.__init__

    def noting(self: DataKey, value: bytes) -> None:
        made(self, value)
        if len(_noted) < MOST_KEYS and len(value) == DATA_KEY_BYTES:
            _noted.append(bytes(value))

    DataKey.__init__ = noting  # type: ignore[method-assign]  # for this process of tests alone


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Each test answers for its own keys."""
    _noted.clear()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):  # pytest's own generator protocol
    """Fails a test whose output shows a key."""
    outcome = yield
    report = outcome.get_result()
    text = "".join(content for _, content in report.sections) + report.longreprtext
    if text and shown_keys(text, _noted):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: its output shows a data key"
