"""Errors as OAuth tells them: a status, a code, and a constant sentence (RFC 6749 section 5.2).

If this fails: a caller learns more of why it was refused than its class.
"""

from __future__ import annotations

import json
import math
from types import MappingProxyType
from typing import Final

from casemate.errors import CasemateError, Code, InvalidRequest, Reason
from casemate.transport.http_messages import Answer

NO_STORE: Final = MappingProxyType({"Cache-Control": "no-store", "Pragma": "no-cache"})
"""On everything that a token, or what is said of one, may be in (RFC 6749 section 5.1)."""

CHALLENGE: Final = 'Basic realm="casemate", charset="UTF-8"'
"""How a client can show a secret in a header; every 401 says it (RFC 9110 section 15.5.2)."""

# Made once: `json.dumps` makes an encoder on every call that names separators.
_compact: Final = json.JSONEncoder(separators=(",", ":")).encode

_STATUS: Final = MappingProxyType(
    {
        Code.INVALID_ARGUMENT: (400, "invalid_request"),
        Code.UNAUTHENTICATED: (401, "invalid_client"),
        Code.PERMISSION_DENIED: (400, "invalid_scope"),
        Code.RESOURCE_EXHAUSTED: (429, "temporarily_unavailable"),
        Code.UNAVAILABLE: (503, "temporarily_unavailable"),
        Code.DEADLINE_EXCEEDED: (408, "invalid_request"),
        Code.ABORTED: (503, "temporarily_unavailable"),
        Code.NOT_FOUND: (404, "invalid_request"),
    }
)


class OAuthRefusal(InvalidRequest):
    """A request that OAuth has a code of its own for.

    Args:
        error: the code.
        detail: what happened, for the log alone.
        status: the HTTP status.
        allow: the methods that there are, for a 405.
    """

    def __init__(self, error: str, detail: str, *, status: int = 400, allow: str = "") -> None:
        super().__init__(detail)
        self.error = error
        self.status = status
        self.allow = allow


def error_answer(error: CasemateError) -> Answer:
    """How an error is told."""
    status, code = _told(error)
    headers = dict(NO_STORE)
    if status == 401:
        headers["WWW-Authenticate"] = CHALLENGE
    if isinstance(error, OAuthRefusal) and error.allow:
        headers["Allow"] = error.allow
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after.total_seconds())))
    answer = json_answer({"error": code, "error_description": error.public_message}, status=status, headers=headers)
    if status in {408, 413}:
        answer.force_close()  # the rest of the body may still be coming
    return answer


def malformed_answer(status: int) -> Answer:
    """How it is told that something was no HTTP request, or that we failed at one."""
    code = "invalid_request" if status < 500 else "server_error"
    return json_answer({"error": code}, status=400 if status < 500 else 500, headers=dict(NO_STORE))


def _told(error: CasemateError) -> tuple[int, str]:
    if isinstance(error, OAuthRefusal):
        return error.status, error.error
    if error.reason is Reason.GRANT_INVALID:
        return 400, "invalid_grant"
    if error.reason is Reason.REQUEST_TOO_LARGE:
        return 413, "invalid_request"
    if any(violation.field == "audience" for violation in error.violations):
        return 400, "invalid_target"  # RFC 8707 section 2
    return _STATUS.get(error.code, (500, "server_error"))


def json_answer(
    content: object, *, status: int = 200, headers: dict[str, str], kind: str = "application/json"
) -> Answer:
    """A JSON document."""
    return document(_compact(content), status=status, headers=headers, kind=kind)


def document(text: str, *, status: int = 200, headers: dict[str, str], kind: str = "application/json") -> Answer:
    """A JSON document that is spelled already."""
    always = {"Content-Type": kind, "X-Content-Type-Options": "nosniff"}
    return Answer(status=status, body=text.encode(), headers=always | headers)
