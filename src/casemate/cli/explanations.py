"""What a refusal means, and the command that mends it.

For operators: the caller itself is told less, and a missing grant it cannot
even tell from a missing object.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casemate.cli.certificates import OPERATOR
from casemate.gate.core.policy import TokenAccess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casemate.gate.core.policy import MethodPolicy, PolicyTable

_MEANINGS = {
    "TOKEN_MISSING": ("The call carried no token.", "casemate token {audience} --as {who}"),
    "TOKEN_INVALID": (
        "The token does not verify: another issuer or audience, a key that is gone, or not a token of ours.",
        "casemate token {audience} --as {who}",
    ),
    "TOKEN_EXPIRED": ("The token or the certificate had expired.", "casemate token {audience} --as {who}"),
    "TOKEN_REVOKED": (
        "The token, its session, client, subject, key or certificate was revoked. That was somebody's decision.",
        "casemate token {audience} --as {who}",
    ),
    "CERTIFICATE_MISMATCH": (
        (
            "The token of {client} came with a certificate that did not ask for it, the one of {spiffe}. {theft} "
            "A copied token is worth nothing to whoever has it. End it all the same, find where it was read, and ask "
            "who holds that certificate; casemate revoke spiffe-id would end that name for good."
        ),
        "casemate revoke token --as {operator} -- {token}",
    ),
    "PEER_REFUSED": (
        "The certificate is outside its dates, revoked, or not one of a caller of this trust domain.",
        "casemate pki issue {who} --anew",
    ),
    "INSUFFICIENT_SCOPE": (
        (
            "The token lacks the scope {scope}: it was asked for fewer, or the client is not registered with it. "
            "What a client is registered with does not change; another client, with a certificate of its own, "
            "takes its place."
        ),
        (
            "casemate client create {client}-2 --tenant {tenant} --spiffe-id {spiffe}-2 --audience {audience} "
            "--scope {scope} --as {operator}"
        ),
    ),
    "GRANT_MISSING": (
        "No grant gives {verb} on {resource}, or one takes it. The caller was told NOT_FOUND.",
        "casemate grant create --tenant {tenant} --caller {path} --verb {verb} --resource {resource} --as {operator}",
    ),
    "CALLER_NOT_ALLOWED": (
        "The method is for services alone, and this certificate is none of theirs. There is nothing to mend.",
        None,
    ),
    "RATE_LIMITED": ("Too many calls at once or too fast: the caller, its tenant, or on this resource.", None),
    "SERVER_FULL": (
        (
            "The server had all the calls running that it takes at once, of everybody; nothing of this one was judged. "
            "Its caller was told RATE_LIMITED, and when to come back."
        ),
        None,
    ),
    "RESOURCE_EXHAUSTED": (
        (
            "The method itself had no room for the call: a full queue, a limit of its own, or a caller that it slows "
            "down after failures. The gate had let the call in; its caller was told when to come back."
        ),
        None,
    ),
    "TRUST_STALE": (
        "The service had no news from auth for too long, and would rather refuse than guess.",
        "casemate health auth",
    ),
    "NOT_SERVED": ("The caller was proven; there is no such method here.", None),
    "DEPENDENCY_UNAVAILABLE": ("Something that the call needs was down; an audited call needs the audit.", None),
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a call was refused, in words, and what to type; None where no command helps."""

    meaning: str
    command: str | None


def explain(record: Mapping[str, Any], policies: PolicyTable) -> Explanation:
    """Explains one denial of the audit.

    Args:
        record: the members of its line.
        policies: of all methods, for the scope and verb that were asked for.
    """
    reason = str(record.get("reason"))
    meaning, command = _MEANINGS.get(reason, (f"The handler answered {reason}.", None))
    words = _words(record, policies.find(str(record.get("method"))))
    if reason == "INSUFFICIENT_SCOPE" and words["verb"] != "VERB":
        meaning += " It will then need a grant as well."
    quoted = {name: word if word.isupper() else shlex.quote(word) for name, word in words.items()}
    return Explanation(meaning.format(**words), command.format(**quoted) if command is not None else None)


def _words(record: Mapping[str, Any], policy: MethodPolicy | None) -> dict[str, str]:
    """What is known of the call; a name in capitals where something is not."""
    tenant = str(record.get("tenant") or "TENANT")
    # A call that lacks a scope is refused before its connection is looked at: of its name only the tenant is known.
    spiffe_id = str(record.get("spiffe_id") or f"spiffe://DOMAIN/t/{tenant}/NAME")
    path = spiffe_id.split("/", 3)[3]
    access = policy.access if policy is not None else None
    scope, verb = (access.scope, access.verb) if isinstance(access, TokenAccess) else (None, None)
    method, client = str(record.get("method")), str(record.get("client_id") or "CLIENT")
    return {
        "tenant": tenant,
        "operator": "/".join(OPERATOR),
        "client": client,
        "spiffe": spiffe_id,
        "path": path,
        "who": path.removeprefix("t/"),
        "scope": scope or "SCOPE",
        "verb": verb or "VERB",
        "resource": str(record.get("resource") or "RESOURCE"),
        "audience": _audience(method),
        "token": str(record.get("token_id") or "TOKEN_ID"),
        "theft": _theft(tenant, client, path),
    }


def _theft(tenant: str, client: str, presented_by: str) -> str:
    """Whether a token that came with another certificate was copied, as far as the two names tell."""
    if presented_by.startswith(f"t/{tenant}/"):
        return (
            f"If that is the client's own name (casemate client show {client}), its certificate was renewed, its next "
            "token fits, and there is nothing to mend. If not, the token was copied."
        )
    return f"That is nobody of {tenant}: the token was copied."


def _audience(method: str) -> str:
    for service in ("auth", "datasets", "inference"):
        if method.startswith((f"/casemate.{service}.", f"/{service}.")):
            return service
    return "AUDIENCE"
