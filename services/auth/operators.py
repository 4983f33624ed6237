"""Makes operators on the machine of auth, by whoever holds the database's role and the KEK; by no rpc.

What is done is written down three times: in the authority, by a row that the log is
told of; in an audit file of its own, since the running service writes the other one;
and in the process's log. Without the audit nothing is done.

If this fails: whoever holds the database's role and the KEK could do the same by hand,
and more; that it was done is seen in the transparency log.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Final

from casemate.clock import SystemClock
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.core.audit import AuditEvent
from casemate.json_log import log_to_stderr
from casemate.settings import load_settings
from casemate.transport.metrics import Metrics
from services.auth.bootstrap import OperatorPlace, bootstrap_operator, replace_operator
from services.auth.opening import open_authority
from services.auth.records import HOUSE_TENANT
from services.auth.settings import AuthSettings

AUDIT_SUFFIX: Final = ".operators.jsonl"
"""In place of the suffix of the service's own audit file."""

_log = logging.getLogger(__name__)


async def bootstrap(
    environment: Mapping[str, str], *, client_id: str, spiffe_id: str, replace: bool = False, reason: str = ""
) -> None:
    """Makes this database's first operator; with `replace`, one in the place of the last one made.

    Raises:
        ConfigurationError: it cannot start as configured.
        AlreadyExists: there was another first operator, or the new one's names are taken.
        NotFound: there is none to replace.
        InvalidRequest: a name, or no reason.
    """
    log_to_stderr()
    settings = load_settings(AuthSettings, environment, component="auth")
    clock = SystemClock()
    place = OperatorPlace(client_id=client_id, spiffe_id=spiffe_id, trust_domain=settings.identity.trust_domain)
    async with AsyncExitStack() as stack:
        authority = await open_authority(settings, stack, Metrics("auth"))
        audit = AuditFile(settings.audit_file.with_suffix(AUDIT_SUFFIX))
        stack.callback(audit.close)
        audit.require_writable()
        former = ""
        if replace:
            former = await replace_operator(authority.store, place, reason=reason, clock=clock)
        elif not await bootstrap_operator(authority.store, place, clock=clock):
            _log.info("there is an operator already: nothing was changed")
            return
        audit.record(
            AuditEvent(
                at=clock.now(),
                request_id=secrets.token_hex(8),
                method="operator bootstrap --replace" if replace else "operator bootstrap",
                decision="allowed",
                outcome="OK",
                tenant=HOUSE_TENANT,
                client_id=client_id,
                spiffe_id=spiffe_id,
                resource=f"client/{former}" if former else None,
            )
        )
        others = [one.client_id for one in await authority.store.clients_of(HOUSE_TENANT) if one.enabled]
    _log.warning("operator made: client_id=%s spiffe_id=%s in place of %s", client_id, spiffe_id, former or "nobody")
    if replace:
        _log.warning("clients of the house tenant that are enabled: %s", ", ".join(others))
