"""Trust records to messages of the feed and back.

Reading is strict: a record that this version cannot judge is an error, never
something that is left out. A watcher that skipped a revocation would go on
believing that it knows everything.
"""

from __future__ import annotations

from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

from casemate.auth.v1 import trust_pb2, trust_service_pb2
from casemate.errors import InvalidRequest
from casemate.gate.core.records import (
    Effect,
    Grant,
    Release,
    ReleasedVersion,
    RemovedGrant,
    RemovedSigner,
    RemovedTokenKey,
    Revocation,
    RevocationKind,
    TrustChange,
    VerificationKey,
)
from casemate.gate.core.trust import TrustSnapshot
from casemate.signing.keys import PublicKey
from casemate.signing.signers import Role, Signer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_Record = TypeVar("_Record")

_KINDS: Final[Mapping[RevocationKind, trust_pb2.RevocationKind]] = MappingProxyType(
    {
        RevocationKind.TOKEN: trust_pb2.REVOCATION_KIND_TOKEN,
        RevocationKind.SESSION: trust_pb2.REVOCATION_KIND_SESSION,
        RevocationKind.CLIENT: trust_pb2.REVOCATION_KIND_CLIENT,
        RevocationKind.SUBJECT: trust_pb2.REVOCATION_KIND_SUBJECT,
        RevocationKind.KEY: trust_pb2.REVOCATION_KIND_KEY,
        RevocationKind.CERTIFICATE: trust_pb2.REVOCATION_KIND_CERTIFICATE,
        RevocationKind.SPIFFE_ID: trust_pb2.REVOCATION_KIND_SPIFFE_ID,
    }
)
_KINDS_BACK: Final = MappingProxyType({number: kind for kind, number in _KINDS.items()})
_EFFECTS: Final[Mapping[Effect, trust_pb2.Effect]] = MappingProxyType(
    {Effect.ALLOW: trust_pb2.EFFECT_ALLOW, Effect.DENY: trust_pb2.EFFECT_DENY}
)
_EFFECTS_BACK: Final = MappingProxyType({number: effect for effect, number in _EFFECTS.items()})
_ROLES: Final[Mapping[Role, trust_pb2.SignerRole]] = MappingProxyType(
    {
        "supplier": trust_pb2.SIGNER_ROLE_SUPPLIER,
        "publisher": trust_pb2.SIGNER_ROLE_PUBLISHER,
        "operator": trust_pb2.SIGNER_ROLE_OPERATOR,
    }
)
_ROLES_BACK: Final = MappingProxyType({number: role for role, number in _ROLES.items()})


def token_key_to_message(key: VerificationKey) -> trust_pb2.TokenKey:
    """The message of a key."""
    return trust_pb2.TokenKey(kid=key.kid, algorithm=key.algorithm, public_key=key.public_key_der)


def token_key_from_message(message: trust_pb2.TokenKey) -> VerificationKey:
    """The key of a message.

    Raises:
        InvalidRequest: kid or algorithm is not the key's own.
    """
    return VerificationKey.load(message.public_key, kid=message.kid, algorithm=message.algorithm)


def revocation_kind_from_message(number: trust_pb2.RevocationKind | int) -> RevocationKind:
    """The kind of this number.

    Raises:
        InvalidRequest: there is none.
    """
    return _known(_KINDS_BACK, number, "kind of revocation")


def revocation_to_message(revocation: Revocation) -> trust_pb2.Revocation:
    """The message of a revocation."""
    return trust_pb2.Revocation(
        id=revocation.id,
        kind=_KINDS[revocation.kind],
        value=revocation.value,
        not_before=_timestamp(revocation.not_before),
        expires_at=_timestamp(revocation.expires_at),
    )


def revocation_from_message(message: trust_pb2.Revocation) -> Revocation:
    """The revocation of a message.

    Raises:
        InvalidRequest: its kind is unknown.
    """
    return Revocation(
        id=message.id,
        kind=revocation_kind_from_message(message.kind),
        value=message.value,
        not_before=_moment(message.not_before) if message.HasField("not_before") else None,
        expires_at=_moment(message.expires_at) if message.HasField("expires_at") else None,
    )


def grant_to_message(grant: Grant) -> trust_pb2.Grant:
    """The message of a grant."""
    return trust_pb2.Grant(
        id=grant.id,
        tenant=grant.tenant,
        caller=grant.caller,
        verb=grant.verb,
        resource=grant.resource,
        effect=_EFFECTS[grant.effect],
        expires_at=_timestamp(grant.expires_at),
    )


def grant_from_message(message: trust_pb2.Grant) -> Grant:
    """The grant of a message.

    Raises:
        InvalidRequest: its effect is unknown.
    """
    return Grant(
        id=message.id,
        tenant=message.tenant,
        caller=message.caller,
        verb=message.verb,
        resource=message.resource,
        effect=_known(_EFFECTS_BACK, message.effect, "effect of a grant"),
        expires_at=_moment(message.expires_at) if message.HasField("expires_at") else None,
    )


def role_from_message(number: trust_pb2.SignerRole | int) -> Role:
    """The role of this number.

    Raises:
        InvalidRequest: there is none.
    """
    return _known(_ROLES_BACK, number, "role of a signer")


def signer_to_message(signer: Signer) -> trust_pb2.Signer:
    """The message of a signer."""
    return trust_pb2.Signer(
        key_id=signer.key_id,
        tenant=signer.tenant,
        role=_ROLES[signer.role],
        algorithm=signer.public_key.algorithm,
        public_key=signer.public_key.der,
        valid_from=_timestamp(signer.valid_from),
        valid_until=_timestamp(signer.valid_until),
        compromised_since=_timestamp(signer.compromised_since),
    )


