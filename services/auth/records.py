"""What the auth service keeps besides the records that the trust feed pushes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias

HOUSE_TENANT = "casemate"
"""The operators' own tenant; its administrators act on every tenant."""

TokenKeyState: TypeAlias = Literal["prepared", "published", "active", "retiring", "revoked"]
"""Made; told to everybody; signs; only verifies; not even that. A key that retired is gone."""

VERIFYING: Final[frozenset[TokenKeyState]] = frozenset({"published", "active", "retiring"})
"""States of keys that everybody is told of."""


Authentication: TypeAlias = Literal["certificate", "private_key_jwt", "client_secret"]
"""Nothing else; an assertion signed by a key of its own; a generated secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """An organisation."""

    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who may ask for tokens, and for which.

    Its certificate has to be the one of `spiffe_id` in any case; `authentication` says what
    else it has to show.
    """

    client_id: str
    tenant: str
    spiffe_id: str
    audiences: tuple[str, ...]
    scopes: tuple[str, ...]
    enabled: bool
    created_at: datetime
    authentication: Authentication = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorChange:
    """That an operator was made with the database's role and the KEK, by no rpc.

    Attributes:
        client_id: of the operator that was made.
        replaces: of the one that it was made in place of; empty for the first.
        reason: why, in the words of whoever did it.
        at: when.
    """

    client_id: str
    replaces: str
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key that signs access tokens; its private half as the database holds it: sealed, or the name of who keeps it.

    `kid` is the RFC 7638 thumbprint of the public key, so nobody chooses it; `changed_at`
    is when it got its state, None if it never had another.
    """

    kid: str
    algorithm: str
    public_key: bytes
    sealed_private_key: bytes
    state: TokenKeyState
    created_at: datetime
    changed_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A line of refresh tokens, of which one at a time is current.

    Attributes:
        id: 128 random bits; also the session (`sid`) of its access tokens.
        tenant: of the client and the subject.
        client_id: who refreshes.
        spiffe_id: the only certificates that may.
        subject: whom its access tokens are about.
        actors: who speaks for the subject, the last one first.
        audience: the one service that its access tokens are for.
        scopes: the most that they carry.
        salt: goes into every token of the family.
        generation: of the current token, from 1.
        created_at: when it began.
        rotated_at: when the current token was first given out.
        idle_expires_at: when it ends unless it is refreshed.
        expires_at: when it ends in any case.
        ended_at: when it was ended, if it was.
    """

    id: str
    tenant: str
    client_id: str
    spiffe_id: str
    subject: str
    actors: tuple[str, ...]
    audience: str
    scopes: tuple[str, ...]
    salt: bytes
    generation: int
    created_at: datetime
    rotated_at: datetime
    idle_expires_at: datetime
    expires_at: datetime
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedFamily:
    """That a family ended; kept until `expires_at`, when its row would be dead in any case."""

    id: str
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """Where a label of a model points, as an operator signed it; number 0: nowhere any more."""

    tenant: str
    model: str
    label: str
    number: int
    revision: int
    signer_key_id: str
    envelope: bytes
    recorded_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseHead:
    """The number of a model's newest released version."""

    tenant: str
    model: str
    latest: int
