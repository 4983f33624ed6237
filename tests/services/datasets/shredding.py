"""Shreds version 1 of acme's digits in a process of its own, to be killed; for `test_shred.py` alone."""

from __future__ import annotations

import ast
import asyncio
import os
import sys
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

from casemate.transport.floor import raise_floor


async def main(told: dict[str, str]) -> None:
    from casemate.clock import SystemClock
    from casemate.sealing.provider import KekSettings
    from casemate.secret import Secret
    from casemate.settings import DatabaseSettings, IdentitySettings, ListenSettings, TrustSettings
    from casemate.transport.metrics import Metrics
    from services.datasets.app import open_shredder, open_stores
    from services.datasets.settings import DatasetsSettings

    def database(kind: str) -> DatabaseSettings:
        name = told[kind]
        return DatabaseSettings(host=told["host"], name=name, user=name, password=Secret(told[f"{kind}_password"]))

    settings = DatasetsSettings(
        listen=ListenSettings(address="127.0.0.1:0", metrics_address="127.0.0.1:0"),
        identity=IdentitySettings(directory=Path(told["identity"]), trust_domain="casemate.internal"),
        trust=TrustSettings(staleness=timedelta(seconds=300)),
        kek=KekSettings(kek_file=Path(told["kek"])),
        database=database("rows"),
        data_keys=database("keys"),
        auth_address="127.0.0.1:1",
        audit_file=Path(told["audit"]),
    )
    async with AsyncExitStack() as stack:
        stores, key = await open_stores(settings, stack, Metrics("datasets"), SystemClock())
        await open_shredder(settings, stores, key, SystemClock()).shred(tenant="acme", dataset="digits", version=1)


if __name__ == "__main__":
    raise_floor(os.environ)
    asyncio.run(main(ast.literal_eval(sys.stdin.read())))
