"""How many uploads may be unfinished at once: each keeps a data key, its manifest and the rows that came.

An attempt counts until it is a version, is given up (its version is shredded), or expires;
a quarantined one too, as it keeps the same.

If this fails: whoever has a supplier's key and its grant fills the disk for all tenants with uploads of
which none is ever finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import Exhausted, FieldViolation

if TYPE_CHECKING:
    from casemate.storage.pool import Connection

_AGAIN: Final = timedelta(minutes=1)
"""How often those that expired are looked for."""

_UNFINISHED: Final = (
    "SELECT count(*) AS of_tenant, count(*) FILTER (WHERE signer_key_id = $2) AS of_supplier "
    "FROM uploads WHERE tenant = $1 AND state IN ('receiving', 'quarantined')"
)
_ADVICE: Final = "so many uploads are unfinished: finish one, shred its version, or wait until it expires"


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """How many: of one supplier, by its key, and of one tenant."""

    per_supplier: int
    per_tenant: int

    async def require_room(self, connection: Connection, *, tenant: str, signer_key_id: str, more: int = 0) -> None:
        """Returns if the unfinished uploads that there are, and so many more, are not too many.

        Raises:
            Exhausted: they are; names the setting.
        """
        ((of_tenant, of_supplier),) = await connection.fetch(_UNFINISHED, tenant, signer_key_id)
        for whose, count, limit in (
            ("SUPPLIER", of_supplier, self.per_supplier),
            ("TENANT", of_tenant, self.per_tenant),
        ):
            if count + more > limit:
                name = f"CASEMATE_DATASETS_UNFINISHED_UPLOADS_PER_{whose}"
                raise Exhausted(
                    f"{count} uploads of {tenant} are unfinished, and {name} is {limit}",
                    violations=(FieldViolation(name, _ADVICE),),
                    retry_after=_AGAIN,
                )
