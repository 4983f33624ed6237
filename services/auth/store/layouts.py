"""How each authority record lies in its table, column by column."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from casemate.gate.core.records import Effect, Grant, ReleasedVersion, Revocation, RevocationKind
from casemate.signing.keys import PublicKey
from casemate.signing.signers import Signer
from services.auth.records import Client, EndedFamily, Family, LabelRow, OperatorChange, ReleaseHead, Tenant, TokenKey
from services.auth.store.table import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """A released version together with the model that it belongs to."""

    tenant: str
    model: str
    version: ReleasedVersion


TENANTS: Final[Layout[Tenant]] = Layout(
    table="tenant",
    key=("name",),
    columns=("name", "created_at"),
    to_columns=lambda tenant: (tenant.name, tenant.created_at),
    from_columns=lambda row: Tenant(**row),
)

CLIENTS: Final[Layout[Client]] = Layout(
    table="client",
    key=("client_id",),
    columns=("client_id", "tenant", "spiffe_id", "audiences", "scopes", "enabled", "created_at", "authentication"),
    to_columns=lambda client: (
        client.client_id,
        client.tenant,
        client.spiffe_id,
        client.audiences,
        client.scopes,
        client.enabled,
        client.created_at,
        client.authentication,
    ),
    from_columns=lambda row: Client(**row),
    later=MappingProxyType({"authentication": "certificate"}),
)

OPERATOR_CHANGES: Final[Layout[OperatorChange]] = Layout(
    table="operator_change",
    key=("client_id",),
    columns=("client_id", "replaces", "reason", "at"),
    to_columns=lambda change: (change.client_id, change.replaces, change.reason, change.at),
    from_columns=lambda row: OperatorChange(**row),
)

GRANTS: Final[Layout[Grant]] = Layout(
    table="access_grant",
    key=("id",),
    columns=("id", "tenant", "caller", "verb", "resource", "effect", "expires_at"),
    to_columns=lambda grant: (
        grant.id,
        grant.tenant,
        grant.caller,
        grant.verb,
        grant.resource,
        grant.effect.value,
        grant.expires_at,
    ),
    from_columns=lambda row: Grant(**{**row, "effect": Effect(row["effect"])}),
)

SIGNERS: Final[Layout[Signer]] = Layout(
    table="signer",
    key=("key_id",),
    columns=(
        "key_id",
        "tenant",
        "role",
        "algorithm",
        "public_key",
        "valid_from",
        "valid_until",
        "compromised_since",
    ),
    to_columns=lambda signer: (
        signer.key_id,
        signer.tenant,
        signer.role,
        signer.public_key.algorithm,
        signer.public_key.der,
        signer.valid_from,
        signer.valid_until,
        signer.compromised_since,
    ),
    from_columns=lambda row: Signer(
        key_id=row["key_id"],
        tenant=row["tenant"],
        role=row["role"],
        public_key=PublicKey.admit(row["public_key"]),
        valid_from=row["valid_from"],
        valid_until=row["valid_until"],
        compromised_since=row["compromised_since"],
    ),
)

RELEASES: Final[Layout[ReleaseHead]] = Layout(
    table="release",
    key=("tenant", "model"),
    columns=("tenant", "model", "latest"),
    to_columns=lambda head: (head.tenant, head.model, head.latest),
    from_columns=lambda row: ReleaseHead(**row),
)

VERSIONS: Final[Layout[VersionRow]] = Layout(
    table="release_version",
    key=("tenant", "model", "number"),
    columns=("tenant", "model", "number", "manifest_sha256", "signer_key_id", "recorded_at"),
    to_columns=lambda row: (
        row.tenant,
        row.model,
        row.version.number,
        row.version.manifest_sha256,
        row.version.signer_key_id,
        row.version.recorded_at,
    ),
    from_columns=lambda row: VersionRow(
        tenant=row["tenant"],
        model=row["model"],
        version=ReleasedVersion(
            number=row["number"],
            manifest_sha256=row["manifest_sha256"],
            signer_key_id=row["signer_key_id"],
            recorded_at=row["recorded_at"],
        ),
    ),
)

LABELS: Final[Layout[LabelRow]] = Layout(
    table="release_label",
    key=("tenant", "model", "label"),
    columns=("tenant", "model", "label", "number", "revision", "signer_key_id", "envelope", "recorded_at"),
    to_columns=lambda row: (
        row.tenant,
        row.model,
        row.label,
        row.number,
        row.revision,
        row.signer_key_id,
        row.envelope,
        row.recorded_at,
    ),
    from_columns=lambda row: LabelRow(**row),
)

TOKEN_KEYS: Final[Layout[TokenKey]] = Layout(
    table="token_key",
    key=("kid",),
    columns=("kid", "algorithm", "public_key", "sealed_private_key", "state", "created_at", "changed_at"),
    to_columns=lambda key: (
        key.kid,
        key.algorithm,
        key.public_key,
        key.sealed_private_key,
        key.state,
        key.created_at,
        key.changed_at,
    ),
    from_columns=lambda row: TokenKey(**row),
    later=MappingProxyType({"changed_at": None}),
)

FAMILIES: Final[Layout[Family]] = Layout(
    table="refresh_family",
    key=("id",),
    columns=(
        "id",
        "tenant",
        "client_id",
        "spiffe_id",
        "subject",
        "actors",
        "audience",
        "scopes",
        "salt",
        "generation",
        "created_at",
        "rotated_at",
        "idle_expires_at",
        "expires_at",
        "ended_at",
    ),
    to_columns=lambda family: (
        family.id,
        family.tenant,
        family.client_id,
        family.spiffe_id,
        family.subject,
        family.actors,
        family.audience,
        family.scopes,
        family.salt,
        family.generation,
        family.created_at,
        family.rotated_at,
        family.idle_expires_at,
        family.expires_at,
        family.ended_at,
    ),
    from_columns=lambda row: Family(**row),
)

ENDED_FAMILIES: Final[Layout[EndedFamily]] = Layout(
    table="ended_family",
    key=("id",),
    columns=("id", "expires_at"),
    to_columns=lambda ended: (ended.id, ended.expires_at),
    from_columns=lambda row: EndedFamily(**row),
)

REVOCATIONS: Final[Layout[Revocation]] = Layout(
    table="revocation",
    key=("id",),
    columns=("id", "kind", "value", "not_before", "expires_at"),
    to_columns=lambda revocation: (
        revocation.id,
        revocation.kind.value,
        revocation.value,
        revocation.not_before,
        revocation.expires_at,
    ),
    from_columns=lambda row: Revocation(**{**row, "kind": RevocationKind(row["kind"])}),
)
