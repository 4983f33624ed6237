"""What a policy of one method says, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class PeerAccess:
    """A certificate alone: of one of `services`, or of any peer of the trust domain when it is empty."""

    services: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """A token with `scope` and, where `verb` is set, a grant of it on the named resource.

    A scope of None asks for any valid token: only methods that are not served have it.
    """

    scope: str | None
    verb: str | None = None


@dataclass(frozen=True, slots=True)
class ResourceSelector:
    """Where a request names its resource, and of which type that is."""

    type: str
    field: str

    def of(self, request: Message) -> str | None:
        """Path of the resource that the request names, as grants write it; None when the field is empty."""
        name = getattr(request, self.field)
        return f"{self.type}/{name}" if name else None

    def missing(self) -> InvalidRequest:
        """The refusal of a request that had to name its resource."""
        violation = FieldViolation(field=self.field, description="must be set")
        return InvalidRequest("the request names no resource", violations=(violation,))


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodPolicy:
    """The compiled policy of one method.

    Attributes:
        method: full name, `/package.Service/Method`.
        access: what a caller must present.
        sensitive: refuses after the short staleness of the trust feed.
        idempotent: a repeated call has the effect of one.
        audit_allowed: allowed calls are audited too.
        resource: where the request names its resource; set exactly when a verb is.
        needs_trust: refuses without fresh news from the trust feed. False for health alone,
            which has to answer while the feed is down.
        unwrapped: passes to its handler untouched, after mutual TLS alone. For health's Watch.
    """

    method: str
    access: PeerAccess | TokenAccess
    sensitive: bool = False
    idempotent: bool = False
    audit_allowed: bool = False
    resource: ResourceSelector | None = None
    needs_trust: bool = True
    unwrapped: bool = False

    def line(self) -> str:
        """The policy as one line of text, complete: two policies differ when their lines do."""
        words = [self.method, *_access_words(self.access)]
        if self.resource is not None:
            words.append(f"on {self.resource.type}/{{{self.resource.field}}}")
        flags = ("sensitive", "idempotent", "audit_allowed", "unwrapped")
        words += [flag for flag in flags if getattr(self, flag)]
        if not self.needs_trust:
            words.append("without-trust")
        return " ".join(words)


def _access_words(access: PeerAccess | TokenAccess) -> list[str]:
    if isinstance(access, PeerAccess):
        return ["peer", "services=" + (",".join(sorted(access.services)) or "any")]
    return ["token", f"scope={access.scope}", *([f"verb={access.verb}"] if access.verb else [])]
