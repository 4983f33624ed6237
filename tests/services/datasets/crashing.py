"""The datasets service in a process of its own, to be killed; for `test_kill_rounds.py` alone."""

from __future__ import annotations

import ast
import asyncio
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from casemate.transport.floor import raise_floor


async def main(told: dict[str, object]) -> None:
    from casemate.gate.core.records import Grant, VerificationKey
    from casemate.gate.core.trust import TrustSnapshot, TrustState
    from casemate.sealing.provider import KekSettings
    from casemate.secret import Secret
    from casemate.settings import DatabaseSettings, IdentitySettings, ListenSettings, TrustSettings
    from casemate.signing.keys import PublicKey
    from casemate.signing.signers import Signer
    from services.datasets.app import serving
    from services.datasets.settings import DatasetsSettings
    from tests.services.datasets.world import FOREVER

    def database(kind: str) -> DatabaseSettings:
        name, password = str(told[kind]), Secret(str(told[f"{kind}_password"]))
        return DatabaseSettings(host=str(told["host"]), name=name, user=name, password=password)

    settings = DatasetsSettings(
        listen=ListenSettings(address="127.0.0.1:0", metrics_address="127.0.0.1:0"),
        identity=IdentitySettings(directory=Path(str(told["identity"])), trust_domain="casemate.internal"),
        trust=TrustSettings(staleness=timedelta(seconds=300)),
        kek=KekSettings(kek_file=Path(str(told["kek"]))),
        database=database("rows"),
        data_keys=database("keys"),
        auth_address="127.0.0.1:1",
        audit_file=Path(str(told["audit"])),
    )
    supplier = PublicKey.admit(told["supplier"])
    signer = Signer(
        key_id=supplier.key_id,
        tenant="acme",
        role="supplier",
        public_key=supplier,
        valid_from=FOREVER[0],
        valid_until=FOREVER[1],
    )
    grants = [
        Grant(id=verb, tenant="acme", caller="t/acme/*", verb=verb, resource="dataset/*") for verb in ("push", "read")
    ]
    trust = TrustState()
    trust.apply_snapshot(
        TrustSnapshot.build(
            epoch="1",
            sequence=1,
            issuer="https://auth.casemate.internal",
            keys=[VerificationKey.load(told["token_key"])],
            grants=grants,
            signers=[signer],
        )
    )
    trust.heard(time.monotonic())
    async with serving(settings, trust=trust, lame_duck=timedelta()) as running:
        sys.stdout.write(f"{running.port}\n")
        sys.stdout.flush()
        while True:
            trust.heard(time.monotonic())
            await asyncio.sleep(1)


if __name__ == "__main__":
    raise_floor(os.environ)
    asyncio.run(main(ast.literal_eval(sys.stdin.readline())))
