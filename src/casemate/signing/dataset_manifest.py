"""What a supplier signs before the first row is sent."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from casemate.signing import fields, merkle, strict_json
from casemate.signing.statement import open_statement, write_statement
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from datetime import datetime

DATASET_PREDICATE: Final = "urn:casemate:dataset-manifest:v1"

Format: TypeAlias = Literal["csv", "jsonl"]
ColumnType: TypeAlias = Literal["integer", "number", "text"]
Digest: TypeAlias = bytes  # `bytes` is a field's name below

MAXIMUM_CHUNK_BYTES: Final = 1 << 20
MAXIMUM_CHUNKS: Final = 20_000  # with 120 bytes each, they fit into an envelope
MAXIMUM_COLUMNS: Final = 4096

_CHUNK: Final = frozenset({"leaf_hash", "bytes", "rows"})
_COLUMN: Final = frozenset({"name", "type", "minimum", "maximum"})
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
class Column:
    """One column; bounds are inclusive, and text has none.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """

    name: str
    type: ColumnType
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        fields.text(self.name, "schema.name", fields.COLUMN_NAME)
        if self.type not in get_args(ColumnType):
            raise invalid("schema.type", "is not integer, number or text")
        bounds = [bound for bound in (self.minimum, self.maximum) if bound is not None]
        if bounds and self.type == "text":
            raise invalid("schema.minimum", "is set on text")
        for bound in bounds:
            if self.type == "integer":
                fields.integer(bound, "schema.minimum", minimum=-fields.MAXIMUM_INTEGER)
            fields.number(bound, "schema.minimum")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise invalid("schema.minimum", "is above the maximum")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDigest:
    """One chunk: its RFC 6962 leaf hash and its size.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """

    leaf_hash: Digest
    bytes: int
    rows: int

    def __post_init__(self) -> None:
        fields.digest(self.leaf_hash, "chunks.leaf_hash")
        fields.integer(self.bytes, "chunks.bytes", minimum=1, maximum=MAXIMUM_CHUNK_BYTES)
        # Each record ends in a line feed, so there are never more records than bytes.
        fields.integer(self.rows, "chunks.rows", minimum=1, maximum=self.bytes)

    @classmethod
    def of(cls, data: Digest) -> ChunkDigest:
        """The digest of a chunk's bytes: whole records, each ended by a line feed.

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
            raise invalid("format", "is not csv or jsonl")
        if (self.previous_root is None) != (self.version == 1):
            raise invalid("previous_root", "is missing, or set on the first version")
        if self.previous_root is not None:
            fields.digest(self.previous_root, "previous_root")
        fields.count(self.schema, "schema", minimum=1, maximum=MAXIMUM_COLUMNS)
        if len({column.name for column in self.schema}) != len(self.schema):
            raise invalid("schema", "names a column twice")
        fields.count(self.chunks, "chunks", minimum=1, maximum=MAXIMUM_CHUNKS)
        self._check_totals()

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
    def schema_sha256(self) -> Digest:
        """SHA-256 of the canonical form of format and columns: what a row is sealed to."""
        shape = {"format": self.format, "schema": [_column_out(column) for column in self.schema]}
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
            "schema": [_column_out(column) for column in self.schema],
            "rows": self.rows,
            "bytes": self.bytes,
            "chunks": [{"leaf_hash": c.leaf_hash.hex(), "bytes": c.bytes, "rows": c.rows} for c in self.chunks],
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
            schema=tuple(_column_in(item) for item in fields.array(predicate["schema"], "schema")),
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


def _column_out(column: Column) -> dict[str, object]:
    return {"name": column.name, "type": column.type, "minimum": column.minimum, "maximum": column.maximum}


def _column_in(item: object) -> Column:
    column = fields.members(item, "schema", _COLUMN)
    return Column(
        name=cast("str", column["name"]),
        type=cast("ColumnType", column["type"]),
        minimum=cast("float | None", column["minimum"]),
        maximum=cast("float | None", column["maximum"]),
    )


def _chunk_in(item: object) -> ChunkDigest:
    chunk = fields.members(item, "chunks", _CHUNK)
    return ChunkDigest(
        leaf_hash=fields.hex_digest(chunk["leaf_hash"], "chunks.leaf_hash"),
        bytes=cast("int", chunk["bytes"]),
        rows=cast("int", chunk["rows"]),
    )
