"""A server in a process of its own, so that what an attack costs it can be read off: memory, processor, handlers.

`python -m tests.gate.attacks.alone KIND SERVICE_LEAF CLIENT_LEAF` says where it is and a good token, as one
line of JSON, and for each line that it reads one with what it has used so far.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
HANDSHAKE_MS = 60_000
"""Longer than any test: what is to be seen is not that dawdlers are closed in time, but how many there may be."""


class Alone:
    """One of them, from outside."""

    def __init__(self, kind, service, client) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gate.attacks.alone", kind, service, client],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        said = json.loads(self._process.stdout.readline())
        self.port, self.token = said["port"], said["token"]

    def used(self):
        """What it has used so far: `cpu_s`, `rss_mib`, `entered`, `running`, `denials`."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(30) == 0
        self._process.stdout.close()


def main(kind: str, service: Path, client: Path) -> None:
    from casemate.transport import options
    from tests.gate.served import serve
    from tests.gate.world import World

    options.HARDENED_SERVER_OPTIONS = tuple(
        (name, HANDSHAKE_MS if name == "grpc.server_handshake_timeout_ms" else value)
        for name, value in options.HARDENED_SERVER_OPTIONS
    )
    world = World()
    with serve(kind, world, service) as served:
        print(json.dumps({"port": served.port, "token": world.token(client)}), flush=True)
        for _line in sys.stdin:
            world.hear()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            used = {
                "cpu_s": time.process_time(),
                "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                "entered": len(served.echo.entered),
                "running": world.gate._quota.running,
                "denials": len(world.audit.denials),
            }
            print(json.dumps(used), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
