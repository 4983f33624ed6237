"""What a publisher signs about one version of a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from casemate.signing import fields
from casemate.signing.statement import open_statement, write_statement
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from datetime import datetime

MODEL_PREDICATE: Final = "urn:casemate:model-manifest:v1"

Data: TypeAlias = bytes  # `bytes` is a field's name below

MAXIMUM_FILES: Final = 64
MAXIMUM_ROOTS: Final = 256
MAXIMUM_METRICS: Final = 64

_FILE: Final = frozenset({"name", "sha256", "bytes"})
_PREDICATE: Final = frozenset(
    {
        "audience",
        "tenant",
        "model",
        "number",
        "files",
        "dataset_roots",
        "metrics",
        "expires_at",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """One file of a model, in plaintext.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """

    name: str
    sha256: Data
    bytes: int

    def __post_init__(self) -> None:
        fields.text(self.name, "files.name", fields.FILE_NAME)
        fields.digest(self.sha256, "files.sha256")
        fields.integer(self.bytes, "files.bytes", minimum=1)

    @classmethod
    def of(cls, name: str, data: Data) -> FileDigest:
        """The digest of a file's bytes."""
        return cls(name=name, sha256=hashlib.sha256(data).digest(), bytes=len(data))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelManifest:
    """One version of a model: its files, and the datasets that it was trained on.

    Attributes:
        audience: the service that it is meant for, as `inference`.
        number: the version, counted from 1.
        files: in the order in which they are sent.
        dataset_roots: RFC 6962 roots of the training data; none for a model trained elsewhere.
        metrics: what the publisher measured; finite.
        expires_at: when it may no longer be published; cut to whole seconds.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`, naming the field.
    """

    audience: str
    tenant: str
    model: str
    number: int
    files: tuple[FileDigest, ...]
    dataset_roots: tuple[Data, ...]
    metrics: Mapping[str, float] = field(hash=False)
    expires_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "expires_at", fields.moment(self.expires_at, "expires_at"))
        fields.text(self.audience, "audience", fields.AUDIENCE)
        fields.text(self.tenant, "tenant", fields.NAME)
        fields.text(self.model, "model", fields.NAME)
        fields.integer(self.number, "number", minimum=1)
        fields.count(self.files, "files", minimum=1, maximum=MAXIMUM_FILES)
        if len({file.name.casefold() for file in self.files}) != len(self.files):
            raise invalid("files", "names a file twice")  # some disks do not tell cases apart
        fields.count(self.dataset_roots, "dataset_roots", maximum=MAXIMUM_ROOTS)
        for root in self.dataset_roots:
            fields.digest(root, "dataset_roots")
        if len(set(self.dataset_roots)) != len(self.dataset_roots):
            raise invalid("dataset_roots", "names a root twice")
        self._freeze_metrics()

    def _freeze_metrics(self) -> None:
        if not isinstance(self.metrics, Mapping) or len(self.metrics) > MAXIMUM_METRICS:
            raise invalid("metrics", "is not an object of at most 64 numbers")
        metrics = {
            fields.text(name, "metrics", fields.COLUMN_NAME): fields.number(value, "metrics")
            for name, value in self.metrics.items()
        }
        object.__setattr__(self, "metrics", MappingProxyType(metrics))

    def to_statement(self) -> Data:
        """The in-toto Statement v1 that is signed. Equal manifests give equal bytes."""
        predicate: dict[str, object] = {
            "audience": self.audience,
            "tenant": self.tenant,
            "model": self.model,
            "number": self.number,
            "files": [{"name": f.name, "sha256": f.sha256.hex(), "bytes": f.bytes} for f in self.files],
            "dataset_roots": [root.hex() for root in self.dataset_roots],
            "metrics": dict(self.metrics),
            "expires_at": fields.format_moment(self.expires_at),
        }
        return write_statement(MODEL_PREDICATE, self._subject(), predicate)

    def _subject(self) -> list[object]:
        return [{"name": file.name, "digest": {"sha256": file.sha256.hex()}} for file in self.files]

    @classmethod
    def parse(cls, payload: Data) -> ModelManifest:
        """The manifest in a statement. Parsing is not verification.

        Raises:
            InvalidRequest: `MANIFEST_INVALID`; unknown, missing or repeated fields, wrong types or limits.
        """
        subject, predicate = open_statement(payload, MODEL_PREDICATE, _PREDICATE)
        roots = fields.array(predicate["dataset_roots"], "dataset_roots")
        manifest = cls(
            # The casts are checked by the constructor, which trusts no type.
            audience=cast("str", predicate["audience"]),
            tenant=cast("str", predicate["tenant"]),
            model=cast("str", predicate["model"]),
            number=cast("int", predicate["number"]),
            files=tuple(_file_in(item) for item in fields.array(predicate["files"], "files")),
            dataset_roots=tuple(fields.hex_digest(root, "dataset_roots") for root in roots),
            metrics=cast("Mapping[str, float]", predicate["metrics"]),
            expires_at=fields.parse_moment(predicate["expires_at"], "expires_at"),
        )
        if subject != manifest._subject():
            raise invalid("subject", "is not the files that the manifest names")
        return manifest


def _file_in(item: object) -> FileDigest:
    file = fields.members(item, "files", _FILE)
    return FileDigest(
        name=cast("str", file["name"]),
        sha256=fields.hex_digest(file["sha256"], "files.sha256"),
        bytes=cast("int", file["bytes"]),
    )
