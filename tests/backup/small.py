"""A small house of two services, run in this process: enough to back up, to lose and to restore."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from casemate.backup.create import create
from casemate.backup.manifest import BackupClass
from casemate.backup.models import Bucket
from casemate.backup.places import AUTH, DATAKEYS, DATASETS, Places, open_keks
from casemate.backup.restore import Judged, Request, judge, put_back, staged_key
from casemate.clock import SystemClock
from casemate.gate.core.records import Effect, Grant, Revocation, RevocationKind
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import FileKek, KekSettings
from casemate.settings import DatabaseSettings
from casemate.storage.migrations import digests
from casemate.transport.metrics import Metrics
from services.auth.after_restore import after_restore as auth_after_restore
from services.auth.log_teller import LogTeller
from services.auth.opening import open_authority
from services.auth.records import Client, Family, Tenant
from services.auth.settings import AuthSettings
from services.auth.store.families import FamilyStore
from services.auth.token_keys import generate
from services.datasets.after_restore import after_restore as datasets_after_restore
from services.datasets.app import open_stores
from services.datasets.settings import DatasetsSettings

CHECKOUT = Path(__file__).parents[2]
SCHEMAS = {
    AUTH: digests(CHECKOUT / "services/auth/schema"),
    DATASETS: digests(CHECKOUT / "services/datasets/schema"),
    DATAKEYS: digests(CHECKOUT / "services/datasets/datakeys_schema"),
}
NOW = datetime.now(UTC)
MALLORY = "acme-mallory"


class OwnLog:
    """The log of the datasets service, without the wire between. Implements `LogAppender`."""

    def __init__(self, store) -> None:
        self._store = store

    async def append(self, kind: str, body: bytes) -> int:
        return await self._store.append_alone(kind, json.loads(body), by="auth")


@dataclass(frozen=True, kw_only=True)
class House:
    """Settings of both services, and where what they keep lies."""

    auth: AuthSettings
    datasets: DatasetsSettings
    inference_kek: Path
    repository: Path
    bucket: Bucket | None = None

    @property
    def places(self) -> Places:
        return Places(
            trust_domain="casemate.internal",
            databases={AUTH: self.auth.database, DATASETS: self.datasets.database, DATAKEYS: self.datasets.data_keys},
            keks={
                "auth": self.auth.kek.location(),
                "datasets": self.datasets.kek.location(),
                "inference": FileKek(path=self.inference_kek),
            },
            authority_keys={"auth": self.auth.authority_key, "datasets": self.datasets.authority_key},
            repository=self.bucket or self.repository,
            authority=None,
            retention=timedelta(days=30),
        )

    def moved(self, folder: Path, databases: dict[str, DatabaseSettings]) -> House:
        """The same house on another machine: empty databases and folders, the same key-encryption keys."""
        return House(
            auth=replace(self.auth, database=databases[AUTH], authority_key_file=folder / "auth.authority.json"),
            datasets=replace(
                self.datasets,
                database=databases[DATASETS],
                data_keys=databases[DATAKEYS],
                authority_key_file=folder / "datasets.authority.json",
            ),
            inference_kek=self.inference_kek,
            repository=folder / "repository",
        )

    def at(self, bucket: Bucket) -> House:
        """The same house, its models in a bucket."""
        return replace(self, bucket=bucket)

    @asynccontextmanager
    async def authority(self):
        async with AsyncExitStack() as stack:
            yield await open_authority(self.auth, stack, Metrics("auth"))

    async def admit(self) -> None:
        """A tenant with a client, two grants and a refresh family; a model on disk."""
        async with self.authority() as authority:
            store = authority.store
            await store.add_tenant(Tenant(name="acme", created_at=NOW))
            for name in ("trainer", "mallory"):
                client = Client(
                    client_id=f"acme-{name}",
                    tenant="acme",
                    spiffe_id=f"spiffe://casemate.internal/t/acme/{name}",
                    audiences=("datasets",),
                    scopes=("datasets.read",),
                    enabled=True,
                    created_at=NOW,
                )
                await store.add_client(client)
                await store.add_grant(grant(name))
            await FamilyStore(pool=authority.pool, tables=authority.tables).add(family())
            await store.add_first_token_key(await generate(authority.kek, now=NOW))
        model = self.repository / "acme" / "digits" / "1"
        (model / "files").mkdir(parents=True)
        (model / "manifest.dsse.json").write_bytes(b"signed")
        (model / "files" / "model.onnx.sealed").write_bytes(b"sealed" * 500_000)
        (self.repository / "acme" / "digits" / ".staging-2").mkdir()
        (self.repository / "acme" / "digits" / ".staging-2" / "half").write_bytes(b"half")

    async def take_away(self) -> None:
        """What operators do after the backup; the log is told."""
        async with self.authority() as authority:
            revocations = [
                Revocation(
                    id=f"r-{kind}", kind=kind, value=MALLORY, not_before=NOW, expires_at=NOW + timedelta(hours=1)
                )
                for kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT)
            ]
            await authority.store.disable_client(MALLORY, within=None, revocations=revocations, now=NOW)
            named = Revocation(id="r-name", kind=RevocationKind.SPIFFE_ID, value=SPIFFE_ID)
            await authority.store.revoke(named, now=NOW)
            seen = Revocation(id="r-seen", kind=RevocationKind.CERTIFICATE, value=THUMBPRINT, expires_at=None)
            await authority.store.revoke(seen, now=NOW)
            told = Revocation(
                id="r-told", kind=RevocationKind.SUBJECT, value="idp:bob", not_before=NOW, expires_at=DIGEST_UNTIL
            )
            await authority.store.revoke(told, now=NOW)
            await authority.store.delete_grant("grant-mallory", within=None)
            await authority.store.add_grant(grant("later"))
            await self.tell_log(authority)

    async def tell_log(self, authority) -> None:
        async with AsyncExitStack() as stack:
            stores, _ = await open_stores(self.datasets, stack, Metrics("datasets"), SystemClock())
            teller = LogTeller(
                pool=authority.pool,
                tables=authority.tables,
                key=authority.key,
                alarms=authority.alarms,
                log=OwnLog(stores.log),
                lag=lambda _: None,
            )
            while await teller.tell():
                pass

    async def back_up(self, folder: Path, *kinds: BackupClass, **changes) -> dict[BackupClass, Path]:
        targets = {kind: folder / kind.value for kind in kinds or BackupClass}
        made = await create(replace(self.places, **changes), targets, clock=SystemClock())
        return {one.manifest.kind: one.folder for one in made}

    async def judged(self, request: Request, *, schemas=SCHEMAS, now: datetime | None = None, keks=None) -> Judged:
        places = self.places if keks is None else replace(self.places, keks=keks)
        async with open_keks(places, SystemClock()) as found:
            return await judge(
                request,
                keks=found,
                schemas=schemas,
                trust_domain="casemate.internal",
                now=now or datetime.now(UTC),
            )

    async def restored(self, judged: Judged, staging: Path) -> dict:
        async def after(service: str, _arguments) -> dict:
            key = staged_key(staging, service)
            if service == "auth":
                return await auth_after_restore(replace(self.auth, authority_key_file=key), judged.newest_log)
            settings = replace(self.datasets, authority_key_file=key)
            return await datasets_after_restore(settings, judged.newest_log, backup=judged.rows.manifest.id)

        return await put_back(judged, self.places, staging=staging, after=after)


THUMBPRINT = "t" * 43
DIGEST_UNTIL = NOW + timedelta(minutes=30)
SPIFFE_ID = "spiffe://casemate.internal/t/acme/mallory"


def grant(name: str) -> Grant:
    return Grant(
        id=f"grant-{name}",
        tenant="acme",
        caller=f"t/acme/{name}",
        verb="read",
        resource="dataset/digits",
        effect=Effect.ALLOW,
        expires_at=None,
    )


def family() -> Family:
    return Family(
        id="family",
        tenant="acme",
        client_id="acme-trainer",
        spiffe_id="spiffe://casemate.internal/t/acme/trainer",
        subject="idp:alice",
        actors=(),
        audience="datasets",
        scopes=("datasets.read",),
        salt=b"s" * 16,
        generation=1,
        created_at=NOW,
        rotated_at=NOW,
        idle_expires_at=NOW + timedelta(days=1),
        expires_at=NOW + timedelta(days=2),
    )


def build_house(datasets: DatasetsSettings, auth: DatabaseSettings, folder: Path) -> House:
    for name in ("auth", "inference"):
        LocalKeyRing.create(folder / "keks" / f"{name}.json")
    return House(
        auth=AuthSettings(
            listen=datasets.listen,
            identity=datasets.identity,
            trust=datasets.trust,
            database=auth,
            kek=KekSettings(kek=None, kek_file=folder / "keks" / "auth.json"),
            audit_file=folder / "audit.jsonl",
        ),
        datasets=datasets,
        inference_kek=folder / "keks" / "inference.json",
        repository=folder / "repository",
    )
