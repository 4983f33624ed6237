"""Holds manifests of operators' kinds, and compose files, to those projects' own schemas. Asks nothing of the network.

`check.py compose FILE…` or `check.py kubernetes FILE…`. Kinds of Kubernetes itself are judged elsewhere
(`deploy/check-manifests`); any other kind without a schema here fails. Exits 1 and says what does not hold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

HERE = Path(__file__).parent
OWN = ("", "apps", "batch", "autoscaling", "policy")
"""Groups of Kubernetes's own kinds, beside those below k8s.io."""


def main(what: str, files: list[str]) -> int:
    """The exit status."""
    judge = compose if what == "compose" else kubernetes
    judged, found = 0, []
    for file in files:
        for name, errors in judge(Path(file)):
            judged += 1
            found += [f"{file}: {name}: {error}" for error in errors]
    print("\n".join(found) or f"{what}: {judged} hold to their projects' own schemas")
    return 1 if found or not judged else 0


def compose(file: Path) -> Iterator[tuple[str, list[str]]]:
    """A compose file, as compose v2 reads it."""
    schema = json.loads((HERE / "compose-spec.json").read_text())
    document = yaml.safe_load(file.read_text())
    errors = jsonschema.Draft7Validator(schema).iter_errors(document)
    yield file.name, [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


def kubernetes(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Each object of an operator's kind in a rendered file."""
    for manifest in yaml.safe_load_all(file.read_text()):
        group, _, version = manifest["apiVersion"].rpartition("/")
        if group in OWN or group.endswith(".k8s.io"):
            continue
        name = f"{manifest['kind']}/{manifest['metadata']['name']}"
        schema = schema_of(group, version, manifest["kind"])
        if schema is None:
            yield name, [f"no schema of {manifest['apiVersion']} {manifest['kind']}: add it to deploy/schemas"]
            continue
        errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
        yield name, [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in errors]


@cache
def schema_of(group: str, version: str, kind: str) -> dict[str, Any] | None:
    """The schema of a kind, strict about names that it does not know; an API server would drop those in silence."""
    file = HERE / f"{group}_{version}_{kind}.json"
    if not file.exists():
        return None
    schema: dict[str, Any] = strict(json.loads(file.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def strict(schema: Any) -> Any:  # noqa: ANN401  # any part of a JSON document
    """The same schema in JSON Schema's own words, and closed."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(one) for key, one in schema.items()}
    if closed.pop("x-kubernetes-int-or-string", False):
        closed["type"] = ["integer", "string"]
    if closed.pop("nullable", False) and isinstance(closed.get("type"), str):
        closed["type"] = [closed["type"], "null"]
    if isinstance(closed.get("properties"), dict) and not closed.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
