"""A model is served as long as what it was trained on is not quarantined."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from casemate.errors import CasemateError, Code, FailedPrecondition, Reason, Unavailable
from services.inference.training_data import TrainingData
from tests.services.inference.conftest import Digits
from tests.services.inference.house import TENANT, House

ROOT, OTHER = bytes(32), bytes([1]) * 32
IN_DOUBT = (Code.FAILED_PRECONDITION, Reason.DATASET_UNKNOWN)
NOT_READY = (Code.FAILED_PRECONDITION, Reason.MODEL_NOT_READY)


@pytest.fixture
def served(house: House, digits: Digits) -> House:
    """Version 1 was trained on one dataset, version 2 on another; both are loaded."""
    house.roots.promoted |= {ROOT, OTHER}
    for number, root in ((1, OTHER), (2, ROOT)):
        house.publish({"model.onnx": digits.onnx}, number=number, dataset_roots=(root,))
    return house


def refusal(house: House, digits: Digits, version: str = "") -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        house.predict(digits.images, version)
    return caught.value.code, caught.value.reason


def test_a_version_whose_dataset_is_quarantined_is_not_loaded_and_one_of_another_dataset_is(
    served: House, digits: Digits
) -> None:
    served.roots.quarantined.add(ROOT)
    with pytest.raises(FailedPrecondition) as caught:
        served.reload(2)
    assert (caught.value.code, caught.value.reason) == IN_DOUBT
    assert served.metrics.value("integrity_failures_total") == 0  # nobody changed a byte
    assert served.reload(1).number == 1
    fresh = served.serve()
    with pytest.raises(FailedPrecondition):
        fresh.catalogue.find(TENANT, "digits", "2")
    assert fresh.catalogue.find(TENANT, "digits", "1")


def test_a_running_version_is_taken_out_in_the_next_round_and_nothing_takes_its_place(
    served: House, digits: Digits
) -> None:
    served.service.watcher.reconcile()
    assert served.predict(digits.images) == digits.labels.tolist()
    served.roots.quarantined.add(ROOT)
    served.service.watcher.reconcile()
    assert refusal(served, digits) == refusal(served, digits, "2") == NOT_READY
    assert served.predict(digits.images, "1") == digits.labels.tolist()
    served.roots.quarantined.clear()  # the supplier's date of compromise was corrected
    served.service.watcher.reconcile()
    assert served.predict(digits.images) == digits.labels.tolist()


def test_while_datasets_is_silent_its_last_word_stands(served: House, digits: Digits) -> None:
    served.roots.silent = True
    served.service.watcher.reconcile()
    assert served.predict(digits.images) == digits.labels.tolist()
    assert served.serve().catalogue.find(TENANT, "digits", "2")  # a restart ends no predictions
    assert served.service.watcher._training.ask_again_in is not None


class Word:
    """What datasets says, and how often it was asked."""

    def __init__(self) -> None:
        self.quarantined_roots: set[bytes] | None = set()
        self.asked: list[int] = []

    def quarantined(self, _tenant: str, roots: Sequence[bytes]) -> frozenset[bytes]:
        self.asked.append(len(roots))
        if self.quarantined_roots is None:
            raise Unavailable("out")
        return frozenset(self.quarantined_roots).intersection(roots)


def test_a_quarantine_that_was_heard_is_kept_through_silence_and_silence_is_not_asked_at_every_load() -> None:
    word, now = Word(), [0.0]
    training = TrainingData(word, pause=timedelta(seconds=5), now=lambda: now[0])
    word.quarantined_roots = {ROOT}
    assert training.quarantined(TENANT, [ROOT, OTHER]) == {ROOT}
    word.quarantined_roots = None
    for _ in range(3):
        with pytest.raises(FailedPrecondition):
            training.require_sound(TENANT, [ROOT])
        training.require_sound(TENANT, [OTHER])
        training.require_sound("globex", [ROOT])
    assert len(word.asked) == 2
    assert training.ask_again_in == 5.0
    now[0], word.quarantined_roots = 5.0, set()
    training.require_sound(TENANT, [ROOT])
    assert (len(word.asked), training.ask_again_in) == (3, None)


def test_many_roots_are_asked_about_in_parts_and_none_asks_nobody() -> None:
    word = Word()
    training = TrainingData(word)
    many = [number.to_bytes(32, "big") for number in range(1200)]
    word.quarantined_roots = {many[0], many[-1]}
    assert training.quarantined(TENANT, many) == {many[0], many[-1]}
    training.require_sound(TENANT, [])
    assert word.asked == [500, 500, 200]
