"""The records that make up trust, as the gate sees them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key

from casemate.errors import InvalidRequest, Reason
from casemate.gate.core.thumbprint import TokenPublicKey, key_thumbprint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from casemate.signing.signers import Signer

EDDSA: Final = "EdDSA"
ES256: Final = "ES256"
VERBS: Final = ("push", "read", "publish", "infer", "describe", "shred", "label")
"""What grants are about. A policy that asks for another verb could be met by nobody."""


class RevocationKind(StrEnum):
    """What a revocation matches by."""

    TOKEN = "token"  # noqa: S105  # a kind, not a password
    SESSION = "session"
    CLIENT = "client"
    SUBJECT = "subject"
    KEY = "key"
    CERTIFICATE = "certificate"
    SPIFFE_ID = "spiffe_id"


class Effect(StrEnum):
    """Whether a grant gives or takes."""

    ALLOW = "allow"
    DENY = "deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationKey:
    """A public key that verifies access tokens, and its one algorithm.

    Attributes:
        kid: RFC 7638 thumbprint of the key, so that nobody can choose one to mean anything.
        algorithm: `EdDSA` (Ed25519) or `ES256`; a token's own `alg` only has to agree.
        public_key_der: SubjectPublicKeyInfo.
        public_key: the key itself, loaded.
    """

    kid: str
    algorithm: str
    public_key_der: bytes
    public_key: TokenPublicKey = field(repr=False, compare=False)

    @classmethod
    def load(cls, public_key_der: bytes, *, kid: str | None = None, algorithm: str | None = None) -> VerificationKey:
        """Loads a key and derives `kid` and algorithm from it.

        Args:
            public_key_der: SubjectPublicKeyInfo, DER.
            kid: what the key is said to be called; must be its thumbprint.
            algorithm: what it is said to be for; must be the key's.

        Raises:
            InvalidRequest: WEAK_KEY for other kinds of keys; INVALID_FIELD when a name does not fit the key.
        """
        try:
            key = load_der_public_key(public_key_der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise InvalidRequest("not a public key", reason=Reason.WEAK_KEY) from error
        if isinstance(key, Ed25519PublicKey):
            derived = EDDSA
        elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
            derived = ES256
        else:
            raise InvalidRequest("token keys are Ed25519 or P-256", reason=Reason.WEAK_KEY)
        thumbprint = key_thumbprint(key)
        if kid not in (None, thumbprint) or algorithm not in (None, derived):
            raise InvalidRequest("kid or algorithm is not the key's own")
        return cls(kid=thumbprint, algorithm=derived, public_key_der=public_key_der, public_key=key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Makes what it matches refused until it expires itself.

    Attributes:
        id: unique identifier.
        kind: what it matches by.
        value: the `jti`, session, client, subject, `kid`, thumbprint (base64url SHA-256) or SPIFFE ID.
        not_before: for clients and subjects: tokens issued at or before this moment are refused.
        expires_at: when nothing that it matches can be alive any more; None: never.
    """

    id: str
    kind: RevocationKind
    value: str
    not_before: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Lets callers do one thing to resources of one tenant, or forbids it.

    Attributes:
        id: unique identifier.
        tenant: the tenant whose resources it is about.
        caller: path of SPIFFE IDs by whole segments, `t/acme/trainer` or `t/acme/*`.
        verb: one verb, or `*` for all.
        resource: by whole segments, `dataset/digits` or `model/*`.
        effect: gives or takes.
        expires_at: when it ends; None: it does not.
    """

    id: str
    tenant: str
    caller: str
    verb: str
    resource: str
    effect: Effect = Effect.ALLOW
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedVersion:
    """One version of a model that may be served, pinned by digest.

    Attributes:
        number: counted from 1.
        manifest_sha256: SHA-256 of the signed manifest's payload.
        signer_key_id: key id of the publisher that signed it.
        recorded_at: when auth recorded it.
    """

    number: int
    manifest_sha256: bytes
    signer_key_id: str
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The versions of one model that may be served, newest last, and the labels that name some."""

    tenant: str
    model: str
    versions: tuple[ReleasedVersion, ...] = ()
    labels: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class RemovedTokenKey:
    """A key that no longer verifies anything: every cached verification ends."""

    kid: str


@dataclass(frozen=True, slots=True)
class RemovedGrant:
    """A grant that is gone."""

    id: str


@dataclass(frozen=True, slots=True)
class RemovedSigner:
    """A signer of whom nothing is known any more: what it signed is not trusted."""

    key_id: str


TrustChange: TypeAlias = (
    "VerificationKey | RemovedTokenKey | Revocation | Grant | RemovedGrant | Signer | RemovedSigner | Release"
)
"""One record added, replaced or removed."""
