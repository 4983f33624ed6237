"""KServe's own client, unmodified, over mutual TLS with a token, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.services.inference.house import House
from tests.services.inference.identity import identity
from tests.support.authority import LeafFactory
from tests.support.foreign import INSTALLING, foreign_python

PROGRAM = Path(__file__).with_name("kserve_program.py")
pytestmark = pytest.mark.timeout(INSTALLING)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory) -> dict[str, object]:
    """What KServe's client got."""
    python = foreign_python("kserve")
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    try:
        for name in ("FP32", "FP16", "FP64", "INT64", "BOOL", "BYTES"):
            house.publish({"model.onnx": identity(name)}, model=name.lower())
        arguments = [str(house.service.port), str(house.trainer.directory), house.token(house.trainer)]
        done = subprocess.run([python, PROGRAM, *arguments], capture_output=True, text=True, timeout=120, check=False)
    finally:
        house.close()
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_told_that_server_and_model_are_ready(said: dict[str, object]) -> None:
    assert (said["live"], said["ready"], said["model_ready"], said["server"]) == (True, True, True, "casemate")


@pytest.mark.parametrize("form", ["raw", "typed"])
def test_its_tensors_come_back_as_they_were_sent(said: dict[str, object], form: str) -> None:
    assert said[form] == dict.fromkeys(said[form], True)
    assert set(said["raw"]) - set(said["typed"]) == {"FP16"}


def test_it_loads_and_unloads_by_its_own_messages_and_reads_its_own_answers(said: dict[str, object]) -> None:
    assert said["unloaded"] == ["fp64", True, False]
    assert said["loaded"] == ["fp64", True]
    assert said["inputs"] == [["FP64_in", "FP64", [-1, 3]]]


def test_without_a_token_it_is_refused(said: dict[str, object]) -> None:
    assert said["without_token"] == "UNAUTHENTICATED"
