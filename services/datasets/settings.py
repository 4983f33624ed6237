"""What the datasets service is told at start: `CASEMATE_DATASETS_…` and the shared `CASEMATE_TRUST_…`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from casemate.errors import ConfigurationError
from casemate.sealing.provider import KekSettings
from casemate.settings import (
    DatabaseSettings,
    IdentitySettings,
    ListenSettings,
    TrustSettings,
    address,
    boolean,
    duration,
    integer,
    nested,
    path,
    setting,
)


@dataclass(frozen=True, slots=True)
class DatasetsSettings:
    """Settings of the datasets service.

    Attributes:
        listen: where it serves rpcs and metrics.
        identity: its certificate and the trust domain.
        trust: how old the trust feed's news may be.
        database: versions, sealed rows and the log.
        data_keys: the other database, which holds wrapped data keys alone.
        auth_address: where the trust feed is, `host:port` or any target of gRPC.
        kek: the key-encryption key.
        authority_key_file: the key of the MACs on rows of authority, sealed under the
            KEK; made at the first start.
        backup_retention: how long a backup of the data keys, and its WAL, is kept at most.
            Receipts of shredding rely on it.
        upload_lifetime: how long an upload may take, whatever its manifest allows.
        surplus_kept_for: how long a version is kept after newer ones took its place, before `keep_versions`
            of its dataset's retention has it shredded.
        uploads_per_supplier: how many uploads of one supplier's key may be unfinished.
        uploads_per_tenant: how many of one tenant.
        audit_file: where decisions are written, one JSON object a line.
        unsafe_accept_pkcs1: whether RSA keys of suppliers may sign by PKCS#1 v1.5 too.
    """

    listen: ListenSettings
    identity: IdentitySettings
    trust: TrustSettings
    kek: KekSettings
    database: DatabaseSettings
    data_keys: DatabaseSettings = nested("DATAKEYS_")
    auth_address: str = setting(
        "AUTH_ADDRESS", parse=address, default="127.0.0.1:7401", help="host:port of the auth service"
    )
    authority_key_file: Path | None = setting(
        "AUTHORITY_KEY_FILE",
        parse=path,
        default=None,
        help="file of the sealed MAC key; beside the key-encryption key if not set",
    )
    audit_file: Path = setting("AUDIT_FILE", parse=path, help="file that decisions are appended to")
    backup_retention: timedelta = setting(
        "DATAKEYS_BACKUP_RETENTION",
        parse=duration,
        default=timedelta(days=30),
        help="longest time that a backup of the data-keys database is kept",
    )
    upload_lifetime: timedelta = setting(
        "UPLOAD_LIFETIME",
        parse=duration,
        default=timedelta(days=7),
        help="after so long an upload that was not finished is discarded, and its data key destroyed",
    )
    surplus_kept_for: timedelta = setting(
        "SURPLUS_KEPT_FOR",
        parse=duration,
        default=timedelta(days=7),
        help="a version whose place newer ones took is kept so long after, whatever keep_versions says",
    )
    uploads_per_supplier: int = setting(
        "UNFINISHED_UPLOADS_PER_SUPPLIER",
        parse=integer(1, 100_000),
        default=64,
        help="how many uploads of one supplier's key may be unfinished at once",
    )
    uploads_per_tenant: int = setting(
        "UNFINISHED_UPLOADS_PER_TENANT",
        parse=integer(1, 100_000),
        default=256,
        help="how many uploads of one tenant may be unfinished at once",
    )
    unsafe_accept_pkcs1: bool = setting(
        "UNSAFE_ACCEPT_PKCS1",
        parse=boolean,
        default=False,
        help="take PKCS#1 v1.5 signatures of suppliers' RSA keys, beside RSA-PSS",
    )

    @property
    def authority_key(self) -> Path:
        """Where the sealed MAC key is.

        Raises:
            ConfigurationError: it is not said, and there is no file that it could lie beside.
        """
        file = self.authority_key_file or self.kek.beside(".authority.json")
        if file is None:
            name = "CASEMATE_DATASETS_AUTHORITY_KEY_FILE"
            raise ConfigurationError(f"{name} is needed: the key-encryption key is in no file")
        return file
