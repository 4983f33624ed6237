"""The caller of the call that runs, for the handler and whatever it calls."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.gate.core.caller import Caller

_CALLER: ContextVar[Caller] = ContextVar("casemate_caller")


def current_caller() -> Caller:
    """The proven caller of the call that runs.

    Raises:
        RuntimeError: no call runs here that passed the gate.
    """
    try:
        return _CALLER.get()
    except LookupError:
        raise RuntimeError("no call that passed the gate runs here") from None


def share_of(caller: Caller) -> str:
    """Whose share of a server a call takes: its tenant's, whichever of the tenant's many certificates it shows."""
    return caller.tenant or share_of_path(caller.path)


def share_of_path(path: str) -> str:
    """Likewise by the path of a SPIFFE ID: the tenant's name, as in tokens, or `svc/NAME`, which is no tenant's."""
    kind, name = path.split("/")[:2]
    return name if kind == "t" else f"{kind}/{name}"


bind_caller = _CALLER.set
"""Makes a caller the current one until the context of this call ends.

For the adapters: every call of theirs runs in a context of its own.
"""


@contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Makes `caller` the current one inside the block: for hosts that have no interceptors, and tests."""
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)
