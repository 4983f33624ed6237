"""What one key signed from a date on, and the models that were trained on it.

Read from the log's promotions, every entry verified against the head, so that a
row somebody deleted is reported too.

If this fails: after a key was stolen, a version that it signed, or a model that was
trained on one, goes on being trusted.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from casemate.errors import FieldViolation, InvalidRequest, NotFound, PermissionDenied
from services.datasets.database import transaction
from services.datasets.upload import UploadState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from casemate.signing.signers import Signer
    from casemate.signing.statements import SignerResolver
    from casemate.storage.pool import Pool
    from services.datasets.lineage import Lineage, Trained
    from services.datasets.log_store import LogStore
    from services.datasets.store import VersionStore

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """One version that the key signed, and the models that name its root."""

    tenant: str
    dataset: str
    version: int
    root: bytes
    promoted_at: datetime
    quarantined: bool
    shredded: bool
    models: tuple[Trained, ...]


class SignerReport:
    """Makes reports.

    Args:
        pool: the database.
        log: its promotions.
        versions: their present state.
        lineage: the models.
        resolve: registered signers.
    """

    def __init__(
        self, *, pool: Pool, log: LogStore, versions: VersionStore, lineage: Lineage, resolve: SignerResolver
    ) -> None:
        self._pool = pool
        self._log = log
        self._versions = versions
        self._lineage = lineage
        self._resolve = resolve

    async def report(self, key_id: str, since: datetime | None, *, tenant: str | None) -> AsyncIterator[Affected]:
        """The versions in the order of their promotion. Reads the whole log: about 10 µs an entry.

        Args:
            key_id: of the supplier's key.
            since: from when on; none: the declared date of its compromise.
            tenant: whose suppliers are looked for; none: everybody's.

        Raises:
            NotFound: no supplier has that key.
            InvalidRequest: no date is given, and none is declared.
            StoredDataUnreadable: the log's entries are not those of its head.
        """
        signer = self._resolve(key_id)
        if signer is None or signer.role != "supplier" or tenant not in {None, signer.tenant}:
            raise NotFound("no supplier has this key")
        since = since or signer.compromised_since
        if since is None:
            text = "required: no compromise of this key is declared"
            raise InvalidRequest(text, violations=(FieldViolation("since", text),))
        for promotion in await self._promotions(key_id):
            affected = await self._affected(signer, promotion)
            if affected.promoted_at >= since:
                yield affected

    async def _promotions(self, key_id: str) -> list[dict[str, Any]]:
        found = []
        async with transaction(self._pool, isolation="repeatable_read") as connection:
            async for _, entry in self._log.scan(connection):
                if key_id.encode() in entry:  # most entries are somebody else's, and need not be parsed
                    said = json.loads(entry)
                    if (said["kind"], said["by"], said["body"].get("signer")) == ("promotion", "datasets", key_id):
                        found.append(said)
        return found

    async def _affected(self, signer: Signer, said: dict[str, Any]) -> Affected:
        body = said["body"]
        tenant, dataset, version = body["tenant"], body["dataset"], body["version"]
        upload = await self._versions.version(tenant, dataset, version)
        if upload is None:
            _LOGGER.critical("version %d of %s/%s is in the log and not in the database", version, tenant, dataset)
        promoted_at = datetime.fromisoformat(said["at"])
        if upload is not None and upload.promoted_at is not None:
            promoted_at = upload.promoted_at
        try:
            signer.judge(promoted_at)
            quarantined = signer.tenant != tenant
        except PermissionDenied:
            quarantined = True
        root = bytes.fromhex(body["root"])
        return Affected(
            tenant=tenant,
            dataset=dataset,
            version=version,
            root=root,
            promoted_at=promoted_at,
            quarantined=quarantined,
            shredded=upload is not None and upload.state is UploadState.SHREDDED,
            models=tuple(await self._lineage.trained_on(tenant, root)),
        )
