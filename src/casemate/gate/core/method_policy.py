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
    """Where a request names its resource, and of which type that is.

    Attributes:
        type: of the resource: `dataset` or `model`.
        field: the field that holds its name.
        fallback: the field that counts where `field` is empty: clients of one protocol differ.
        optional: a request that names nothing needs no grant. Only for methods whose handler
            then shows no more than what the caller has grants for.
        version: the field that narrows the resource by a number. A handler that finds the
            number by itself, where the request names none, asks for that version's grant again.
    """

    type: str
    field: str
    fallback: str | None = None
    optional: bool = False
    version: str | None = None

    def name_in(self, request: Message) -> str:
        """The name that the request is judged by, which its handler must go by as well; may be empty."""
        name: str = getattr(request, self.field)
        if not name and self.fallback is not None:
            name = getattr(request, self.fallback)
        return name

    def of(self, request: Message) -> str | None:
        """Path of the resource that the request names, as grants write it; None when it names nothing."""
        name = getattr(request, self.field) or self.name_in(request)
        if not name:
            return None
        if self.version is None:
            return f"{self.type}/{name}"
        version = getattr(request, self.version)
        return f"{self.type}/{name}/{version}" if version else f"{self.type}/{name}"

    def whole(self, resource: str) -> str | None:
        """Path of the resource that this one is a version of; None when it is a whole one."""
        return resource.rpartition("/")[0] if self.version is not None and resource.count("/") > 1 else None

    def words(self) -> str:
        """The selector as a policy's line says it."""
        fields = self.field if self.fallback is None else f"{self.field}|{self.fallback}"
        versioned = "" if self.version is None else f"[/{{{self.version}}}]"
        return f"on {self.type}/{{{fields}}}{versioned}" + (" or-none" if self.optional else "")

    def too_long(self, most: int) -> InvalidRequest:
        """The refusal of a request whose resource has a longer path than `most` bytes."""
        violation = FieldViolation(field=self.field, description=f"must make a path of at most {most} bytes")
        return InvalidRequest("the name of the resource is too long", violations=(violation,))

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
        only_revokes: takes rights away and gives none, so it runs while the audit is down; its event is kept.
        resource: where the request names its resource; set exactly when a verb is.
        needs_trust: refuses without fresh news from the trust feed. False for health alone,
            which has to answer while the feed is down.
        unwrapped: lasts, and takes no place of those that work; on the synchronous server no thread either: its
            handler is called as grpcio calls it. Its peer is judged as others' are. For health's Watch.
    """

    method: str
    access: PeerAccess | TokenAccess
    sensitive: bool = False
    idempotent: bool = False
    audit_allowed: bool = False
    only_revokes: bool = False
    resource: ResourceSelector | None = None
    needs_trust: bool = True
    unwrapped: bool = False

    def line(self) -> str:
        """The policy as one line of text, complete: two policies differ when their lines do."""
        words = [self.method, *_access_words(self.access)]
        if self.resource is not None:
            words.append(self.resource.words())
        flags = ("sensitive", "idempotent", "audit_allowed", "only_revokes", "unwrapped")
        words += [flag for flag in flags if getattr(self, flag)]
        if not self.needs_trust:
            words.append("without-trust")
        return " ".join(words)


def _access_words(access: PeerAccess | TokenAccess) -> list[str]:
    if isinstance(access, PeerAccess):
        return ["peer", "services=" + (",".join(sorted(access.services)) or "any")]
    return ["token", f"scope={access.scope}", *([f"verb={access.verb}"] if access.verb else [])]
