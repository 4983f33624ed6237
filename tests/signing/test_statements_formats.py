"""Columns and formats in a manifest: what may be declared, and that older manifests mean what they meant."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from casemate.errors import InvalidRequest, Reason
from casemate.signing import merkle, strict_json
from casemate.signing.columns import MAXIMUM_CATEGORIES
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_ROWS, MAXIMUM_CHUNKS
from casemate.signing.framing import MAXIMUM_ROW_RECORDS, join_rows
from casemate.signing.keys import SigningKey
from casemate.signing.statements import ChunkDigest, Column, DatasetManifest, sign_dataset_manifest

COLUMNS = (
    Column(name="label", type="text", categories=("cat", "dog"), nullable=True),
    Column(name="width", type="integer", storage="uint8", minimum=0, maximum=200),
    Column(name="weight", type="number", storage="float32"),
    Column(name="seen", type="boolean"),
    Column(name="image", type="bytes"),
    Column(name="at", type="timestamp", nullable=True),
    Column(name="embedding", type="vector", storage="float32", minimum=-1, maximum=1),
    Column(name="turns", type="json"),
)


def arrow(manifest: DatasetManifest) -> DatasetManifest:
    chunks = tuple(replace(chunk, records=chunk.rows * 7) for chunk in manifest.chunks)
    return replace(manifest, format="arrow", schema=COLUMNS, chunks=chunks)


def refused_field(call, *arguments, **keywords) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        call(*arguments, **keywords)
    assert refusal.value.reason is Reason.MANIFEST_INVALID
    return refusal.value.violations[0].field


def test_an_arrow_manifest_with_every_kind_of_column_survives_its_statement(manifest):
    whole = arrow(manifest)
    assert DatasetManifest.parse(whole.to_statement()) == whole
    assert whole.records == 7 * whole.rows


def test_a_manifest_of_before_has_the_statement_and_the_schema_digest_that_it_had(manifest):
    """Rows that were sealed to the digest would otherwise not open."""
    schema = (Column(name="a", type="integer", minimum=0), Column(name="b", type="text"))
    older = [
        {"maximum": None, "minimum": 0, "name": "a", "type": "integer"},
        {"maximum": None, "minimum": None, "name": "b", "type": "text"},
    ]
    said = strict_json.canonical({"format": "csv", "schema": older})
    assert replace(manifest, format="csv", schema=schema).schema_sha256 == hashlib.sha256(said).digest()
    assert b'"records"' not in manifest.to_statement()


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"type": "text", "minimum": 0}, "schema.minimum"),
        ({"type": "boolean", "maximum": 1}, "schema.minimum"),
        ({"type": "integer", "categories": ("a",)}, "schema.categories"),
        ({"type": "text", "categories": ()}, "schema.categories"),
        ({"type": "text", "categories": ("a", "a")}, "schema.categories"),
        ({"type": "text", "categories": ("a" * 257,)}, "schema.categories"),
        ({"type": "text", "categories": (1,)}, "schema.categories"),
        ({"type": "text", "categories": tuple(map(str, range(MAXIMUM_CATEGORIES + 1)))}, "schema.categories"),
        ({"type": "text", "nullable": 1}, "schema.nullable"),
        ({"type": "text", "storage": "utf8"}, "schema.storage"),
        ({"type": "integer", "storage": "float32"}, "schema.storage"),
        ({"type": "list"}, "schema.type"),
    ],
)
def test_a_column_that_means_nothing_is_refused_by_field(values, field):
    assert refused_field(Column, name="c", **values) == field
    assert Column(name="c", type="text", categories=("a",), nullable=True)


def test_a_format_takes_only_what_it_has_a_form_for(manifest):
    whole = arrow(manifest)
    vector, width = (Column(name="v", type="vector"),), (Column(name="w", type="integer", storage="int8"),)
    assert replace(manifest, format="jsonl", schema=vector)
    assert refused_field(replace, manifest, format="csv", schema=vector) == "schema.type"
    assert refused_field(replace, manifest, format="jsonl", schema=width) == "schema.storage"
    assert refused_field(replace, whole, format="jsonl", schema=vector) == "chunks.records"
    assert refused_field(replace, manifest, format="arrow") == "chunks.records"
    assert refused_field(replace, manifest, format="parquet") == "format"
    many = tuple(
        Column(name=f"c{n}", type="text", categories=tuple(map(str, range(MAXIMUM_CATEGORIES)))) for n in range(11)
    )
    assert replace(manifest, schema=many[:10])
    assert refused_field(replace, manifest, schema=many) == "schema.categories"


def test_a_chunk_lies_about_its_records_within_what_its_rows_can_hold_only():
    chunk = ChunkDigest(leaf_hash=bytes(32), bytes=100, rows=2, records=2 * MAXIMUM_ROW_RECORDS)
    assert chunk.record_count == 2 * MAXIMUM_ROW_RECORDS
    for records in (1, 2 * MAXIMUM_ROW_RECORDS + 1):
        assert refused_field(replace, chunk, records=records) == "chunks.records"
    assert replace(chunk, records=None).record_count == 2


def test_the_most_chunks_of_arrow_fit_an_envelope(manifest):
    chunk = ChunkDigest(
        leaf_hash=bytes(32), bytes=8 << 20, rows=MAXIMUM_CHUNK_ROWS, records=MAXIMUM_CHUNK_ROWS * MAXIMUM_ROW_RECORDS
    )
    most = replace(
        arrow(manifest),
        chunks=(chunk,) * MAXIMUM_CHUNKS,
        rows=MAXIMUM_CHUNKS * chunk.rows,
        bytes=MAXIMUM_CHUNKS * chunk.bytes,
        root=merkle.root([chunk.leaf_hash] * MAXIMUM_CHUNKS),
    )
    assert sign_dataset_manifest(most, SigningKey.generate())
    assert DatasetManifest.parse(most.to_statement()) == most


def test_rows_join_to_the_bytes_that_are_signed():
    assert join_rows([b"a", b"b"], encoding="csv") == b"a\nb\n"
    assert join_rows([b"{}"], encoding="jsonl") == b"{}\n"
    assert join_rows([b"a", b"b"], encoding="arrow") == b"ab"
