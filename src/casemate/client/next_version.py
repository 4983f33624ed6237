"""The manifest of the next version of a dataset: which one it is, and what is counted of its chunks. Needs no service.

If this fails: a supplier signs a manifest that does not continue its dataset, and the service refuses it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.client.digesting import digest_chunks
from casemate.signing.merkle import root
from casemate.signing.statements import DatasetManifest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from casemate.client.dataset_files import CutChunk
    from casemate.signing.columns import Column
    from casemate.signing.framing import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class NextVersion:
    """Which version a manifest is of.

    Attributes:
        audience: the service that is to take it.
        tenant: whose the dataset is.
        dataset: its name.
        version: its number; 1 if there is none before it.
        previous_root: the root of the version before it; none for the first.
    """

    audience: str
    tenant: str
    dataset: str
    version: int = 1
    previous_root: bytes | None = None

    @classmethod
    def after(cls, manifest: DatasetManifest) -> NextVersion:
        """The version behind the one that a manifest is of, by what the manifest says."""
        return cls(
            audience=manifest.audience,
            tenant=manifest.tenant,
            dataset=manifest.dataset,
            version=manifest.version + 1,
            previous_root=manifest.root,
        )

    def manifest(
        self, chunks: Iterable[CutChunk], *, schema: Iterable[Column], encoding: Format, expires_at: datetime
    ) -> DatasetManifest:
        """The manifest of these chunks, under an upload id of its own. Reads them once."""
        digests = digest_chunks(chunks)
        return DatasetManifest(
            audience=self.audience,
            tenant=self.tenant,
            dataset=self.dataset,
            version=self.version,
            previous_root=self.previous_root,
            format=encoding,
            schema=tuple(schema),
            rows=sum(digest.rows for digest in digests),
            bytes=sum(digest.bytes for digest in digests),
            chunks=digests,
            root=root([digest.leaf_hash for digest in digests]),
            upload_id=secrets.token_hex(16),
            expires_at=expires_at,
        )
