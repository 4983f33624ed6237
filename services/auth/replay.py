"""What a restored authority takes from the transparency log: endings, never beginnings.

A backup is older than the loss. Whatever ended in between would come back with it, so
each record is held against its last entry in the log: a grant that is gone there is
removed, a signer that was revoked is revoked, a client that was disabled is disabled,
a revocation is added. Nothing is ever given by an entry: what began after the backup is
counted as lost, and has to be made again by whoever may.

Whatever the restored rows say, refresh families end, every key that signs tokens is
replaced, and the feed begins a new epoch: no token that was issued before counts, and
each follower asks for everything.

If this fails: what was taken away after the backup counts again. It is in the audit
and in the log, so it can be found.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from casemate.gate.core.records import Revocation, RevocationKind
from services.auth.records import Client
from services.auth.store.changes import Change, EventKind
from services.auth.store.ended_families import note_end
from services.auth.store.revoking import add_revocation
from services.auth.store.table import AuthorityTable

if TYPE_CHECKING:
    from casemate.storage.pool import Connection
    from services.auth.records import TokenKey
    from services.auth.store.tables import AuthorityTables

_BY: Final = "auth"
_REACH: Final = timedelta(minutes=1)
_REMOVABLE: Final = {
    "grant": ("grants", EventKind.GRANT),
    "client-secret": ("client_secrets", None),
    "client-key": ("client_keys", None),
    "issuer": ("external_issuers", None),
    "exchange-grant": ("exchange_grants", None),
}
"""Kinds of entries whose records can be gone: their table, and what the feed tells of them."""


@dataclass(slots=True)
class LastEntries:
    """The last entry about each record, and what is known of revocations."""

    records: dict[tuple[str, tuple[str, ...]], Mapping[str, Any]] = field(default_factory=dict)
    revoked: dict[tuple[str, str], set[int]] = field(default_factory=dict)
    sequence: int = 0

    @classmethod
    def read(cls, entries: Iterable[bytes]) -> LastEntries:
        """Reads what auth said; other entries are not its business."""
        found = cls()
        for entry in entries:
            document = json.loads(entry)
            if document.get("by") == _BY and "sequence" in document.get("body", {}):
                found.take(document["kind"], document["body"])
        return found

    def take(self, kind: str, body: Mapping[str, Any]) -> None:
        """Takes the next entry."""
        self.sequence = max(self.sequence, body["sequence"])
        if kind == "revocation" and "value_sha256" in body:
            self.revoked.setdefault((body["of"], body["value_sha256"]), set()).add(body["sequence"])
        self.records[kind, tuple(body["record"])] = body

    def of(self, kind: str) -> Iterable[tuple[tuple[str, ...], Mapping[str, Any]]]:
        """Keys and last bodies of one kind of record."""
        return [(key, body) for (known, key), body in self.records.items() if known == kind]

    def was_disabled(self, client: Client) -> bool:
        """Whether the client was disabled: said of it, or revoked as client and as subject in one change.

        What was said of it later than that, that it is enabled, counts: it was enabled again.
        """
        said = self.records.get(("client", (client.client_id,)), {})
        if said.get("enabled") is False:
            return True
        enabled_at = said["sequence"] if said.get("enabled") is True else 0
        digest = sha256(client.client_id)
        as_client = self.revoked.get((RevocationKind.CLIENT.value, digest), set())
        as_subject = self.revoked.get((RevocationKind.SUBJECT.value, digest), set())
        return any(sequence > enabled_at and sequence + 1 in as_subject for sequence in as_client)


class Replay:
    """One transaction of a restored authority.

    Args:
        tables: the authority's rows.
        now: when.
    """

    def __init__(self, *, tables: AuthorityTables, now: datetime) -> None:
        self._tables = tables
        self._now = now
        self.counts: Counter[str] = Counter()
        self.unmatched_until: datetime | None = None

    async def take_away(self, change: Change, last: LastEntries) -> None:
        """Ends what the log says has ended."""
        await self._remove(change, last)
        await self._revoke_signers(change, last)
        await self._disable_clients(change, last)
        await self._revoke(change, last)
        await self._count_lost(change.connection, last)

    async def begin_anew(self, change: Change, key: TokenKey, last: LastEntries) -> None:
        """Ends refresh families, replaces every key that signs tokens, and begins a new epoch of the feed.

        The numbers of changes go on behind the highest that the log was ever told.
        """
        for family in await self._tables.families.all(change.connection):
            if family.ended_at is None:
                await self._tables.families.replace(change.connection, replace(family, ended_at=self._now))
                await note_end(self._tables, change.connection, family)
                self.counts["families_ended"] += 1
        for kid in [row["kid"] for row in await change.connection.fetch("SELECT kid FROM token_key")]:
            # Its private half goes with the row; whatever it signed verifies no more.
            await self._tables.token_keys.delete(change.connection, kid)
            self.counts["token_keys_replaced"] += 1
        await change.connection.execute(
            "UPDATE trust_head SET epoch = gen_random_uuid(), sequence = greatest(sequence, $1) WHERE singleton",
            last.sequence,
        )
        await self._tables.token_keys.insert(change.connection, key)
        await change.tell(EventKind.TOKEN_KEY, key.kid)

    async def _remove(self, change: Change, last: LastEntries) -> None:
        for kind, (name, event) in _REMOVABLE.items():
            table: AuthorityTable[Any] = getattr(self._tables, name)
            for key, body in last.of(kind):
                if body.get("absent") and await table.delete(change.connection, *key):
                    self.counts[f"{kind}s_removed"] += 1
                    if event is not None:
                        await change.tell(event, *key)

    async def _revoke_signers(self, change: Change, last: LastEntries) -> None:
        for (key_id,), body in last.of("signer"):
            since = _moment(body.get("compromised_since"))
            signer = await self._tables.signers.get(change.connection, key_id)
            if since is None or signer is None:
                continue
            if signer.compromised_since is None or since < signer.compromised_since:
                await self._tables.signers.replace(change.connection, replace(signer, compromised_since=since))
                await change.tell(EventKind.SIGNER, key_id)
                self.counts["signers_revoked"] += 1

    async def _disable_clients(self, change: Change, last: LastEntries) -> None:
        for client in await self._tables.clients.all(change.connection):
            if client.enabled and last.was_disabled(client):
                await self._tables.clients.replace(change.connection, replace(client, enabled=False))
                self.counts["clients_disabled"] += 1

    async def _revoke(self, change: Change, last: LastEntries) -> None:
        """Adds the revocations whose value is said, or is found among the names that are here."""
        known = {sha256(name): name for name in await self._names(change.connection, last)}
        present = {revocation.id for revocation in await self._tables.revocations.all(change.connection)}
        for (revocation_id,), body in last.of("revocation"):
            expires_at = _moment(body.get("expires_at"))
            if body.get("absent") or revocation_id in present or (expires_at and expires_at <= self._now):
                continue
            kind = RevocationKind(body["of"])
            value = body.get("value") or known.get(body["value_sha256"])
            if value is None:
                self._unmatched(kind, expires_at)
                continue
            before = self._now + _REACH if kind in (RevocationKind.CLIENT, RevocationKind.SUBJECT) else None
            await add_revocation(
                self._tables,
                change,
                Revocation(id=revocation_id, kind=kind, value=value, not_before=before, expires_at=expires_at),
            )
            self.counts["revocations_added"] += 1

    def _unmatched(self, kind: RevocationKind, expires_at: datetime | None) -> None:
        """Tokens, sessions and keys are dead already; of a subject, another house's word may still come."""
        if kind is RevocationKind.SPIFFE_ID:
            self.counts["workloads_known_by_digest_alone"] += 1  # no client here has that name, nor ever had
        if kind is RevocationKind.SUBJECT and expires_at is not None:
            self.counts["revocations_by_digest_alone"] += 1
            self.unmatched_until = max(self.unmatched_until or expires_at, expires_at)

    async def _names(self, connection: Connection, last: LastEntries) -> set[str]:
        """Whatever a digest may be of: names that are here, and those that the log says."""
        clients = await self._tables.clients.all(connection)
        families = await self._tables.families.all(connection)
        names = {client.client_id for client in clients} | {client.spiffe_id for client in clients}
        names |= {body["spiffe_id"] for _, body in last.of("client") if "spiffe_id" in body}
        return names | {family.subject for family in families}

    async def _count_lost(self, connection: Connection, last: LastEntries) -> None:
        """What began after the backup: the log names it, and gives nothing."""
        for kind, name in (("grant", "grants"), ("signer", "signers")):
            table: AuthorityTable[Any] = getattr(self._tables, name)
            for key, body in last.of(kind):
                ended = body.get("absent") or _past(body.get("expires_at") or body.get("valid_until"), self._now)
                if not ended and await table.get(connection, *key) is None:
                    self.counts[f"{kind}s_lost"] += 1
        for (tenant, model), body in last.of("release-state"):
            head = await self._tables.releases.get(connection, tenant, model)
            self.counts["releases_lost"] += max(0, body.get("latest", 0) - (0 if head is None else head.latest))


def sha256(text: str) -> str:
    """The digest by which the log names what it does not say."""
    return hashlib.sha256(text.encode()).hexdigest()


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _past(text: str | None, now: datetime) -> bool:
    moment = _moment(text)
    return moment is not None and moment <= now
