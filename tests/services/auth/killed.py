"""The auth service, killed by SIGKILL between the commit of a refresh and its reply; for `test_refresh.py` alone."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from casemate.transport.floor import raise_floor

if __name__ == "__main__":
    raise_floor(os.environ)
    from services.auth.command import main
    from services.auth.store.families import FamilyStore

    committed = FamilyStore.swap

    async def swap_and_die(self, before, after):
        if await committed(self, before, after):
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    FamilyStore.swap = swap_and_die
    asyncio.run(main(sys.argv[1:], os.environ))
