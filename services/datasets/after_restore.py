"""Makes restored datasets fit to be served from; run once, before any replica starts.

The newest log there is takes the place of the restored one, which it has to extend:
so the log goes on as the one that everybody knows. Then every version that it says was
shredded is shredded, under the entry of that time, and its key deleted. How long versions
are kept, it says too.

If this fails: a version that was shredded after the backup opens again, for as long as
its data key lies in the restored data-keys database.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from casemate.backup.log_file import LogFile
from casemate.clock import Clock, SystemClock
from casemate.errors import NotFound
from casemate.transport.metrics import Metrics
from services.datasets.app import open_shredder, open_stores
from services.datasets.settings import DatasetsSettings
from services.datasets.shred_store import LoggedShred

if TYPE_CHECKING:
    from services.datasets.app import Stores

_BY: Final = "datasets"


async def after_restore(
    settings: DatasetsSettings, log: LogFile | None, *, backup: str, clock: Clock | None = None
) -> dict[str, object]:
    """Extends the log, shreds again what it says was shredded, notes the restore in it; tells what it did.

    Repeatable until it has ended well.

    Args:
        settings: the service's own.
        log: the newest log; without one the restored log goes on from where it was, and that is noted.
        backup: which backup was restored, for the log.
        clock: time.

    Raises:
        ConfigurationError: a login, a file or a newer schema.
        StoredDataUnreadable: the log does not extend the restored one, or the KEK is not the one of these rows.
    """
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        stores, signing_key = await open_stores(settings, stack, Metrics("datasets"), clock)
        restored = (await stores.log.head()).size
        counts: Counter[str] = Counter()
        if log is not None:
            counts["log_entries_added"] = await stores.log.extend(log.entries(), size=log.size, root=log.root)
            counts += await _shred_again(stores, log.entries())
            counts["schedules_renewed"] += await stores.schedules.write_again()
        shredder = open_shredder(settings, stores, signing_key, clock)
        await shredder.look()
        counts["data_keys_deleted_again"] += await shredder.sweep()
        body = {"backup": backup, "log_size": restored, "newer_log_size": 0 if log is None else log.size}
        await stores.log.append_alone("restore", body, by=_BY)
    return dict(counts)


async def _shred_again(stores: Stores, entries: Iterable[bytes]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for index, entry in enumerate(entries):
        document = json.loads(entry)
        if document.get("by") != _BY or document.get("kind") not in ("shred", "promotion"):
            continue
        body: Mapping[str, Any] = document["body"]
        upload = await stores.versions.version(body["tenant"], body["dataset"], body["version"])
        here = upload is not None and upload.manifest_sha256.hex() == body["manifest_sha256"]
        if document["kind"] == "promotion":
            counts["versions_lost"] += not here
        elif here:
            counts["versions_shredded"] += await _shred(stores, index, document)
        else:
            counts["versions_lost"] -= 1  # it would have been shredded
    return counts


async def _shred(stores: Stores, index: int, document: Mapping[str, Any]) -> bool:
    body = document["body"]
    logged = LoggedShred(index=index, at=datetime.fromisoformat(document["at"]))
    try:
        _, shredding = await stores.shreds.shred(
            tenant=body["tenant"], dataset=body["dataset"], version=body["version"], logged=logged
        )
    except NotFound:
        return False
    return shredding.key_deleted_at is None
