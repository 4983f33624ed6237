"""What the transparency log is told of a change of the authority: names and digests, never keys or tokens."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, TypeAlias

from casemate.gate.core.records import RevocationKind
from services.auth.store.changes import EventKind

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.gate.core.records import Grant, Release, Revocation
    from casemate.signing.signers import Signer
    from services.auth.credential_records import ClientKey, ClientSecret, ExchangeGrant, ExternalIssuer
    from services.auth.records import Client, OperatorChange, Tenant, TokenKey

Body: TypeAlias = "dict[str, object]"

KINDS = {
    EventKind.TOKEN_KEY: "token-key",
    EventKind.REVOCATION: "revocation",
    EventKind.GRANT: "grant",
    EventKind.SIGNER: "signer",
    EventKind.RELEASE: "release-state",
    EventKind.TENANT: "tenant",
    EventKind.CLIENT: "client",
    EventKind.CLIENT_SECRET: "client-secret",
    EventKind.CLIENT_KEY: "client-key",
    EventKind.ISSUER: "issuer",
    EventKind.EXCHANGE_GRANT: "exchange-grant",
    EventKind.OPERATOR: "operator",
}
"""Kind of the entry for a kind of change."""


def grant_body(grant: Grant) -> Body:
    """Who may do what to what, until when."""
    return {
        "caller": grant.caller,
        "effect": grant.effect.value,
        "expires_at": _text(grant.expires_at),
        "resource": grant.resource,
        "tenant": grant.tenant,
        "verb": grant.verb,
    }


def signer_body(signer: Signer) -> Body:
    """Whose signatures count, from when until when. The key id is the digest of the key."""
    return {
        "algorithm": signer.public_key.algorithm,
        "compromised_since": _text(signer.compromised_since),
        "role": signer.role,
        "tenant": signer.tenant,
        "valid_from": _text(signer.valid_from),
        "valid_until": _text(signer.valid_until),
    }


def token_key_body(key: TokenKey) -> Body:
    """A key that signs tokens; its public half as a digest."""
    return {
        "algorithm": key.algorithm,
        "public_key_sha256": hashlib.sha256(key.public_key).hexdigest(),
        "state": key.state,
    }


def revocation_body(revocation: Revocation) -> Body:
    """What is revoked, as a digest: a subject's name is nobody's business who reads the log.

    A certificate's name is a digest itself, and is said: whoever restores an older database
    has to be able to revoke it again, and finds it nowhere else.
    """
    body: Body = {
        "expires_at": _text(revocation.expires_at),
        "of": revocation.kind.value,
        "value_sha256": hashlib.sha256(revocation.value.encode()).hexdigest(),
    }
    if revocation.kind is RevocationKind.CERTIFICATE:
        body["value"] = revocation.value
    return body


def release_body(release: Release) -> Body:
    """Which version of a model is the latest, by digest, and what labels name."""
    latest = release.versions[-1] if release.versions else None
    return {
        "labels": dict(release.labels),
        "latest": 0 if latest is None else latest.number,
        "manifest_sha256": None if latest is None else latest.manifest_sha256.hex(),
    }


def tenant_body(tenant: Tenant) -> Body:
    """Since when it is there."""
    return {"created_at": _text(tenant.created_at)}


def client_body(client: Client) -> Body:
    """Who may ask for tokens, and for which."""
    return {
        "audiences": list(client.audiences),
        "authentication": client.authentication,
        "enabled": client.enabled,
        "scopes": list(client.scopes),
        "spiffe_id": client.spiffe_id,
        "tenant": client.tenant,
    }


def client_secret_body(secret: ClientSecret) -> Body:
    """Whose it is. Nothing of the secret: not even its digest."""
    return {"client_id": secret.client_id, "created_at": _text(secret.created_at)}


def client_key_body(key: ClientKey) -> Body:
    """Since when it counts. The key id, which names the record, is the digest of the key."""
    return {"created_at": _text(key.created_at)}


def issuer_body(issuer: ExternalIssuer) -> Body:
    """Whose tokens may be exchanged, by which keys."""
    keys = [hashlib.sha256(key.encode()).hexdigest() for key in issuer.keys]
    return {"audience": issuer.audience, "keys_sha256": keys, "tenant": issuer.tenant, "url": issuer.url}


def exchange_grant_body(grant: ExchangeGrant) -> Body:
    """Who may speak for whose subjects, where, with what."""
    return {
        "audience": grant.audience,
        "client_id": grant.client_id,
        "expires_at": _text(grant.expires_at),
        "refresh": grant.refresh,
        "scopes": list(grant.scopes),
        "source": grant.source,
        "tenant": grant.tenant,
    }


def operator_body(change: OperatorChange) -> Body:
    """That an operator was made with the database's role and the KEK, by no rpc; in whose place, and why."""
    return {"at": _text(change.at), "reason": change.reason, "replaces": change.replaces}


def entry_body(sequence: int, key: tuple[str, ...], body: Body | None) -> bytes:
    """The entry's canonical JSON.

    Args:
        sequence: number of the change: told twice, an entry shows itself as the same.
        key: which record changed.
        body: how it is now; nothing if it is gone or does not verify.
    """
    said = {"record": list(key), "sequence": sequence} | ({"absent": True} if body is None else body)
    return json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
