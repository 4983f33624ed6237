"""Requests of the administration, field by field: everything wrong is named at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from casemate.errors import FieldViolation, InvalidRequest
from casemate.gate.core.records import VERBS as GRANTABLE
from services.auth.scopes import OURS, Audiences

VERBS: Final = (*GRANTABLE, "*")
"""What a grant may give or take; `*` is all of them."""

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,18}")
_IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_MAX_ISSUER_LENGTH: Final = 63
_MAX_SPIFFE_ID_BYTES: Final = 2048
_MAX_SEGMENTS: Final = 16


def is_identifier(value: str) -> bool:
    """Whether a text could be the identifier of a client, so that it may be looked up."""
    return _IDENTIFIER.fullmatch(value) is not None


class FieldChecks:
    """Collects what is wrong with a request, then refuses it once.

    Descriptions are constant text: they never repeat what was sent.
    """

    def __init__(self, *, known: Audiences = OURS) -> None:
        self._violations: list[FieldViolation] = []
        self._known = known

    def that(self, field: str, description: str, *, holds: bool) -> None:
        """Notes that a field breaks its rule, unless it holds."""
        if not holds:
            self._violations.append(FieldViolation(field, description))

    def tenant(self, field: str, value: str) -> None:
        """A tenant's name."""
        self.that(field, "must match [a-z][a-z0-9-]{0,62}", holds=_NAME.fullmatch(value) is not None)

    def identifier(self, field: str, value: str) -> None:
        """A client's identifier."""
        self.that(
            field,
            "must be 1 to 128 letters, digits, '.', '_', '@' or '-'",
            holds=is_identifier(value),
        )

    def issuer(self, field: str, value: str) -> None:
        """The name of an external issuer: one like a tenant's, after `<tenant>.` or by itself."""
        holds = len(value) <= _MAX_ISSUER_LENGTH and all(_NAME.fullmatch(part) for part in value.split(".", 1))
        self.that(field, "must match [a-z][a-z0-9-]*, also after <tenant>., 63 characters at most", holds=holds)

    def named_inside(self, field: str, value: str, *, tenant: str, required: bool) -> None:
        """A name that is unique in the whole house, without saying who else has one.

        `<tenant>.` before it is that tenant's alone: whoever may act on one tenant only has to name things so
        (`required`), and so learns of names of its own tenant alone.
        """
        head, dotted, _ = value.partition(".")
        own = head == tenant if dotted and _NAME.fullmatch(head) else not required
        self.that(field, "must begin with the tenant's name and a dot, and with no other's", holds=own)

    def segment(self, field: str, value: str) -> None:
        """The name of a model."""
        self.that(
            field, "must be 1 to 128 letters, digits, '.', '_' or '-'", holds=_SEGMENT.fullmatch(value) is not None
        )

    def spiffe_id_within(self, field: str, value: str, *, trust_domain: str, tenant: str) -> None:
        """A client's SPIFFE ID: inside its tenant's path (design: names in certificates mean something)."""
        prefix = f"spiffe://{trust_domain}/t/{tenant}/"
        segments = value.removeprefix(prefix).split("/")
        holds = value.startswith(prefix) and len(value) <= _MAX_SPIFFE_ID_BYTES
        holds = holds and all(_SEGMENT.fullmatch(segment) for segment in segments)
        self.that(field, "must be inside the tenant's path, spiffe://<domain>/t/<tenant>/", holds=holds)

    def audiences(self, field: str, values: Iterable[str], *, clients: Collection[str] = ()) -> None:
        """One or more known audiences, of which `clients` are known besides."""
        chosen = list(values)
        holds = bool(chosen) and all(value in self._known or value in clients for value in chosen)
        self.that(field, f"must name known audiences: {', '.join(self._known.names)}", holds=holds)

    def scopes(self, field: str, values: Iterable[str]) -> None:
        """One or more known scopes."""
        chosen = list(values)
        self.that(field, "must name known scopes", holds=bool(chosen) and set(chosen) <= self._known.scopes)

    def caller_pattern(self, field: str, value: str, *, tenant: str) -> None:
        """Callers by path: of the tenant itself by pattern, of another one by exact name only."""
        segments = value.split("/")
        if len(segments) > _MAX_SEGMENTS or segments[0] != "t" or len(segments) < 3:
            self.that(field, "must be t/<tenant>/<name>", holds=False)
            return
        foreign = segments[1] != tenant
        wild = "*" in segments
        self.that(field, "callers of another tenant must be named exactly, without '*'", holds=not (foreign and wild))
        well_formed = all(segment == "*" or _SEGMENT.fullmatch(segment) for segment in segments[2:])
        tenant_named = _NAME.fullmatch(segments[1]) is not None
        self.that(field, "must be t/<tenant>/<name>", holds=well_formed and (tenant_named or wild))

    def resource_pattern(self, field: str, value: str) -> None:
        """Resources by path: `dataset/<name>`, `dataset/<name>/<version>` or `model/<name>`; the name may be `*`.

        Those of another team's service are `<service>/<name>`.
        """
        kind, name, *version = value.split("/") if value.count("/") else (value, "")
        holds = kind in self._known.kinds and (name == "*" or _SEGMENT.fullmatch(name) is not None)
        if version:
            holds = holds and kind == "dataset" and len(version) == 1 and _NUMBER.fullmatch(version[0]) is not None
        text = "must be dataset/<name>, dataset/<name>/<version> or model/<name>; the name may be '*'"
        self.that(field, text, holds=holds)

    def raise_if_any(self) -> None:
        """Ends the checks.

        Raises:
            InvalidRequest: names every field that was wrong.
        """
        if self._violations:
            fields = ", ".join(violation.field for violation in self._violations)
            raise InvalidRequest(f"not valid: {fields}", violations=tuple(self._violations))
