"""All authority tables over one key, and the records that take more than one row."""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.errors import PermissionDenied, StoredDataUnreadable
from casemate.gate.core.records import Release
from casemate.sealing.authority_rows import AuthorityKey
from services.auth.records import LabelRow, ReleaseHead
from services.auth.store import credential_layouts, layouts
from services.auth.store.layouts import VersionRow
from services.auth.store.table import Alarms, AuthorityTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from casemate.signing.signers import Signer
    from casemate.storage.pool import Connection


class AuthorityTables:
    """Every table of authority rows, read and written under one key."""

    def __init__(self, *, key: AuthorityKey, alarms: Alarms) -> None:
        self._alarms = alarms
        self.tenants = AuthorityTable(layouts.TENANTS, key=key, alarms=alarms)
        self.clients = AuthorityTable(layouts.CLIENTS, key=key, alarms=alarms)
        self.grants = AuthorityTable(layouts.GRANTS, key=key, alarms=alarms)
        self.signers = AuthorityTable(layouts.SIGNERS, key=key, alarms=alarms)
        self.releases = AuthorityTable(layouts.RELEASES, key=key, alarms=alarms)
        self.versions = AuthorityTable(layouts.VERSIONS, key=key, alarms=alarms)
        self.labels = AuthorityTable(layouts.LABELS, key=key, alarms=alarms)
        self.token_keys = AuthorityTable(layouts.TOKEN_KEYS, key=key, alarms=alarms)
        self.client_secrets = AuthorityTable(credential_layouts.CLIENT_SECRETS, key=key, alarms=alarms)
        self.operator_changes = AuthorityTable(layouts.OPERATOR_CHANGES, key=key, alarms=alarms)
        self.client_keys = AuthorityTable(credential_layouts.CLIENT_KEYS, key=key, alarms=alarms)
        self.external_issuers = AuthorityTable(credential_layouts.EXTERNAL_ISSUERS, key=key, alarms=alarms)
        self.exchange_grants = AuthorityTable(credential_layouts.EXCHANGE_GRANTS, key=key, alarms=alarms)
        self.families = AuthorityTable(layouts.FAMILIES, key=key, alarms=alarms)
        self.ended_families = AuthorityTable(layouts.ENDED_FAMILIES, key=key, alarms=alarms)
        self.revocations = AuthorityTable(layouts.REVOCATIONS, key=key, alarms=alarms)

    def sound(self, finding: str, *, table: str, key: str) -> None:
        """Tells of a row that is not as the application wrote it."""
        self._alarms.sound(finding, table=table, key=key)

    async def release(self, connection: Connection, tenant: str, model: str) -> Release | None:
        """A model's release, of verified rows alone; None if there is none that verifies."""
        try:
            head = await self.releases.get(connection, tenant, model)
        except StoredDataUnreadable:
            return None
        if head is None:
            return None
        versions = await self.versions.matching(connection, tenant=tenant, model=model)
        labels = await self.labels.matching(connection, tenant=tenant, model=model)
        signers = {}
        for key_id in {row.signer_key_id for row in labels}:
            with contextlib.suppress(StoredDataUnreadable):
                signers[key_id] = await self.signers.get(connection, key_id)
        return self._assemble(head, versions, trusted_labels(labels, signers))

    async def all_releases(self, connection: Connection) -> list[Release]:
        """Every release, of verified rows alone."""
        versions: dict[tuple[str, str], list[VersionRow]] = {}
        for row in await self.versions.all(connection):
            versions.setdefault((row.tenant, row.model), []).append(row)
        labels: dict[tuple[str, str], list[LabelRow]] = {}
        for label in await self.labels.all(connection):
            labels.setdefault((label.tenant, label.model), []).append(label)
        signers = {signer.key_id: signer for signer in await self.signers.all(connection)} if labels else {}
        heads = await self.releases.all(connection)
        return [
            self._assemble(
                head,
                versions.get((head.tenant, head.model), ()),
                trusted_labels(labels.get((head.tenant, head.model), ()), signers),
            )
            for head in heads
        ]

    def _assemble(self, head: ReleaseHead, rows: Sequence[VersionRow], labels: Mapping[str, int]) -> Release:
        # The head counts the versions, so one that was deleted beneath it shows.
        if [row.version.number for row in rows] != list(range(1, head.latest + 1)):
            self._alarms.sound("versions are missing", table="release", key=f"{head.tenant}/{head.model}")
        versions = tuple(row.version for row in rows)
        return Release(tenant=head.tenant, model=head.model, versions=versions, labels=labels)


def trusted_labels(rows: Iterable[LabelRow], signers: Mapping[str, Signer | None]) -> Mapping[str, int]:
    """The numbers that labels name, without those taken away and those whose operator's key does not count."""
    labels: dict[str, int] = {}
    for row in rows:
        signer = signers.get(row.signer_key_id)
        if not row.number or signer is None:
            continue
        with contextlib.suppress(PermissionDenied):
            signer.judge(row.recorded_at)
            labels[row.label] = row.number
    return MappingProxyType(labels)
