"""Where a reading stands, and what it gave: cursors, batches as Arrow or pandas, the receipt.

pyarrow and pandas are loaded when they are asked for, and not before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from casemate.errors import FieldViolation, InvalidRequest
from casemate.signing.batch_order import BatchOrder
from casemate.signing.fields import MAXIMUM_INTEGER
from casemate.signing.merkle import HASH_BYTES

if TYPE_CHECKING:
    from casemate.signing.export_receipt import VerifiedExportReceipt
    from casemate.signing.statements import VerifiedManifest

_CURSOR_MEMBERS: Final = frozenset({"dataset", "position", "root", "shard", "shards", "shuffle_seed", "version"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where to go on: exactly the batches of the same version, shard and order that were not given out yet.

    Attributes:
        dataset: the dataset.
        version: the version's number.
        root: its root, so that another one under the same number is not gone on with.
        order: shard, shuffle and position.
    """

    dataset: str
    version: int
    root: bytes
    order: BatchOrder

    def to_text(self) -> str:
        """One line of JSON, to keep beside a model's checkpoint."""
        order = self.order
        said = {
            "dataset": self.dataset,
            "position": order.position,
            "root": self.root.hex(),
            "shard": order.shard,
            "shards": order.shards,
            "shuffle_seed": order.shuffle_seed,
            "version": self.version,
        }
        return json.dumps(said, sort_keys=True)

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads what `to_text` wrote.

        Raises:
            InvalidRequest: any other text.
        """
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or found.keys() != _CURSOR_MEMBERS:
                raise ValueError("other members")
            numbers = [found[name] for name in ("position", "shard", "shards", "version")]
            seed = found["shuffle_seed"]
            if not all(type(number) is int for number in numbers) or (seed is not None and type(seed) is not int):
                raise ValueError("not numbers")
            root = bytes.fromhex(found["root"])
            if not 1 <= found["version"] <= MAXIMUM_INTEGER or len(root) != HASH_BYTES:
                raise ValueError("no version, or no root")
            return cls(
                dataset=str(found["dataset"]),
                version=found["version"],
                root=root,
                order=BatchOrder(
                    shard=found["shard"], shards=found["shards"], shuffle_seed=seed, position=found["position"]
                ),
            )
        except (ValueError, TypeError, RecursionError):
            violation = FieldViolation("cursor", "is not a cursor")
            raise InvalidRequest("not a cursor", violations=(violation,)) from None


@dataclass(frozen=True, slots=True)
class PulledBatch:
    """One chunk, proven to be part of the signed root.

    Attributes:
        number: the leaf's index under the root.
        first_ordinal: number of its first row within the version, from 0.
        records: its rows: records, or in Arrow messages of record batches.
    """

    number: int
    first_ordinal: int
    records: tuple[bytes, ...]


class PulledDataset:
    """A version, or a shard of one, being read: iterate for its batches, in order.

    Every batch is proven before it is given out. That all of them arrived is known
    only when the iteration ends without an error; then `receipt` is there too.
    """

    def __init__(self, manifest: VerifiedManifest, order: BatchOrder, pieces: Iterator[PulledBatch]) -> None:
        self.manifest = manifest
        self.version = manifest.manifest.version
        self.order = order
        self.receipt: VerifiedExportReceipt | None = None
        self._pieces = pieces
        self._given = 0

    @property
    def root(self) -> bytes:
        """The signed RFC 6962 root."""
        return self.manifest.manifest.root

    @property
    def cursor(self) -> Cursor:
        """Where a later reading goes on: behind the last batch that was given out."""
        manifest = self.manifest.manifest
        order = replace(self.order, position=self.order.position + self._given)
        return Cursor(dataset=manifest.dataset, version=manifest.version, root=manifest.root, order=order)

    def __iter__(self) -> Iterator[PulledBatch]:
        for batch in self._pieces:
            self._given += 1
            yield batch

    def records(self) -> list[bytes]:
        """All rows, read to the end and so complete."""
        return [record for batch in self for record in batch.records]

    def arrow(self) -> Iterator[Any]:
        """Each batch as a `pyarrow.RecordBatch` of the schema that the manifest declares. Needs pyarrow."""
        from casemate.client.arrow_batches import ArrowBatches  # noqa: PLC0415  # pyarrow is optional

        manifest = self.manifest.manifest
        convert = ArrowBatches(manifest.schema, encoding=manifest.format)
        for batch in self:
            yield convert(batch.records)

    def pandas(self) -> Iterator[Any]:
        """Each batch as a `pandas.DataFrame`. Needs pyarrow and pandas."""
        for batch in self.arrow():
            yield batch.to_pandas()
