"""Models made by the tools that users have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

from tests.services.inference.back_end import LocalServer, Sums
from tests.services.inference.counter import SETTINGS, Counter
from tests.services.inference.house import House
from tests.services.inference.test_upstream import backend
from tests.support.authority import LeafFactory


@dataclass(frozen=True)
class Digits:
    """A small classifier of the digits, and what it says of some of them."""

    onnx: bytes
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


@pytest.fixture(scope="session")
def digits() -> Digits:
    images, labels = load_digits(return_X_y=True)
    classifier = RidgeClassifier().fit(images[:1000], labels[:1000])
    model = convert_sklearn(
        classifier,
        initial_types=[("image", FloatTensorType([None, 64]))],
        options={id(classifier): {"zipmap": False}} if hasattr(classifier, "predict_proba") else None,
        target_opset=17,
    )
    shown = images[1000:1010].astype(np.float32)
    return Digits(model.SerializeToString(), shown, classifier.predict(shown).astype(np.int64))


@pytest.fixture
def house(tmp_path: Path, leaf: LeafFactory) -> Iterator[House]:
    """A service of its own, with nothing published."""
    house = House(directory=tmp_path, leaf=leaf)
    yield house
    house.close()


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def make(sums: Sums, tmp_path: Path, leaf: LeafFactory) -> Iterator[Callable[..., Counter]]:
    """Makes the one counter of a test."""
    server = LocalServer(sums.service(), "127.0.0.1:0", grpc.LocalConnectionType.LOCAL_TCP)
    houses: list[House] = []

    def make(*, deadline: timedelta = SETTINGS.deadline, **serving: object) -> Counter:
        settings = dataclasses.replace(SETTINGS, deadline=deadline)
        known = {"sidecar": backend(f"127.0.0.1:{server.port}")}
        houses.append(House(directory=tmp_path, leaf=leaf, serving=settings, backends=known))
        return Counter(houses[0], sums, **serving)

    yield make
    if sums.hold is not None:
        sums.hold.set()
    for house in houses:
        house.close()
    server.stop()
