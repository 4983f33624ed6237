"""The UCI handwritten digits: 1,797 images of 8 × 8, which ship inside scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split

from casemate.signing.statements import Column

PIXELS = 64
HELD_OUT = 360
"""Images that no supplier ever sends: what a caller asks about."""

SHADES = " ░▒▓█"

SCHEMA = (
    *(Column(name=f"pixel_{index:02}", type="integer", minimum=0, maximum=16) for index in range(PIXELS)),
    Column(name="digit", type="integer", minimum=0, maximum=9),
)


@dataclass(frozen=True, slots=True)
class Images:
    """Images (n, 64) float32 with values 0 to 16, and the digits (n,) that they show."""

    pixels: NDArray[np.float32]
    digits: NDArray[np.int64]


def split() -> tuple[Images, Images]:
    """The training part and the held-out part, the same on every machine."""
    data = load_digits()
    parts = train_test_split(
        data.data.astype(np.float32),
        data.target.astype(np.int64),
        test_size=HELD_OUT,
        random_state=7,
        stratify=data.target,
    )
    return Images(parts[0], parts[2]), Images(parts[1], parts[3])


def to_records(images: Images) -> list[bytes]:
    """One CSV record an image: 64 pixels and the digit."""
    rows = np.column_stack([images.pixels.astype(np.int64), images.digits])
    return [",".join(map(str, row)).encode() for row in rows.tolist()]


def from_records(records: Sequence[bytes]) -> Images:
    """The images of CSV records."""
    rows = np.array([record.split(b",") for record in records], dtype=np.int64)
    return Images(rows[:, :PIXELS].astype(np.float32), rows[:, PIXELS])


def train(images: Images) -> tuple[bytes, float]:
    """Trains a logistic regression; returns it as ONNX, and its accuracy on a fifth that it did not see."""
    pixels, unseen, digits, answers = train_test_split(
        images.pixels, images.digits, test_size=0.2, random_state=7, stratify=images.digits
    )
    accuracy = float(accuracy_score(answers, _classifier().fit(pixels, digits).predict(unseen)))
    model = convert_sklearn(
        _classifier().fit(images.pixels, images.digits),
        initial_types=[("images", FloatTensorType([None, PIXELS]))],
        target_opset=18,
        options={"zipmap": False},  # probabilities as a tensor
    )
    return model.SerializeToString(), accuracy


def _classifier() -> LogisticRegression:
    return LogisticRegression(C=0.02, max_iter=2000)


def draw(pixels: NDArray[np.float32]) -> str:
    """An image as text, two characters a pixel."""
    rows = pixels.reshape(8, 8)
    return "\n".join("".join(SHADES[min(int(value) * len(SHADES) // 17, 4)] * 2 for value in row) for row in rows)
