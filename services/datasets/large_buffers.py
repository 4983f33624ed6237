"""Gives large buffers back to the kernel as soon as they are freed.

glibc maps a large buffer by itself, and stops doing so for all sizes up to one that
was freed once. After the first chunk of eight mebibytes the holes of many would stay:
half as much memory again as is ever in use, measured.
"""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE: Final = 2 << 20
"""Above the usual chunk, whose memory is worth keeping warm."""

_KEPT: Final = 16 << 20
"""Kept of each arena's end: given back with each chunk and faulted in again, a MiB of it costs a millisecond."""

_ARENAS: Final = 2
"""As many as there are threads that work on chunks; gRPC's dozens would each keep holes of their own."""


def give_back_large_buffers() -> None:
    """Fixes threshold and number of arenas for this process, where the C library is glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
        mallopt(_M_ARENA_MAX, _ARENAS)
