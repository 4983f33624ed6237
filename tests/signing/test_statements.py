"""Statements: what a manifest must agree with, and how strictly it is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import CasemateError, InvalidRequest, Reason
from casemate.signing import merkle
from casemate.signing.dataset_manifest import MAXIMUM_CHUNK_BYTES, MAXIMUM_CHUNK_ROWS, MAXIMUM_CHUNKS
from casemate.signing.keys import SigningKey
from casemate.signing.statements import (
    ChunkDigest,
    Column,
    DatasetManifest,
    FileDigest,
    ModelManifest,
    sign_dataset_manifest,
)


def refused_field(call, *arguments, **keywords) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        call(*arguments, **keywords)
    assert refusal.value.reason is Reason.MANIFEST_INVALID
    return refusal.value.violations[0].field


def test_a_dataset_manifest_survives_its_statement(manifest):
    assert DatasetManifest.parse(manifest.to_statement()) == manifest
    first = replace(manifest, version=1, previous_root=None)
    assert DatasetManifest.parse(first.to_statement()) == first


def test_a_model_manifest_survives_its_statement(model_manifest):
    parsed = ModelManifest.parse(model_manifest.to_statement())
    assert parsed == model_manifest
    assert hash(parsed) == hash(model_manifest)
    untrained = replace(model_manifest, dataset_roots=(), metrics={})
    assert ModelManifest.parse(untrained.to_statement()) == untrained


def test_a_statement_is_in_toto_v1_in_canonical_json(manifest, model_manifest):
    for statement in (manifest.to_statement(), model_manifest.to_statement()):
        members = json.loads(statement)
        assert members["_type"] == "https://in-toto.io/Statement/v1"
        assert json.dumps(members, sort_keys=True, separators=(",", ":")).encode() == statement
    assert json.loads(manifest.to_statement())["subject"] == [
        {"name": "dataset/digits", "digest": {"rfc6962Sha256": manifest.root.hex()}}
    ]
    assert json.loads(model_manifest.to_statement())["subject"][0] == {
        "name": "model.onnx",
        "digest": {"sha256": hashlib.sha256(b"weights").hexdigest()},
    }


def test_a_chunk_digest_is_the_leaf_of_whole_records():
    data = b"1,2\n3,4\n"
    assert ChunkDigest.of(data) == ChunkDigest(leaf_hash=merkle.leaf_hash(data), bytes=8, rows=2)
    for wrong in (b"", b"1,2", b"1,2\n3", b"\n" * (MAXIMUM_CHUNK_BYTES + 1)):
        refused_field(ChunkDigest.of, wrong)


def test_times_are_kept_in_utc_and_whole_seconds(manifest):
    there = datetime(2026, 11, 23, 15, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    kept = replace(manifest, expires_at=there).expires_at
    assert kept == datetime(2026, 11, 23, 13, 0, tzinfo=UTC)
    assert kept.tzinfo is UTC
    for wrong in (datetime(2026, 11, 23), datetime.max.replace(tzinfo=timezone(-timedelta(hours=2))), "2026"):  # noqa: DTZ001
        assert refused_field(replace, manifest, expires_at=wrong) == "expires_at"


def test_the_schema_digest_changes_with_format_and_columns_only(manifest):
    assert replace(manifest, upload_id="f" * 16).schema_sha256 == manifest.schema_sha256
    assert replace(manifest, format="csv").schema_sha256 != manifest.schema_sha256
    assert replace(manifest, schema=manifest.schema[:1]).schema_sha256 != manifest.schema_sha256
    assert replace(manifest, schema=manifest.schema[::-1]).schema_sha256 != manifest.schema_sha256


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audience", "Datasets"),
        ("tenant", ""),
        ("tenant", "../acme"),
        ("tenant", "acme\n"),
        ("tenant", "a" * 64),
        ("tenant", "аcme"),  # noqa: RUF001  # a Cyrillic letter is the point
        ("dataset", "a/b"),
        ("dataset", "*"),
        ("version", 0),
        ("version", True),
        ("version", 1.0),
        ("version", 2**53),
        ("version", 1),
        ("previous_root", None),
        ("previous_root", bytes(31)),
        ("format", "parquet"),
        ("schema", ()),
        ("rows", 13),
        ("rows", 12.0),
        ("bytes", 1),
        ("chunks", ()),
        ("root", bytes(32)),
        ("root", bytes(33)),
        ("upload_id", "short"),
    ],
)
def test_a_dataset_manifest_that_is_wrong_in_one_field_is_refused(manifest, field, value):
    refused = refused_field(replace, manifest, **{field: value})
    assert refused == field or {refused, field} == {"version", "previous_root"}


def test_chunks_that_do_not_add_up_are_refused(manifest):
    assert refused_field(replace, manifest, chunks=manifest.chunks[:2]) == "rows"
    assert refused_field(replace, manifest, chunks=manifest.chunks[::-1]) == "root"


def test_more_chunks_than_the_limit_are_refused_and_the_limit_fits_an_envelope(manifest):
    chunk = ChunkDigest(leaf_hash=bytes(32), bytes=MAXIMUM_CHUNK_BYTES, rows=MAXIMUM_CHUNK_ROWS)
    columns = tuple(Column(name=f"{'c' * 58}{n:04}", type="integer", minimum=-(2**53) + 1) for n in range(4096))
    most = replace(
        manifest,
        chunks=(chunk,) * MAXIMUM_CHUNKS,
        schema=columns,
        rows=MAXIMUM_CHUNKS * MAXIMUM_CHUNK_ROWS,
        bytes=MAXIMUM_CHUNKS * MAXIMUM_CHUNK_BYTES,
        root=merkle.root([chunk.leaf_hash] * MAXIMUM_CHUNKS),
    )
    assert sign_dataset_manifest(most, SigningKey.generate())
    assert DatasetManifest.parse(most.to_statement()) == most
    assert refused_field(replace, most, chunks=(chunk,) * (MAXIMUM_CHUNKS + 1)) == "chunks"
    assert refused_field(replace, most, schema=(*columns, Column(name="one", type="text"))) == "schema"


@pytest.mark.parametrize(
    "values",
    [
        {"name": "1a", "type": "integer"},
        {"name": "", "type": "integer"},
        {"name": "a", "type": "float"},
        {"name": "a", "type": []},
        {"name": "a", "type": "text", "minimum": 1},
        {"name": "a", "type": "integer", "minimum": 0.5},
        {"name": "a", "type": "integer", "minimum": 2, "maximum": 1},
        {"name": "a", "type": "integer", "maximum": 2**53},
        {"name": "a", "type": "number", "maximum": float("inf")},
        {"name": "a", "type": "number", "maximum": float("nan")},
        {"name": "a", "type": "number", "minimum": True},
    ],
)
def test_a_wrong_column_is_refused(values):
    assert refused_field(Column, **values).startswith("schema")


def test_right_columns_are_taken_and_two_of_one_name_refused(manifest):
    columns = (
        Column(name="a", type="integer", minimum=0, maximum=0),
        Column(name="b", type="number", minimum=-0.5, maximum=1),
        Column(name="c", type="text"),
    )
    assert DatasetManifest.parse(replace(manifest, schema=columns).to_statement()).schema == columns
    assert refused_field(replace, manifest, schema=(*columns, columns[0])) == "schema"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "Digits"),
        ("number", 0),
        ("files", ()),
        ("files", (FileDigest.of("a", b"1"), FileDigest.of("A", b"2"))),
        ("files", tuple(FileDigest.of(f"f{n}", b"1") for n in range(65))),
        ("dataset_roots", (bytes(31),)),
        ("dataset_roots", (bytes(32), bytes(32))),
        ("dataset_roots", tuple(n.to_bytes(32, "big") for n in range(257))),
        ("metrics", {"accuracy": float("nan")}),
        ("metrics", {"accuracy": True}),
        ("metrics", {"accuracy": 10**400}),
        ("metrics", {"": 1.0}),
        ("metrics", {f"m{n}": 1.0 for n in range(65)}),
        ("metrics", [1.0]),
    ],
    ids=str,
)
def test_a_model_manifest_that_is_wrong_in_one_field_is_refused(model_manifest, field, value):
    assert refused_field(replace, model_manifest, **{field: value}) == field


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b", ".hidden", "", "a\0b", "model.onnx\n"])
def test_a_file_name_that_is_a_path_is_refused(name):
    assert refused_field(FileDigest.of, name, b"x") == "files.name"


def test_metrics_cannot_be_changed_afterwards(model_manifest):
    with pytest.raises(TypeError):
        model_manifest.metrics["accuracy"] = 1.0


def edited(statement: bytes, *path: str | int, value: object = None, remove: bool = False) -> bytes:
    members = json.loads(statement)
    at = members
    for step in path[:-1]:
        at = at[step]
    if remove:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(members).encode()


def test_a_missing_unknown_or_repeated_field_is_refused(manifest, model_manifest):
    for kind, value in ((DatasetManifest, manifest), (ModelManifest, model_manifest)):
        statement = value.to_statement()
        assert kind.parse(edited(statement, "predicate", "tenant", value="acme")) == value
        for name in json.loads(statement)["predicate"]:
            missing = edited(statement, "predicate", name, remove=True)
            assert refused_field(kind.parse, missing) == f"predicate.{name}"
        assert refused_field(kind.parse, edited(statement, "predicate", "extra", value=1)) == "predicate"
        assert refused_field(kind.parse, edited(statement, "extra", value=1)) == "statement"
        twice = statement.replace(b'"tenant":"acme"', b'"tenant":"acme","tenant":"acme"')
        assert refused_field(kind.parse, twice) == "statement"


def test_a_subject_or_type_that_disagrees_is_refused(manifest, model_manifest):
    for kind, value in ((DatasetManifest, manifest), (ModelManifest, model_manifest)):
        statement = value.to_statement()
        assert refused_field(kind.parse, edited(statement, "_type", value="v0")) == "_type"
        assert refused_field(kind.parse, edited(statement, "predicateType", value="x")) == "predicateType"
        assert refused_field(kind.parse, edited(statement, "subject", value=[])) == "subject"
        assert refused_field(kind.parse, edited(statement, "subject", 0, "name", value="x")) == "subject"
    refused_field(ModelManifest.parse, manifest.to_statement())
    refused_field(DatasetManifest.parse, model_manifest.to_statement())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("root",), "AB" * 32),
        (("root",), "ab" * 31),
        (("expires_at",), "2026-11-23T12:00:00+00:00"),
        (("expires_at",), "2026-02-30T12:00:00Z"),
        (("expires_at",), "２026-11-23T12:00:00Z"),  # noqa: RUF001  # a digit that is not ASCII
        (("format",), ["csv"]),
        (("chunks",), {}),
        (("chunks", 0, "rows"), "3"),
        (("chunks", 0, "bytes"), 0),
        (("chunks", 0), []),
        (("schema", 0, "minimum"), "0"),
        (("schema", 0), {"name": "a", "type": "integer"}),
    ],
)
def test_a_field_of_the_wrong_type_or_form_is_refused(manifest, path, value):
    refused_field(DatasetManifest.parse, edited(manifest.to_statement(), "predicate", *path, value=value))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_our_errors(data):
    for kind in (DatasetManifest, ModelManifest):
        with pytest.raises(CasemateError):
            kind.parse(data)


@given(value=json_values, data=st.data())
def test_any_value_in_any_field_raises_only_our_errors(manifest_statements, value, data):
    kind, statement = data.draw(st.sampled_from(manifest_statements))
    path = data.draw(st.sampled_from(list(paths(json.loads(statement)))))
    try:
        parsed = kind.parse(edited(statement, *path, value=value))
    except CasemateError:
        return
    assert kind.parse(parsed.to_statement()) == parsed


@pytest.fixture(scope="module")
def manifest_statements() -> list[tuple[type, bytes]]:
    chunk = ChunkDigest.of(b"1\n")
    expires_at = datetime(2026, 11, 23, tzinfo=UTC)
    common = {"audience": "a", "tenant": "t", "expires_at": expires_at}
    dataset = DatasetManifest(
        **common,
        dataset="d",
        version=1,
        previous_root=None,
        format="csv",
        schema=(Column(name="a", type="number"),),
        rows=1,
        bytes=2,
        chunks=(chunk,),
        root=chunk.leaf_hash,
        upload_id="f" * 16,
    )
    model = ModelManifest(
        **common, model="m", number=1, files=(FileDigest.of("f", b"x"),), dataset_roots=(bytes(32),), metrics={"a": 1.0}
    )
    return [(DatasetManifest, dataset.to_statement()), (ModelManifest, model.to_statement())]


def paths(value: object, before: tuple = ()):
    """Every place in a JSON value, but the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in items:
        yield (*before, step)
        yield from paths(inner, (*before, step))
