"""Whose signature counts, for what, and when.

If this fails: a manifest by a key that was revoked, or that belongs to another
tenant, is accepted; the log still shows which key signed what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from casemate.errors import FieldViolation, InvalidRequest, PermissionDenied, Reason

if TYPE_CHECKING:
    from datetime import datetime

    from casemate.signing.keys import PublicKey

Role: TypeAlias = Literal["supplier", "publisher", "operator"]
"""A supplier signs datasets, a publisher signs models, an operator signs labels of versions."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A public key that may sign for one tenant in one role.

    Attributes:
        valid_from: the first moment at which its signatures count.
        valid_until: the last one.
        compromised_since: set when revoked; from this moment on nothing it signed is trusted.

    Raises:
        InvalidRequest: the id is not that of the key, or a time has no zone.
    """

    key_id: str
    tenant: str
    role: Role
    public_key: PublicKey
    valid_from: datetime
    valid_until: datetime
    compromised_since: datetime | None = None

    def __post_init__(self) -> None:
        if self.key_id != self.public_key.key_id:
            raise _invalid("key_id", "is not the id of the public key")
        if self.role not in ROLES:
            raise _invalid("role", "is not a role")
        for name in ("valid_from", "valid_until", "compromised_since"):
            moment: datetime | None = getattr(self, name)
            if moment is not None and moment.utcoffset() is None:
                raise _invalid(name, "has no time zone")

    def judge(self, at: datetime) -> None:
        """Return if a signature that was first seen at `at` counts.

        `at` is when the signature reached us (or was logged), never a time that
        its maker claims.

        Raises:
            PermissionDenied: `SIGNER_UNTRUSTED`, outside of its window or since its compromise.
        """
        if not self.valid_from <= at <= self.valid_until:
            raise untrusted(f"signer {self.key_id} is outside of its window")
        if self.compromised_since is not None and at >= self.compromised_since:
            raise untrusted(f"signer {self.key_id} is revoked")


def untrusted(detail: str) -> PermissionDenied:
    """The refusal of a signer; which of the reasons it was stays in the log."""
    return PermissionDenied(detail, reason=Reason.SIGNER_UNTRUSTED)


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"signer: {field} {description}", violations=(FieldViolation(field, description),))
