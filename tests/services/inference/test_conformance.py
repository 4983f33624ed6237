"""The conformance report is what the service answers now. `make conformance` writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.inference.conformance import CALLS, SERVICE, report
from tests.services.inference.house import House
from tests.services.inference.identity import ELEMENTS, identity
from tests.support.authority import LeafFactory

PAGE = Path(__file__).parents[3] / "docs" / "conformance.md"
WRITE = "WRITE_CONFORMANCE"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    for name in ELEMENTS:
        house.publish({"model.onnx": identity(name)}, model=name.lower())
    yield house
    house.close()


def test_the_report_is_what_the_service_answers(house: House) -> None:
    said = report(house)
    assert "OTHERWISE" not in said
    if os.environ.get(WRITE):
        PAGE.write_text(said)
    assert PAGE.read_text() == said, "make conformance writes docs/conformance.md again"


def test_every_rpc_is_tried() -> None:
    assert {*CALLS, "ModelStreamInfer"} == {method.name for method in SERVICE.methods}
    assert len(SERVICE.methods) == 20
