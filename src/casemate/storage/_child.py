"""Becomes another program: gives up root, dies with its parent, then executes it.

Run as a script by `casemate.storage.process`, never imported: code between fork
and exec in a process that has threads may deadlock, a fresh interpreter cannot.

Arguments: expected parent's pid, uid, gid, then the program and its arguments.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, uid, gid = (int(argument) for argument in sys.argv[1:4])
    program = sys.argv[4:]
    libc = ctypes.CDLL(None, use_errno=True)
    os.umask(0o077)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if parent and sys.platform == "linux":
        # After setuid, which clears it. SIGINT is PostgreSQL's fast shutdown.
        if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGINT), 0, 0, 0) != 0:
            raise SystemExit("the kernel refuses PR_SET_PDEATHSIG")
        if os.getppid() != parent:
            raise SystemExit("the parent is gone already")
    os.execv(program[0], program)  # noqa: S606  # becoming that program is what this file is for


main()
