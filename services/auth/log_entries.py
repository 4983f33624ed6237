"""What the transparency log is told of a change of the authority: names and digests, never keys or tokens."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, TypeAlias

from services.auth.store.changes import EventKind

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.gate.core.records import Grant, Release, Revocation
    from casemate.signing.signers import Signer
    from services.auth.records import TokenKey

Body: TypeAlias = "dict[str, object]"

KINDS = {
    EventKind.TOKEN_KEY: "token-key",
    EventKind.REVOCATION: "revocation",
    EventKind.GRANT: "grant",
    EventKind.SIGNER: "signer",
    EventKind.RELEASE: "release-state",
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
    """What is revoked, as a digest: a subject's name is nobody's business who reads the log."""
    return {
        "expires_at": _text(revocation.expires_at),
        "of": revocation.kind.value,
        "value_sha256": hashlib.sha256(revocation.value.encode()).hexdigest(),
    }


def release_body(release: Release) -> Body:
    """Which version of a model is the latest, by digest, and what labels name."""
    latest = release.versions[-1] if release.versions else None
    return {
        "labels": dict(release.labels),
        "latest": 0 if latest is None else latest.number,
        "manifest_sha256": None if latest is None else latest.manifest_sha256.hex(),
    }


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
