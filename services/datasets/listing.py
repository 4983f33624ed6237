"""The datasets that a caller may read, page by page.

A page is filled from what its caller may read: neither how full it is nor its token tells
of anything else. Forbidden and absent look alike, as they do when a dataset is named.

If this fails: a caller learns names of datasets of its own tenant that it may not read. Of other tenants' nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest, NotFound
from casemate.signing.fields import NAME
from services.datasets.trusted import is_trusted

if TYPE_CHECKING:
    from casemate.gate.core.caller import Caller
    from casemate.signing.statements import SignerResolver
    from services.datasets.store import VersionStore
    from services.datasets.upload import Upload
    from services.datasets.versions import Versions

DEFAULT_PAGE: Final = 100
LARGEST_PAGE: Final = 500
_READ_AT_ONCE: Final = 128
"""Rows that are verified without letting others go on: a few milliseconds' worth."""
_OLDER: Final = 1024


@dataclass(frozen=True, slots=True)
class Page:
    """Datasets by the newest readable version of each, and the text that asks for the next page, if there is one."""

    newest: list[Upload]
    token: str


class DatasetListing:
    """Reads pages.

    Args:
        store: the versions.
        versions: asks for grants.
        resolve: registered signers.
    """

    def __init__(self, *, store: VersionStore, versions: Versions, resolve: SignerResolver) -> None:
        self._store = store
        self._versions = versions
        self._resolve = resolve

    async def page(self, caller: Caller, tenant: str, *, size: int, token: str) -> Page:
        """A page of a tenant's datasets, by name.

        Args:
            caller: who asks.
            tenant: its tenant.
            size: how many at most; zero for a hundred.
            token: what the page before ended with.

        Raises:
            InvalidRequest: the token is none of such a page.
        """
        after: str | None = _decode(token)
        limit = min(size or DEFAULT_PAGE, LARGEST_PAGE)
        found: list[Upload] = []
        # One more than asked for tells whether there is another page.
        while after is not None and len(found) <= limit:
            newest, after = await self._store.newest(tenant, after=after, limit=_READ_AT_ONCE)
            for upload in newest:
                shown = await self._shown(caller, upload)
                if shown is not None:
                    found.append(shown)
            await asyncio.sleep(0)
        more = len(found) > limit
        return Page(found[:limit], _encode(found[limit - 1].dataset) if more else "")

    async def _shown(self, caller: Caller, newest: Upload) -> Upload | None:
        """The newest version that is not quarantined, if the caller may read it and the newest of all."""
        if not self._is_granted(caller, newest):
            return None
        if is_trusted(newest, self._resolve):
            return newest
        older = await self._store.older(newest.tenant, newest.dataset, below=newest.version, limit=_OLDER)
        readable = (one for one in older if is_trusted(one, self._resolve) and self._is_granted(caller, one))
        return next(readable, None)

    def _is_granted(self, caller: Caller, upload: Upload) -> bool:
        try:
            self._versions.require_grant(caller, upload)
        except NotFound:
            return False
        return True


def _encode(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _decode(token: str) -> str:
    """The name that a page ended with. It is no right: it only says where to go on."""
    try:
        name = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        name = "?"
    if token and not NAME.fullmatch(name):
        text = "is not one of these pages"
        raise InvalidRequest(f"page_token {text}", violations=(FieldViolation("page_token", text),))
    return name
