"""What a supplier signs before the first row is sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias, cast, get_args

from casemate.signing import fields, merkle, strict_json
from casemate.signing.columns import Column, ColumnType
from casemate.signing.framing import MAXIMUM_ROW_RECORDS, Format
from casemate.signing.statement import open_statement, write_statement
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["ChunkDigest", "Column", "ColumnType", "DatasetManifest", "Format"]

DATASET_PREDICATE: Final = "urn:casemate:dataset-manifest:v1"

Digest: TypeAlias = bytes  # `bytes` is a field's name below

MAXIMUM_CHUNK_BYTES: Final = 8 << 20
MAXIMUM_MESSAGE_BYTES: Final = MAXIMUM_CHUNK_BYTES + (1 << 20)
"""Of a gRPC message that carries a chunk: room for its proof, and for the frames of its rows."""

NEXT_VERSION: Final = "next_version"
PREVIOUS_ROOT: Final = "next_previous_root"
"""Fields of ALREADY_EXISTS for a version that is taken: the number that is free, the root before it (hexadecimal)."""

MAXIMUM_CHUNK_ROWS: Final = 32_768  # each costs some 300 bytes of memory while it is sealed
MAXIMUM_CHUNKS: Final = 20_000  # with 140 bytes each, they fit into an envelope
MAXIMUM_COLUMNS: Final = 4096
MAXIMUM_CATEGORIES_OF_ALL: Final = 10_000

_CHUNK: Final = frozenset({"leaf_hash", "bytes", "rows"})
_CHUNK_OF_BATCHES: Final = _CHUNK | {"records"}
_PREDICATE: Final = frozenset(
    {
        "audience",
        "tenant",
        "dataset",
        "version",
        "previous_root",
        "format",
        "schema",
        "rows",
        "bytes",
        "chunks",
        "root",
        "upload_id",
        "expires_at",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDigest:
    """One chunk: its RFC 6962 leaf hash and its size.

    Attributes:
        leaf_hash: of its bytes.
        bytes: how many those are.
        rows: rows that are stored, each sealed by itself.
        records: records in them; None where a row is a record, as everywhere but in Arrow.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """

    leaf_hash: Digest
    bytes: int
    rows: int
    records: int | None = None

    def __post_init__(self) -> None:
        fields.digest(self.leaf_hash, "chunks.leaf_hash")
        fields.integer(self.bytes, "chunks.bytes", minimum=1, maximum=MAXIMUM_CHUNK_BYTES)
        # A row has at least one byte: a line feed.
        fields.integer(self.rows, "chunks.rows", minimum=1, maximum=min(self.bytes, MAXIMUM_CHUNK_ROWS))
        if self.records is not None:
            most = self.rows * MAXIMUM_ROW_RECORDS
            fields.integer(self.records, "chunks.records", minimum=self.rows, maximum=most)

    @property
    def record_count(self) -> int:
        """Records in the chunk, whatever the format."""
        return self.rows if self.records is None else self.records

    @classmethod
    def of(cls, data: Digest) -> ChunkDigest:
        """The digest of a chunk whose records are lines: each ended by a line feed, none within.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`; empty, too large, or the last record has no end.
        """
        if not data.endswith(b"\n"):
            raise invalid("chunks", "does not end at the end of a record")
        return cls(leaf_hash=merkle.leaf_hash(data), bytes=len(data), rows=data.count(b"\n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetManifest:
    """One version of a dataset, committed to before its bytes are sent.

    A value of this class agrees with itself: the chunks add up to `rows` and
    `bytes`, and `root` is theirs. It says nothing about who signed it.

    Attributes:
        audience: the service that it is meant for, as `datasets`.
        rows: rows that are stored: records, or in Arrow batches of records.
        previous_root: root of the version before; none for the first.
        root: RFC 6962 root over the chunks' leaf hashes.
        upload_id: 16 to 64 characters that the supplier chose for this upload.
        expires_at: when it may no longer be sent; cut to whole seconds.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field.
    """

    audience: str
    tenant: str
    dataset: str
    version: int
    previous_root: Digest | None
    format: Format
    schema: tuple[Column, ...]
    rows: int
    bytes: int
    chunks: tuple[ChunkDigest, ...]
    root: Digest
    upload_id: str
    expires_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires_at", fields.moment(self.expires_at, "expires_at"))
        fields.text(self.audience, "audience", fields.AUDIENCE)
        fields.text(self.tenant, "tenant", fields.NAME)
        fields.text(self.dataset, "dataset", fields.NAME)
        fields.text(self.upload_id, "upload_id", fields.UPLOAD_ID)
        fields.integer(self.version, "version", minimum=1)
        if self.format not in get_args(Format):
            raise invalid("format", "is not csv, jsonl or arrow")
        if (self.previous_root is None) != (self.version == 1):
            raise invalid("previous_root", "is missing, or set on the first version")
        if self.previous_root is not None:
            fields.digest(self.previous_root, "previous_root")
        fields.count(self.schema, "schema", minimum=1, maximum=MAXIMUM_COLUMNS)
        if len({column.name for column in self.schema}) != len(self.schema):
            raise invalid("schema", "names a column twice")
        self._check_format()
        fields.count(self.chunks, "chunks", minimum=1, maximum=MAXIMUM_CHUNKS)
        self._check_totals()

    def _check_format(self) -> None:
        if self.format == "csv" and any(column.type == "vector" for column in self.schema):
            raise invalid("schema.type", "is vector, which CSV has no form for")
        if self.format != "arrow" and any(column.storage for column in self.schema):
            raise invalid("schema.storage", "is set on a format without widths")
        if sum(len(column.categories or ()) for column in self.schema) > MAXIMUM_CATEGORIES_OF_ALL:
            raise invalid("schema.categories", f"holds more than {MAXIMUM_CATEGORIES_OF_ALL} texts in all")
        if any((chunk.records is None) is (self.format == "arrow") for chunk in self.chunks):
            raise invalid("chunks.records", "is missing in Arrow, or set on a format whose rows are records")

    def _check_totals(self) -> None:
        fields.integer(self.rows, "rows", minimum=1)
        fields.integer(self.bytes, "bytes", minimum=1)
        if self.rows != sum(chunk.rows for chunk in self.chunks):
            raise invalid("rows", "is not the sum over the chunks")
        if self.bytes != sum(chunk.bytes for chunk in self.chunks):
            raise invalid("bytes", "is not the sum over the chunks")
        if fields.digest(self.root, "root") != merkle.root([chunk.leaf_hash for chunk in self.chunks]):
            raise invalid("root", "is not the root of the chunks")

    @property
    def records(self) -> int:
        """Records of the version: `rows`, but in Arrow what the rows hold."""
        return sum(chunk.record_count for chunk in self.chunks)

    @property
    def schema_sha256(self) -> Digest:
        """SHA-256 of the canonical form of format and columns: what a row is sealed to."""
        shape = {"format": self.format, "schema": [column.to_json() for column in self.schema]}
        return hashlib.sha256(strict_json.canonical(shape)).digest()

    def to_statement(self) -> Digest:
        """The in-toto Statement v1 that is signed. Equal manifests give equal bytes."""
        predicate: dict[str, object] = {
            "audience": self.audience,
            "tenant": self.tenant,
            "dataset": self.dataset,
            "version": self.version,
            "previous_root": None if self.previous_root is None else self.previous_root.hex(),
            "format": self.format,
            "schema": [column.to_json() for column in self.schema],
            "rows": self.rows,
            "bytes": self.bytes,
            "chunks": [_chunk_out(chunk) for chunk in self.chunks],
            "root": self.root.hex(),
            "upload_id": self.upload_id,
            "expires_at": fields.format_moment(self.expires_at),
        }
        return write_statement(DATASET_PREDICATE, self._subject(), predicate)

    def _subject(self) -> list[object]:
        # Not "sha256": a generic verifier would take that for the digest of a file.
        return [{"name": f"dataset/{self.dataset}", "digest": {"rfc6962Sha256": self.root.hex()}}]

    @classmethod
    def parse(cls, payload: Digest) -> DatasetManifest:
        """The manifest in a statement. Parsing is not verification.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`; unknown, missing or repeated fields,
                wrong types, limits, totals or root.
        """
        subject, predicate = open_statement(payload, DATASET_PREDICATE, _PREDICATE)
        previous = predicate["previous_root"]
        manifest = cls(
            # The casts are checked by the constructor, which trusts no type.
            audience=cast("str", predicate["audience"]),
            tenant=cast("str", predicate["tenant"]),
            dataset=cast("str", predicate["dataset"]),
            version=cast("int", predicate["version"]),
            previous_root=None if previous is None else fields.hex_digest(previous, "previous_root"),
            format=cast("Format", predicate["format"]),
            schema=tuple(Column.from_json(item) for item in fields.array(predicate["schema"], "schema")),
            rows=cast("int", predicate["rows"]),
            bytes=cast("int", predicate["bytes"]),
            chunks=tuple(_chunk_in(item) for item in fields.array(predicate["chunks"], "chunks")),
            root=fields.hex_digest(predicate["root"], "root"),
            upload_id=cast("str", predicate["upload_id"]),
            expires_at=fields.parse_moment(predicate["expires_at"], "expires_at"),
        )
        if subject != manifest._subject():
            raise invalid("subject", "is not the root that the manifest names")
        return manifest


def _chunk_out(chunk: ChunkDigest) -> dict[str, object]:
    said: dict[str, object] = {"leaf_hash": chunk.leaf_hash.hex(), "bytes": chunk.bytes, "rows": chunk.rows}
    return said if chunk.records is None else said | {"records": chunk.records}


def _chunk_in(item: object) -> ChunkDigest:
    of_batches = isinstance(item, dict) and "records" in item
    chunk = fields.members(item, "chunks", _CHUNK_OF_BATCHES if of_batches else _CHUNK)
    return ChunkDigest(
        leaf_hash=fields.hex_digest(chunk["leaf_hash"], "chunks.leaf_hash"),
        bytes=cast("int", chunk["bytes"]),
        rows=cast("int", chunk["rows"]),
        records=fields.integer(chunk["records"], "chunks.records", minimum=1) if of_batches else None,
    )
