"""Who and what is refused although it would verify.

Matched by identifiers inside a token, never by its text: one token has several
valid spellings.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.errors import Reason, Unauthenticated
from casemate.gate.core.records import Revocation, RevocationKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casemate.gate.core.verifier import VerifiedToken

_FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RevocationIndex:
    """Live revocations, one lookup per thing that a token or certificate can be revoked by."""

    by_id: MappingProxyType[str, Revocation]
    _by_value: MappingProxyType[RevocationKind, dict[str, tuple[Revocation, ...]]]

    @classmethod
    def empty(cls) -> RevocationIndex:
        """No revocations."""
        return cls.of(())

    @classmethod
    def of(cls, revocations: Iterable[Revocation]) -> RevocationIndex:
        """An index of these; of two with one identifier the later counts."""
        by_id = {revocation.id: revocation for revocation in revocations}
        by_value: dict[RevocationKind, dict[str, tuple[Revocation, ...]]] = {kind: {} for kind in RevocationKind}
        for revocation in by_id.values():
            values = by_value[revocation.kind]
            values[revocation.value] = (*values.get(revocation.value, ()), revocation)
        return cls(MappingProxyType(by_id), MappingProxyType(by_value))

    def with_revocation(self, revocation: Revocation) -> RevocationIndex:
        """This index and one more. Costs a copy of the maps, not their making."""
        if revocation.id in self.by_id:
            return RevocationIndex.of([*self.by_id.values(), revocation])
        of_kind = self._by_value[revocation.kind]
        values = {**of_kind, revocation.value: (*of_kind.get(revocation.value, ()), revocation)}
        return RevocationIndex(
            MappingProxyType(self.by_id | {revocation.id: revocation}),
            MappingProxyType(self._by_value | {revocation.kind: values}),
        )

    def check_token(self, token: VerifiedToken, now: datetime) -> None:
        """Refuses a token that any live revocation matches.

        Raises:
            Unauthenticated: TOKEN_REVOKED.
        """
        if not self.by_id:
            return
        revoked = (
            self._matches(RevocationKind.TOKEN, token.token_id, now)
            or (token.session_id is not None and self._matches(RevocationKind.SESSION, token.session_id, now))
            or self._matches(RevocationKind.KEY, token.kid, now)
            or self._matches(RevocationKind.CERTIFICATE, token.certificate_thumbprint, now)
            or self._matches(RevocationKind.CLIENT, token.client_id, now, token.issued_at)
            or self._matches_subject(token.subject, now, token.issued_at)
            or (token.actors and self._matches_chain(token, now))
        )
        if revoked:
            raise Unauthenticated("the token is revoked", reason=Reason.TOKEN_REVOKED)

    def check_subject(self, subject: str, issued_at: datetime, now: datetime) -> None:
        """Refuses to speak for a subject by what another house said of it before it was revoked.

        Raises:
            Unauthenticated: TOKEN_REVOKED.
        """
        if self._matches_subject(subject, now, issued_at):
            raise Unauthenticated("the subject is revoked", reason=Reason.TOKEN_REVOKED)

    def check_client(self, client_id: str, issued_at: datetime, now: datetime) -> None:
        """Refuses what a client was given, or had others speak for it with, before it was revoked.

        Raises:
            Unauthenticated: TOKEN_REVOKED.
        """
        if self._matches(RevocationKind.CLIENT, client_id, now, issued_at):
            raise Unauthenticated("the client is revoked", reason=Reason.TOKEN_REVOKED)

    def check_peer(self, spiffe_id: str, thumbprint: str, now: datetime) -> None:
        """Refuses a certificate that any live revocation matches.

        Raises:
            Unauthenticated: PEER_REFUSED.
        """
        if not self.by_id:
            return
        if self._matches(RevocationKind.CERTIFICATE, thumbprint, now) or self._matches(
            RevocationKind.SPIFFE_ID, spiffe_id, now
        ):
            raise Unauthenticated("the certificate is revoked", reason=Reason.PEER_REFUSED)

    def _matches_chain(self, token: VerifiedToken, now: datetime) -> bool:
        """Who speaks for the subject, and the tokens that were exchanged on the way."""
        return any(self._matches(RevocationKind.CLIENT, actor, now, token.issued_at) for actor in token.actors) or any(
            self._matches(RevocationKind.TOKEN, parent, now) for parent in token.parents
        )

    def _matches_subject(self, subject: str, now: datetime, issued_at: datetime) -> bool:
        """A subject by its name, or by the issuer that said it: `<issuer>:` stands for all of its subjects."""
        if self._matches(RevocationKind.SUBJECT, subject, now, issued_at):
            return True
        issuer, said_by_another, _ = subject.partition(":")
        return bool(said_by_another) and self._matches(RevocationKind.SUBJECT, f"{issuer}:", now, issued_at)

    def _matches(self, kind: RevocationKind, value: str, now: datetime, issued_at: datetime | None = None) -> bool:
        for revocation in self._by_value[kind].get(value, ()):
            if now >= (revocation.expires_at or _FOREVER):
                continue
            if issued_at is None or revocation.not_before is None or issued_at <= revocation.not_before:
                return True
        return False