def signer_from_message(message: trust_pb2.Signer) -> Signer:
    """The signer of a message; its key is admitted again.

    Raises:
        InvalidRequest: its key is weak, or its id is not the key's.
    """
    return Signer(
        key_id=message.key_id,
        tenant=message.tenant,
        role=role_from_message(message.role),
        public_key=PublicKey.admit(message.public_key),
        valid_from=_moment(message.valid_from),
        valid_until=_moment(message.valid_until),
        compromised_since=_moment(message.compromised_since) if message.HasField("compromised_since") else None,
    )


def released_version_to_message(version: ReleasedVersion) -> trust_pb2.ReleasedVersion:
    """The message of a released version."""
    return trust_pb2.ReleasedVersion(
        number=version.number,
        manifest_sha256=version.manifest_sha256,
        signer_key_id=version.signer_key_id,
        recorded_at=_timestamp(version.recorded_at),
    )


def released_version_from_message(message: trust_pb2.ReleasedVersion) -> ReleasedVersion:
    """The released version of a message."""
    return ReleasedVersion(
        number=message.number,
        manifest_sha256=message.manifest_sha256,
        signer_key_id=message.signer_key_id,
        recorded_at=_moment(message.recorded_at),
    )


def release_to_message(release: Release) -> trust_pb2.Release:
    """The message of a release."""
    return trust_pb2.Release(
        tenant=release.tenant,
        model=release.model,
        versions=[released_version_to_message(version) for version in release.versions],
        labels=dict(release.labels),
    )


def release_from_message(message: trust_pb2.Release) -> Release:
    """The release of a message."""
    return Release(
        tenant=message.tenant,
        model=message.model,
        versions=tuple(released_version_from_message(version) for version in message.versions),
        labels=MappingProxyType(dict(message.labels)),
    )


def snapshot_to_message(snapshot: TrustSnapshot) -> trust_service_pb2.TrustSnapshot:
    """The message of a snapshot; epoch and sequence travel in its envelope."""
    return trust_service_pb2.TrustSnapshot(
        issuer=snapshot.issuer,
        token_keys=[token_key_to_message(key) for key in snapshot.keys.values()],
        revocations=[revocation_to_message(revocation) for revocation in snapshot.revocations.by_id.values()],
        grants=[grant_to_message(grant) for grant in snapshot.grants.by_id.values()],
        signers=[signer_to_message(signer) for signer in snapshot.signers.values()],
        releases=[release_to_message(release) for release in snapshot.releases.values()],
    )


def snapshot_from_message(message: trust_service_pb2.TrustSnapshot, *, epoch: str, sequence: int) -> TrustSnapshot:
    """The snapshot of a message and its envelope's numbers.

    Raises:
        InvalidRequest: a record in it cannot be judged.
    """
    return TrustSnapshot.build(
        epoch=epoch,
        sequence=sequence,
        issuer=message.issuer,
        keys=[token_key_from_message(key) for key in message.token_keys],
        revocations=[revocation_from_message(revocation) for revocation in message.revocations],
        grants=[grant_from_message(grant) for grant in message.grants],
        signers=[signer_from_message(signer) for signer in message.signers],
        releases=[release_from_message(release) for release in message.releases],
    )


def delta_to_message(changes: Iterable[TrustChange]) -> trust_service_pb2.TrustDelta:
    """The message of changes, in their order."""
    return trust_service_pb2.TrustDelta(changes=[_change_to_message(change) for change in changes])


def delta_from_message(message: trust_service_pb2.TrustDelta) -> list[TrustChange]:
    """The changes of a message, in their order.

    Raises:
        InvalidRequest: one of them cannot be judged.
    """
    return [_change_from_message(change) for change in message.changes]


def _change_to_message(change: TrustChange) -> trust_service_pb2.TrustChange:
    message = trust_service_pb2.TrustChange
    match change:
        case VerificationKey():
            made = message(token_key=token_key_to_message(change))
        case RemovedTokenKey():
            made = message(removed_token_key=change.kid)
        case Revocation():
            made = message(revocation=revocation_to_message(change))
        case Grant():
            made = message(grant=grant_to_message(change))
        case RemovedGrant():
            made = message(removed_grant=change.id)
        case Signer():
            made = message(signer=signer_to_message(change))
        case RemovedSigner():
            made = message(removed_signer=change.key_id)
        case Release():
            made = message(release=release_to_message(change))
    return made


def _change_from_message(message: trust_service_pb2.TrustChange) -> TrustChange:
    change: TrustChange
    match message.WhichOneof("record"):
        case "token_key":
            change = token_key_from_message(message.token_key)
        case "removed_token_key":
            change = RemovedTokenKey(message.removed_token_key)
        case "revocation":
            change = revocation_from_message(message.revocation)
        case "grant":
            change = grant_from_message(message.grant)
        case "removed_grant":
            change = RemovedGrant(message.removed_grant)
        case "signer":
            change = signer_from_message(message.signer)
        case "removed_signer":
            change = RemovedSigner(message.removed_signer)
        case "release":
            change = release_from_message(message.release)
        case _:
            raise InvalidRequest("a change of a kind that this version does not know")
    return change


def _known(table: Mapping[Any, _Record], number: int, what: str) -> _Record:
    found = table.get(number)
    if found is None:
        raise InvalidRequest(f"{what} {number} is not known")
    return found


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _moment(timestamp: Timestamp) -> datetime:
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest("a time that is none") from error
