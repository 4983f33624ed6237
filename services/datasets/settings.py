"""What the datasets service is told at start: `CASEMATE_DATASETS_…` and the shared `CASEMATE_TRUST_…`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from casemate.settings import (
    DatabaseSettings,
    IdentitySettings,
    ListenSettings,
    TrustSettings,
    address,
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
        kek_file: the key-encryption key.
        authority_key_file: the key of the MACs on rows of authority, sealed under the
            KEK; made at the first start.
        audit_file: where decisions are written, one JSON object a line.
    """

    listen: ListenSettings
    identity: IdentitySettings
    trust: TrustSettings
    database: DatabaseSettings
    data_keys: DatabaseSettings = nested("DATAKEYS_")
    auth_address: str = setting(
        "AUTH_ADDRESS", parse=address, default="127.0.0.1:7401", help="host:port of the auth service"
    )
    kek_file: Path = setting("KEK_FILE", parse=path, help="file of the key-encryption key, mode 0600")
    authority_key_file: Path | None = setting(
        "AUTHORITY_KEY_FILE",
        parse=path,
        default=None,
        help="file of the sealed MAC key; beside the key-encryption key if not set",
    )
    audit_file: Path = setting("AUDIT_FILE", parse=path, help="file that decisions are appended to")

    @property
    def authority_key(self) -> Path:
        """Where the sealed MAC key is."""
        return self.authority_key_file or self.kek_file.with_suffix(".authority.json")
