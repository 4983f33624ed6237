"""What a worker's process says when a fault of compiled code ends it: in which of its threads.

Python's own faulthandler writes it, from the thread that failed, before the process ends. It
goes to memory that the supervisor holds, so nothing is left on any disk.

If this fails: it is not known which of the runs under way ended a worker, and no model is held for it; the
inputs of all of them are suspected.
"""

from __future__ import annotations

import faulthandler
import os
import re

_THREAD = re.compile(rb"^Current thread 0x([0-9a-f]{1,16}) ", re.MULTILINE)
_CAUSE = re.compile(rb"\AFatal Python error: ([\x20-\x7e]{1,80})")
_LONGEST = 4 * 1024 * 1024


class LastWords:
    """The supervisor's side, for one process. The descriptor is inherited by the worker."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("casemate-last-words", os.MFD_CLOEXEC)

    def read(self) -> tuple[str, int | None]:
        """Of what it died, as far as it said, and in which thread (`threading.get_ident`)."""
        said = os.pread(self.descriptor, _LONGEST, 0)
        cause, thread = _CAUSE.search(said), _THREAD.search(said)
        return cause[1].decode() if cause else "", int(thread[1], 16) if thread else None

    def close(self) -> None:
        """Gives the memory back."""
        os.close(self.descriptor)


def leave_last_words(descriptor: int) -> None:
    """Has this process say there why it dies, if it does."""
    faulthandler.enable(file=descriptor, all_threads=True)
