"""Labels of versions: `golden`, `latest`, whatever a team calls them. Each move is in the log.

`latest` names the newest promoted version until somebody sets it; taken away, it
does again. A label names versions alone that can be read when it is set; whether
one can still be read is judged when it is read.

If this fails: a trainer who asks by label gets another promoted version of the
same dataset; its manifest, which the trainer verifies, says which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import Conflict, FieldViolation, InvalidRequest, NotFound, StoredDataUnreadable
from casemate.signing.release_label import LABEL
from services.datasets.database import connected, transaction
from services.datasets.signed_table import SignedTable
from services.datasets.upload_rows import SELECT, UploadRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate.sealing.authority_rows import AuthorityKey
    from casemate.storage.pool import Connection, Pool
    from services.datasets.alarms import Alarms
    from services.datasets.decisions import Decisions
    from services.datasets.log_store import LogStore

LATEST: Final = "latest"
MAXIMUM_LABELS: Final = 64
"""Of one dataset."""

# Not to be shredded before the label stands: by then retention sees that it does.
_NAMED: Final = SELECT + " WHERE tenant = $1 AND dataset = $2 AND version = $3 AND state = 'promoted' FOR SHARE"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2 || '/labels', 0))"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a label names, and the log's entry about its last move."""

    tenant: str
    dataset: str
    label: str
    version: int
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A label is to name `version` (zero: nothing) if it names `expected` (zero: nothing) now.

    Raises:
        InvalidRequest: the label is no name of one.
    """

    tenant: str
    dataset: str
    label: str
    version: int
    expected: int

    def __post_init__(self) -> None:
        require_label(self.label)


def require_label(label: str) -> None:
    """Raises InvalidRequest unless it is a lower-case name of at most 32 characters that begins with a letter."""
    if not LABEL.fullmatch(label):
        text = "not a lower-case name that begins with a letter"
        raise InvalidRequest(f"label: {text}", violations=(FieldViolation("label", text),))


class LabelStore:
    """Labels in PostgreSQL; a move and its log entry are one transaction."""

    def __init__(
        self, *, pool: Pool, authority: AuthorityKey, log: LogStore, alarms: Alarms, decisions: Decisions
    ) -> None:
        self._pool = pool
        self._log = log
        self._alarms = alarms
        self._decisions = decisions
        self._uploads = UploadRows(authority=authority, alarms=alarms)
        self._rows = SignedTable(
            "labels", key=("tenant", "dataset", "label"), row=Label, authority=authority, alarms=alarms
        )

    async def named(self, tenant: str, dataset: str, label: str) -> int:
        """The version that a label names; zero for `latest` while nobody set it.

        Raises:
            NotFound: there is no such label.
            StoredDataUnreadable: its row does not verify.
        """
        require_label(label)
        async with connected(self._pool) as connection:
            found = await self._rows.get(connection, tenant, dataset, label)
        if found is None and label != LATEST:
            raise NotFound(f"no label {label} of {tenant}/{dataset}")
        return 0 if found is None else found.version

    async def all(self, tenant: str, dataset: str) -> dict[str, int]:
        """The labels of a dataset that were set, and what they name."""
        async with connected(self._pool) as connection:
            return await self._all(connection, tenant, dataset)

    async def proven(self, tenant: str, dataset: str) -> dict[str, int]:
        """As `all`, if they are those that the log has: none was taken away or put back.

        Raises:
            StoredDataUnreadable: they are not; that alarms.
        """
        async with self._decisions.snapshot() as (connection, decided):
            found = await self._all(connection, tenant, dataset)
        with self._alarms.on_authority():
            if found != decided.of(tenant, dataset)[1]:
                raise StoredDataUnreadable(f"the labels of {tenant}/{dataset} are not the log's")
        return found

    async def _all(self, connection: Connection, tenant: str, dataset: str) -> dict[str, int]:
        rows = await self._rows.select(connection, "WHERE tenant = $1 AND dataset = $2 ORDER BY label", tenant, dataset)
        return {row.label: row.version for row in rows}

    async def move(self, move: Move, *, by: Mapping[str, object]) -> tuple[dict[str, int], int]:
        """Moves a label, unless it names the version already; gives all labels and the log's entry of this one.

        Where the log's last word is another one, as after a restore, the label is logged though it stays.

        Args:
            move: from what to what.
            by: who does it, for the log.

        Raises:
            NotFound: the version was shredded meanwhile.
            Conflict: it names another version than expected.
            InvalidRequest: the dataset has too many labels.
        """
        async with transaction(self._pool) as connection:
            await connection.execute(_LOCK, move.tenant, move.dataset)
            rows = await self._rows.select(connection, "WHERE tenant = $1 AND dataset = $2", move.tenant, move.dataset)
            labels = {row.label: row for row in rows}
            before = labels.get(move.label)
            named = 0 if before is None else before.version
            if named == move.version:
                _, logged = (await self._decisions.under_lock(connection)).of(move.tenant, move.dataset)
                if logged.get(move.label, 0) == named:
                    return {row.label: row.version for row in rows}, 0 if before is None else before.log_index
            elif named != move.expected:
                raise Conflict(f"{move.label} of {move.dataset} names {named}, not {move.expected}")
            if before is None and len(labels) >= MAXIMUM_LABELS:
                raise InvalidRequest("too many labels", violations=(FieldViolation("label", "the dataset has 64"),))
            if move.version and not await self._uploads.one(
                connection, _NAMED, move.tenant, move.dataset, move.version
            ):
                raise NotFound(f"no version {move.version} of {move.tenant}/{move.dataset}")
            body = {
                "dataset": move.dataset,
                "label": move.label,
                "previous": named,
                "tenant": move.tenant,
                "version": move.version,
            }
            index = await self._log.append(connection, "label", body | dict(by), by="datasets")
            names = {row.label: row.version for row in rows if row.label != move.label}
            if move.version:
                row = Label(
                    tenant=move.tenant, dataset=move.dataset, label=move.label, version=move.version, log_index=index
                )
                await self._rows.put(connection, row)
                names[move.label] = move.version
            else:
                await self._rows.delete(connection, move.tenant, move.dataset, move.label)
        return names, index
