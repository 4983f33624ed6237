"""Finds the version that a request means, by number, by label or as the newest, and asks for its grant.

The gate judged what the request names. A number that is found here was not in the
request, so that a denial of that very version is asked for again.

If this fails: a caller reads a version of a dataset that it may read, and that one
grant meant to take from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from casemate.errors import FieldViolation, InvalidRequest

if TYPE_CHECKING:
    from casemate.clock import Clock
    from casemate.gate.core.caller import Caller
    from casemate.gate.core.trust import TrustState
    from services.datasets.labels import LabelStore
    from services.datasets.pull import ReadableVersion, Reader
    from services.datasets.upload import Upload

READ: Final = "read"


class Versions:
    """What a caller may read, by whatever name it asks.

    Args:
        reader: verified versions.
        labels: what labels name.
        trust: the grants.
        clock: time.
    """

    def __init__(self, *, reader: Reader, labels: LabelStore, trust: TrustState, clock: Clock) -> None:
        self._reader = reader
        self._labels = labels
        self._trust = trust
        self._clock = clock

    async def described(
        self, caller: Caller, tenant: str, *, dataset: str, version: int, label: str
    ) -> ReadableVersion:
        """A version, shredded or not; see `Reader.describe`.

        Raises:
            NotFound: also if there is no such label, or no grant.
            InvalidRequest: both version and label are given, or the label is none.
        """
        number = await self._number(tenant, dataset=dataset, version=version, label=label)
        found = await self._reader.describe(tenant=tenant, dataset=dataset, version=number)
        self.require_grant(caller, found.upload)
        return found

    async def readable(self, caller: Caller, tenant: str, *, dataset: str, version: int, label: str) -> ReadableVersion:
        """A version whose rows can be read; see `Reader.readable`."""
        number = await self._number(tenant, dataset=dataset, version=version, label=label)
        found = await self._reader.readable(tenant=tenant, dataset=dataset, version=number)
        self.require_grant(caller, found.upload)
        return found

    async def labels_of(self, readable: ReadableVersion) -> list[str]:
        """The labels that were set to name a version."""
        upload = readable.upload
        labels = await self._labels.all(upload.tenant, upload.dataset)
        return [label for label, number in labels.items() if number == upload.version]

    def require_grant(self, caller: Caller, upload: Upload) -> None:
        """Returns if the caller may read this version now. Costs two look-ups.

        Raises:
            NotFound: it may not.
        """
        self._trust.current.grants.authorize(
            tenant=upload.tenant,
            caller_path=caller.path,
            verb=READ,
            resource=f"dataset/{upload.dataset}/{upload.version}",
            whole=f"dataset/{upload.dataset}",
            now=self._clock.now(),
        )

    async def _number(self, tenant: str, *, dataset: str, version: int, label: str) -> int:
        if not label:
            return version
        if version:
            text = "is given beside a version"
            raise InvalidRequest(f"label {text}", violations=(FieldViolation("label", text),))
        return 0 if "\x00" in dataset else await self._labels.named(tenant, dataset, label)
