"""A version described in Croissant 1.1 JSON-LD (MLCommons), from its signed manifest and what the service knows.

Croissant has no place for a signature: the document names the signed manifest as a
file with its digest, and the records as what that file contains. Whoever holds it
still verifies the manifest.

If this fails: a catalogue describes a version wrongly; nothing is read by it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from casemate.signing.statements import DATASET_MANIFEST_TYPE

if TYPE_CHECKING:
    from casemate.signing.statements import Column, DatasetManifest
    from services.datasets.pull import ReadableVersion

CONFORMS_TO: Final = "http://mlcommons.org/croissant/1.1"

_CROISSANT_TERMS: Final = (
    *("annotation", "arrayShape", "citeAs", "column", "containedIn", "equivalentProperty", "excludes", "extract"),
    *("field", "fileObject", "fileProperty", "fileSet", "format", "includes", "isArray", "isLiveDataset", "jsonPath"),
    *("key", "md5", "parentField", "path", "readLines", "recordSet", "references", "regex", "repeated", "replace"),
    *("samplingRate", "sdVersion", "separator", "source", "subField", "transform", "unArchive", "value"),
)
_CONTEXT: Final[dict[str, object]] = {
    "@language": "en",
    # With "https", as the reference implementation and published documents have it.
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "prov": "http://www.w3.org/ns/prov#",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{term: f"cr:{term}" for term in _CROISSANT_TERMS},
}
_TYPES: Final = {
    "integer": "sc:Integer",
    "number": "sc:Float",
    "text": "sc:Text",
    "boolean": "sc:Boolean",
    "timestamp": "sc:DateTime",
    "vector": "sc:Float",
}
_MEDIA_TYPES: Final = {
    "csv": "text/csv",
    "jsonl": "application/jsonlines",
    "arrow": "application/vnd.apache.arrow.stream",
}


def croissant(readable: ReadableVersion, *, service: str) -> bytes:
    """The document of a version.

    Args:
        readable: the version.
        service: name of the datasets service, which gives the rows.
    """
    manifest, upload = readable.manifest.manifest, readable.upload
    url = _url(service, "GetVersion", manifest)
    found: dict[str, object] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "@id": _identifier(manifest, manifest.version, manifest.root),
        "conformsTo": CONFORMS_TO,
        "name": manifest.dataset,
        "description": (
            f"Version {manifest.version} of {manifest.tenant}/{manifest.dataset}: {manifest.rows} rows in "
            f"{len(manifest.chunks)} signed batches, RFC 6962 root {manifest.root.hex()}."
        ),
        "license": {"@type": "sc:CreativeWork", "name": "not stated in the signed manifest"},
        "url": url,
        "creator": {"@type": "sc:Organization", "name": manifest.tenant, "identifier": upload.signer_key_id},
        "datePublished": readable.promoted_at.isoformat(),
        "version": f"{manifest.version}.0.0",
        "isLiveDataset": False,
        "distribution": _distribution(readable, service=service),
        "recordSet": [_records(manifest)],
    }
    if manifest.previous_root is not None:
        found["prov:wasDerivedFrom"] = {"@id": _identifier(manifest, manifest.version - 1, manifest.previous_root)}
    return json.dumps(found, ensure_ascii=False, indent=1).encode()


def _distribution(readable: ReadableVersion, *, service: str) -> list[dict[str, object]]:
    manifest = readable.manifest.manifest
    return [
        {
            "@type": "cr:FileObject",
            "@id": "manifest",
            "name": "manifest.json",
            "description": "The statement that the supplier signed: digests of all batches, and their root.",
            "contentUrl": _url(service, "GetVersion", manifest),
            "encodingFormat": DATASET_MANIFEST_TYPE,
            "sha256": readable.manifest.payload_sha256.hex(),
        },
        {
            "@type": "cr:FileObject",
            "@id": "records",
            "name": f"{manifest.dataset}.{manifest.format}",
            "description": "The records, whose batches the manifest has the digests of.",
            "containedIn": {"@id": "manifest"},
            "contentUrl": _url(service, "PullDataset", manifest),
            "contentSize": f"{manifest.bytes} B",
            "encodingFormat": _MEDIA_TYPES[manifest.format],
        },
    ]


def _records(manifest: DatasetManifest) -> dict[str, object]:
    return {
        "@type": "cr:RecordSet",
        "@id": "rows",
        "name": "rows",
        "field": [_field(column, encoding=manifest.format) for column in manifest.schema],
    }


def _field(column: Column, *, encoding: str) -> dict[str, object]:
    extract = {"jsonPath": f"$.{column.name}"} if encoding == "jsonl" else {"column": column.name}
    found: dict[str, object] = {
        "@type": "cr:Field",
        "@id": f"rows/{column.name}",
        "name": column.name,
        "dataType": _TYPES.get(column.type, "sc:Text"),
        "source": {"fileObject": {"@id": "records"}, "extract": extract},
    }
    if column.type == "vector":
        found |= {"isArray": True, "arrayShape": "-1"}
    return found


def _identifier(manifest: DatasetManifest, version: int, root: bytes) -> str:
    """Of a version. The root alone would not do: one with the bytes of the one before it would derive from itself."""
    return f"urn:casemate:version:{manifest.tenant}:{manifest.dataset}:{version}:{root.hex()}"


def _url(service: str, method: str, manifest: DatasetManifest) -> str:
    names = urlencode({"tenant": manifest.tenant, "dataset": manifest.dataset, "version": manifest.version})
    return f"https://{service}/casemate.datasets.v1.DatasetService/{method}?{names}"
