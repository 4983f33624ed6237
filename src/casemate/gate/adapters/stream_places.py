"""Places for streams on the synchronous server, where each holds a thread for as long as its peer likes.

If this fails: one tenant's open streams keep the others' from beginning. No right depends on it.
"""

from __future__ import annotations

import threading


class StreamPlaces:
    """So many streams at once, of which one share (a tenant) never has all. Safe in threads.

    Args:
        places: streams that may run at once. A quarter, and of two or more at least one, is kept for other shares.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._most = max(1, places - max(1, places // 4))
        self._lock = threading.Lock()
        self._held: dict[str, int] = {}

    def take(self, share: str) -> bool:
        """Whether there was a place; give it back by `give`."""
        with self._lock:
            held = self._held.get(share, 0)
            if held >= self._most or sum(self._held.values()) >= self._places:
                return False
            self._held[share] = held + 1
            return True

    def give(self, share: str) -> None:
        """Gives a place back."""
        with self._lock:
            held = self._held[share] - 1
            if held:
                self._held[share] = held
            else:
                del self._held[share]
