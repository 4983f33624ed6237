"""What the log says before something is destroyed for good, every entry verified against the head.

A row of authority that was genuine once can be put back by whoever writes to the
database, its MAC included: an upload as it was before it was promoted, a schedule as
it was before it was loosened, a label; and any row can be taken away. Where the
service itself would then delete a data key, which that writer cannot, it asks the log
first: of attempts here, of schedules and labels in `decisions`.

If this fails: the owner of the rows has this service destroy keys of the other database.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from services.datasets.database import transaction

if TYPE_CHECKING:
    from casemate.storage.pool import Pool
    from services.datasets.log_store import LogStore
    from services.datasets.upload import Upload

_KINDS = (b'"kind":"manifest"', b'"kind":"promotion"')


@dataclass(frozen=True, slots=True)
class Logged:
    """Attempts and promotions as the log has them.

    Attributes:
        manifests: tenant, dataset, version and manifest (digest, hexadecimal) of every attempt.
        promotions: tenant, dataset, version and manifest (digest, hexadecimal) of every version.
    """

    manifests: frozenset[tuple[str, str, int, str]]
    promotions: frozenset[tuple[str, str, int, str]]

    def has_unfinished(self, upload: Upload) -> bool:
        """Whether this very attempt began and never became a version, whatever its row says.

        Of a log that was emptied, nothing is known to have begun.
        """
        attempt = (upload.tenant, upload.dataset, upload.version, upload.manifest_sha256.hex())
        return attempt in self.manifests and attempt not in self.promotions


async def read_log(pool: Pool, log: LogStore) -> Logged:
    """Reads the whole log: about ten microseconds an entry, and only where an attempt is to be discarded.

    Raises:
        StoredDataUnreadable: the log's entries are not those of its head.
    """
    manifests: set[tuple[str, str, int, str]] = set()
    promotions: set[tuple[str, str, int, str]] = set()
    async with transaction(pool, isolation="repeatable_read") as connection:
        async for _, entry in log.scan(connection):
            if not any(kind in entry for kind in _KINDS):
                continue
            said = json.loads(entry)
            body = said["body"]
            if said["by"] == "datasets" and said["kind"] in {"manifest", "promotion"}:
                found = manifests if said["kind"] == "manifest" else promotions
                found.add((body["tenant"], body["dataset"], body["version"], body["manifest_sha256"]))
    return Logged(frozenset(manifests), frozenset(promotions))
