"""Runs a command that dies with the process that started it.

`python -m casemate.cli.bound COMMAND …` asks the kernel for SIGTERM when its
parent ends, then becomes the command. A small program of its own, because doing
this between fork and exec is not safe in a parent that has threads.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that this process gets when its parent thread ends."""


def main() -> None:
    """Binds this process to its parent, and becomes the command."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # no shell: this is what the program is for


if __name__ == "__main__":
    main()
