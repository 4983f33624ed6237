"""Croissant 1.1: every property that the specification requires, and what it says of signed batches."""

from __future__ import annotations

import json

import pytest

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import NotFound
from casemate.signing.statements import Column
from tests.services.datasets.world import manifest_of, our_errors

REQUIRED = {
    *("@context", "@type", "conformsTo", "description", "license", "name", "url", "creator", "datePublished"),
    "distribution",
}
"""Croissant 1.1, "Dataset-level Information": required, and made required."""

COLUMNS = (
    Column(name="id", type="integer"),
    Column(name="x", type="number", nullable=True),
    Column(name="at", type="timestamp"),
    Column(name="v", type="vector"),
    Column(name="raw", type="json"),
)
LINE = b'{"id":1,"x":null,"at":"2026-01-01T00:00:00Z","v":[1],"raw":{}}\n'


async def described(actor, **named) -> dict:
    with our_errors():
        request = messages.GetCroissantRequest(dataset="digits", **named)
        return json.loads((await actor.datasets.GetCroissant(request, metadata=actor.metadata)).json_ld)


async def test_a_version_is_described_with_all_that_croissant_requires(world):
    actor = world.actor()
    manifest = manifest_of((LINE,), format="jsonl", schema=COLUMNS)
    root = (await actor.push_all(world.signed(manifest), (LINE,))).root
    await actor.push_all(
        world.signed(manifest_of((LINE,), format="jsonl", schema=COLUMNS, version=2, previous_root=root)), (LINE,)
    )

    found = await described(actor, label="latest")

    assert found.keys() >= REQUIRED
    assert found["@type"] == "sc:Dataset"
    assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    context = found["@context"]
    assert (context["@vocab"], context["cr"]) == ("https://schema.org/", "http://mlcommons.org/croissant/")
    assert (found["name"], found["version"], found["creator"]["name"]) == ("digits", "2.0.0", "acme")
    first = await described(actor, version=1)
    assert found["prov:wasDerivedFrom"] == {"@id": first["@id"]}
    assert found["@id"] != first["@id"], "of the same bytes, and another version all the same: none derives from itself"
    assert root.hex() in first["@id"]
    assert "prov:wasDerivedFrom" not in first
    signed, records = found["distribution"]
    assert {file["@type"] for file in (signed, records)} == {"cr:FileObject"}
    assert len(bytes.fromhex(signed["sha256"])) == 32
    assert (records["containedIn"], records["encodingFormat"]) == ({"@id": "manifest"}, "application/jsonlines")
    assert records["contentSize"] == f"{len(LINE)} B"
    fields = found["recordSet"][0]["field"]
    assert [(field["@id"], field["dataType"]) for field in fields] == [
        ("rows/id", "sc:Integer"),
        ("rows/x", "sc:Float"),
        ("rows/at", "sc:DateTime"),
        ("rows/v", "sc:Float"),
        ("rows/raw", "sc:Text"),
    ]
    assert (fields[3]["isArray"], fields[3]["arrayShape"]) == (True, "-1")
    assert {field["source"]["fileObject"]["@id"] for field in fields} == {"records"}
    assert identifiers(found) == {"manifest", "records", "rows", *(field["@id"] for field in fields), found["@id"]}


def identifiers(node: object) -> set[str]:
    """Every `@id` that is defined, each once: an object with an `@id` alone is a reference."""
    found: set[str] = set()
    if isinstance(node, dict):
        if "@id" in node and "@type" in node and not node["@id"].startswith("cr:"):
            assert node["@id"] not in found
            found.add(node["@id"])
        for name, member in node.items():
            if name != "@context":
                found |= identifiers(member)
    elif isinstance(node, list):
        for member in node:
            found |= identifiers(member)
    return found


async def test_a_stranger_and_an_absent_version_get_no_description(world):
    actor = world.actor()
    await actor.push_all(world.signed())
    assert (await described(actor))["name"] == "digits"
    with pytest.raises(NotFound):
        await described(actor, version=2)
    with pytest.raises(NotFound):
        await described(world.actor(tenant="globex"))
