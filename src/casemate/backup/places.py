"""Where the things lie that a backup holds: the services' own settings, as far as it needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from casemate.backup.models import SCHEME, Bucket
from casemate.clock import Clock
from casemate.errors import ConfigurationError
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.provider import FileKek, KekLocation, KekSettings, load_kek
from casemate.settings import DatabaseSettings, duration, load_settings, nested, path, setting

AUTH: Final = "casemate_auth"
DATASETS: Final = "casemate_datasets"
DATAKEYS: Final = "casemate_datakeys"
DATABASES: Final = {AUTH: "auth", DATASETS: "datasets", DATAKEYS: "datasets"}
"""Each database of a backup, and the service that it belongs to."""


@dataclass(frozen=True, slots=True)
class AuthPlaces:
    """What auth keeps."""

    database: DatabaseSettings
    kek: KekSettings
    authority_key_file: Path | None = setting("AUTHORITY_KEY_FILE", parse=path, default=None, help="sealed MAC key")


@dataclass(frozen=True, slots=True)
class DatasetsPlaces:
    """What datasets keeps."""

    database: DatabaseSettings
    kek: KekSettings
    data_keys: DatabaseSettings = nested("DATAKEYS_")
    authority_key_file: Path | None = setting("AUTHORITY_KEY_FILE", parse=path, default=None, help="sealed MAC key")
    retention: timedelta = setting(
        "DATAKEYS_BACKUP_RETENTION", parse=duration, default=timedelta(days=30), help="longest life of such a backup"
    )


@dataclass(frozen=True, slots=True)
class InferencePlaces:
    """What inference keeps."""

    kek: KekSettings
    repository: str = setting("REPOSITORY_DIR", parse=str, help="folder of the sealed models, or s3://bucket/path")
    repository_endpoint: str | None = setting(
        "REPOSITORY_ENDPOINT", parse=str, default=None, help="the S3 server, where it is not AWS's own"
    )

    @property
    def models(self) -> Path | Bucket:
        """Where the sealed models lie."""
        if self.repository.startswith(SCHEME):
            return Bucket(url=self.repository, endpoint=self.repository_endpoint)
        return Path(self.repository)


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Everything that one cluster keeps.

    Attributes:
        trust_domain: whose it is.
        databases: by the names of `DATABASES`.
        keks: location by service.
        authority_keys: the sealed MAC keys, by service.
        repository: the sealed models, in a folder or in a bucket.
        authority: folder of the development certificate authority, where there is one.
        retention: how long data keys may live in a backup.
    """

    trust_domain: str
    databases: Mapping[str, DatabaseSettings]
    keks: Mapping[str, KekLocation]
    authority_keys: Mapping[str, Path]
    repository: Path | Bucket
    authority: Path | None
    retention: timedelta

    @classmethod
    def of(cls, environments: Mapping[str, Mapping[str, str]], *, authority: Path | None, pki: Path | None) -> Places:
        """Reads them from what the services are told.

        Args:
            environments: by service, its environment.
            authority: the development certificate authority.
            pki: the key ring that seals its key.

        Raises:
            ConfigurationError: a setting is missing or malformed.
        """
        auth = load_settings(AuthPlaces, _known(environments["auth"], "AUTH"), component="auth")
        datasets = load_settings(DatasetsPlaces, _known(environments["datasets"], "DATASETS"), component="datasets")
        inference = load_settings(
            InferencePlaces, _known(environments["inference"], "INFERENCE"), component="inference"
        )
        keks = {"auth": auth.kek.location(), "datasets": datasets.kek.location(), "inference": inference.kek.location()}
        if authority is not None and pki is not None:
            keks["pki"] = FileKek(path=pki)
        return cls(
            trust_domain=environments["auth"].get("CASEMATE_TRUST_DOMAIN", "casemate.internal"),
            databases={AUTH: auth.database, DATASETS: datasets.database, DATAKEYS: datasets.data_keys},
            keks=keks,
            authority_keys={
                "auth": _authority_key(auth.authority_key_file, auth.kek, "AUTH"),
                "datasets": _authority_key(datasets.authority_key_file, datasets.kek, "DATASETS"),
            },
            repository=inference.models,
            authority=authority,
            retention=datasets.retention,
        )


@asynccontextmanager
async def open_keks(places: Places, clock: Clock) -> AsyncIterator[Mapping[str, KeyEncryptionKey]]:
    """The key-encryption keys by service, for the length of the block.

    Raises:
        ConfigurationError: as `load_kek`.
    """
    async with AsyncExitStack() as stack:
        found = {}
        for name, location in places.keks.items():
            settings = KekSettings(kek=location, kek_file=None)
            try:
                found[name] = await stack.enter_async_context(load_kek(settings, clock=clock))
            except ConfigurationError as error:
                raise ConfigurationError(f"the key-encryption key of {name}: {error}") from error
        yield found


def _authority_key(file: Path | None, kek: KekSettings, component: str) -> Path:
    found = file or kek.beside(".authority.json")
    if found is None:
        name = f"CASEMATE_{component}_AUTHORITY_KEY_FILE"
        raise ConfigurationError(f"{name} is needed: the key-encryption key is in no file")
    return found


def _known(environment: Mapping[str, str], component: str) -> dict[str, str]:
    """What of an environment these settings read: the services judge the rest."""
    prefix = f"CASEMATE_{component}_"
    wanted = ("DATABASE_", "DATAKEYS_", "KEK", "AUTHORITY_KEY_FILE", "REPOSITORY_")
    return {
        name: value for name, value in environment.items() if name.startswith(tuple(prefix + part for part in wanted))
    }
