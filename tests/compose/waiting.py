"""Waits for causes, and gives up after a time."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], bool], otherwise: str | Callable[[], str], seconds: float = 60) -> None:
    """Returns once the condition holds.

    Raises:
        TimeoutError: it did not in time; says what `otherwise` gives.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise if isinstance(otherwise, str) else otherwise())
        time.sleep(0.25)


def eventually(act: Callable[[], None], seconds: float = 40) -> None:
    """Repeats what may fail while a service comes back; raises what it raised last."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return act()
        except Exception:  # the last one is raised
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
