"""Which models were trained on which version: an index of the log's release entries.

A release entry names the roots of the model's signed manifest. What it says is
written to a table in the same transaction, so that a question is answered without
reading the log. Rows are numbered without gaps and their number is kept under a MAC;
each replica reads and verifies every row once, and then what is new: a query for one
root alone would miss the row whose root somebody changed. The head can be deleted:
the next start builds the table again from the log, every entry of which is verified.

If this fails: somebody asks what a compromised key reached, and a model is left
out. The log has it still.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest, StoredDataUnreadable
from services.datasets.database import transaction
from services.datasets.signed_table import SignedTable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms
    from services.datasets.log_store import LogStore

RELEASE: Final = "release"
"""Kind of the entries, which inference makes when a model is published."""

MAXIMUM_ROOTS: Final = 256
_HEAD: Final = "trained"
_ROOTS: Final = "dataset_roots"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One version of a model, and one root that it names, empty where it names none.

    `log_index` is that of the release entry.
    """

    number: int
    tenant: str
    root: bytes
    model: str
    model_number: int
    manifest_sha256: bytes
    signer_key_id: str
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    name: str
    size: int


class Lineage:
    """The index."""

    def __init__(self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms) -> None:
        self._pool = pool
        self._log = log
        self._alarms = alarms
        self._rows = SignedTable("trained_models", key=("number",), row=Trained, authority=authority, alarms=alarms)
        self._reading = asyncio.Lock()
        self._known = 0
        self._by_root: dict[tuple[str, bytes], list[Trained]] = {}
        self._heads = SignedTable("trained_models_head", key=("name",), row=_Head, authority=authority, alarms=alarms)

    async def prepare(self) -> None:
        """Builds the index from the log, where there is none.

        Raises:
            StoredDataUnreadable: the log's entries are not those of its head.
        """
        async with transaction(self._pool) as connection:
            await self._log.lock(connection)  # nothing is appended meanwhile; of two replicas one builds
            # Whether it verifies is asked when it is read: nothing else has to wait for it.
            if await connection.fetchval("SELECT EXISTS (SELECT FROM trained_models_head)"):
                return
            await connection.execute("DELETE FROM trained_models")
            size = 0
            async for index, entry in self._log.scan(connection):
                said = json.loads(entry)
                if said["kind"] == RELEASE and said["by"] == "inference" and _ROOTS in said["body"]:
                    size = await self._insert(connection, _named(said["body"], index=index), size)
            await self._heads.put(connection, _Head(name=_HEAD, size=size))
            _LOGGER.info("the lineage of models was read from the log: %d", size)

    async def append_release(self, body: Mapping[str, object]) -> int:
        """Appends a release entry, and the models that it names, in one transaction; gives the entry's index.

        A release that is in the log is not logged again, whichever replica sends it and however
        much later: its entry's index is given.

        Raises:
            InvalidRequest: the body does not say what a release entry must.
        """
        named = list(_named(body, index=0)) if _ROOTS in body else []
        async with transaction(self._pool) as connection:
            await self._log.lock(connection)  # of two that say the same at once, the second finds the first
            if named and (known := await self._logged(connection, named)) is not None:
                return known
            index = await self._log.append(connection, RELEASE, body, by="inference")
            if named:
                head = await self._head(connection, lock=True)
                size = await self._insert(connection, iter(_named(body, index=index)), head.size)
                await self._heads.put(connection, _Head(name=_HEAD, size=size))
            return index

    async def trained_on(self, tenant: str, root: bytes) -> list[Trained]:
        """The models of a tenant that name a root, in the order of the log.

        Raises:
            StoredDataUnreadable: a row does not verify, or one is missing, whichever it is.
        """
        async with self._reading:
            async with transaction(self._pool, isolation="repeatable_read") as connection:
                head = await self._head(connection)
                rows = await self._rows.select(connection, "WHERE number >= $1 ORDER BY number", self._known)
            with self._alarms.on_authority():
                if [row.number for row in rows] != list(range(self._known, head.size)):
                    raise StoredDataUnreadable(f"the {head.size} rows of the lineage are not all there, or are more")
            for row in rows:
                self._by_root.setdefault((row.tenant, row.root), []).append(row)
            self._known = head.size
            return list(self._by_root.get((tenant, root), ()))

    async def _logged(self, connection: Connection, named: list[Trained]) -> int | None:
        """Index of the entry that said just this, if there is one. Rows count that verify alone."""
        of = named[0]
        rows = await self._rows.select(
            connection,
            "WHERE tenant = $1 AND model = $2 AND model_number = $3 AND manifest_sha256 = $4 AND signer_key_id = $5 "
            "ORDER BY log_index",
            *(of.tenant, of.model, of.model_number, of.manifest_sha256, of.signer_key_id),
        )
        return rows[0].log_index if {row.root for row in named} <= {row.root for row in rows} else None

    async def _head(self, connection: Connection, *, lock: bool = False) -> _Head:
        head = await self._heads.get(connection, _HEAD, lock=lock)
        with self._alarms.on_authority():
            if head is None:
                raise StoredDataUnreadable("the lineage has no head; a restart builds it again from the log")
        return head

    async def _insert(self, connection: Connection, named: Iterator[Trained], size: int) -> int:
        for row in named:
            known = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM trained_models WHERE tenant = $1 AND root = $2 AND model = $3 "
                "AND model_number = $4 AND manifest_sha256 = $5)",
                *(row.tenant, row.root, row.model, row.model_number, row.manifest_sha256),
            )
            if not known:  # a root may stand twice in a manifest, and an older log may hold an entry twice
                await self._rows.put(connection, _numbered(row, size))
                size += 1
        return size


def _numbered(row: Trained, number: int) -> Trained:
    return Trained(
        number=number,
        tenant=row.tenant,
        root=row.root,
        model=row.model,
        model_number=row.model_number,
        manifest_sha256=row.manifest_sha256,
        signer_key_id=row.signer_key_id,
        log_index=row.log_index,
    )


def _named(body: Mapping[str, object], *, index: int) -> Iterator[Trained]:
    """One row for each root of a release entry, as they will be numbered; for a model that names none, one row."""
    roots = body[_ROOTS]
    number = body.get("number")
    texts = [body.get(name) for name in ("tenant", "model", "signer_key_id", "manifest_sha256")]
    if not isinstance(roots, list) or len(roots) > MAXIMUM_ROOTS or not all(map(_is_digest, roots)):
        raise _invalid(_ROOTS, "not a list of at most 256 digests")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise _invalid("number", "not a version")
    if not all(isinstance(text, str) and text and "\x00" not in text for text in texts) or not _is_digest(texts[3]):
        raise _invalid("body", "tenant, model, signer_key_id or manifest_sha256 is missing")
    tenant, model, signer, manifest = map(str, texts)
    for root in roots or ("",):
        yield Trained(
            number=0,
            tenant=tenant,
            root=bytes.fromhex(root),
            model=model,
            model_number=number,
            manifest_sha256=bytes.fromhex(manifest),
            signer_key_id=signer,
            log_index=index,
        )


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _invalid(field: str, text: str) -> InvalidRequest:
    return InvalidRequest(f"release entry: {field}: {text}", violations=(FieldViolation(field, text),))
