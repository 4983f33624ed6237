"""A tenant with its keys, and manifests that are right in everything."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings

from casemate.signing import merkle
from casemate.signing.statements import ChunkDigest, Column, DatasetManifest, FileDigest, ModelManifest
from tests.signing.desks import NOW, Desk, desk

# Nothing is judged by wall time, and nothing is written beside the tests.
settings.register_profile("signing", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("signing")


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def supplier() -> Desk:
    return desk("supplier")


@pytest.fixture
def publisher() -> Desk:
    return desk("publisher")


@pytest.fixture
def manifest() -> DatasetManifest:
    chunks = tuple(ChunkDigest.of(b'{"a":1,"b":"x"}\n' * n) for n in (3, 4, 5))
    return DatasetManifest(
        audience="datasets",
        tenant="acme",
        dataset="digits",
        version=2,
        previous_root=bytes(32),
        format="jsonl",
        schema=(Column(name="a", type="integer", minimum=0, maximum=16), Column(name="b", type="text")),
        rows=12,
        bytes=12 * 16,
        chunks=chunks,
        root=merkle.root([chunk.leaf_hash for chunk in chunks]),
        upload_id="0123456789abcdef",
        expires_at=NOW + timedelta(hours=1),
    )


@pytest.fixture
def model_manifest() -> ModelManifest:
    return ModelManifest(
        audience="inference",
        tenant="acme",
        model="digits",
        number=1,
        files=(FileDigest.of("model.onnx", b"weights"), FileDigest.of("labels.txt", b"0123456789")),
        dataset_roots=(bytes(range(32)),),
        metrics={"accuracy": 0.97},
        expires_at=NOW + timedelta(hours=1),
    )
