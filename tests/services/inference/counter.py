"""A house whose one model is held until the test lets it go: what it is asked, and what it then does.

The model is on a back end that answers when the test says, one run at a time.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable

import grpc
import numpy as np
import pytest

from casemate.errors import CasemateError
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.status import from_rpc_error
from services.inference.servicers import OPEN_INFERENCE
from services.inference.statistics import Counts
from tests.services.inference.back_end import Sums
from tests.services.inference.house import PATIENCE, SERVING, TENANT, Caller, House
from tests.services.inference.test_upstream import upstream_file

SAMPLE = {"inputs": {"rows": {"shape": [2, 3], "values": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}}}
SETTINGS = dataclasses.replace(SERVING, threads=16)


class Counter:
    """A house whose one model is held: what it is asked, and what it then does."""

    def __init__(self, house: House, sums: Sums, **serving: object) -> None:
        self.house, self.sums = house, sums
        files = upstream_file()
        files["serving.json"] = json.dumps({"instances": 1, **serving}).encode()
        house.publish(files, model="sums")
        self._channels: dict[str, grpc.Channel] = {}
        for _ in range(24):  # what follows must hold for a model that was always quick, too
            self.ask(1).result(timeout=PATIENCE)
        sums.seen.clear()
        while sums.begun.acquire(blocking=False):
            pass
        sums.hold = threading.Event()

    def ask(
        self, *rows: float, caller: Caller | None = None, within: float | None = PATIENCE, **wishes: int
    ) -> grpc.Future:
        """A call under way; its rows tell who it is."""
        who = caller or self.house.caller
        values = np.repeat(np.array(rows, "<f4").reshape(-1, 1), 3, axis=1)
        request = wire.ModelInferRequest(model_name="sums", raw_input_contents=[values.tobytes()])
        request.inputs.add(name="rows", datatype="FP32", shape=values.shape)
        for name, wish in wishes.items():
            request.parameters[name].int64_param = wish
        channel = self._channels.setdefault(who.name, self.house.channel(who))
        infer = channel.unary_unary(f"/{OPEN_INFERENCE}/ModelInfer", None, None)
        return infer.future(request.SerializeToString(), metadata=self.house.metadata(who), timeout=within)

    def running(self, *rows: float, **terms: object) -> grpc.Future:
        """As `ask`; returns once the model runs it."""
        asked = self.ask(*rows, **terms)
        assert self.sums.begun.acquire(timeout=PATIENCE)
        return asked

    def waiting(self, *rows: float, **terms: object) -> grpc.Future:
        """As `ask`; returns once it is in the queue."""
        before = self.batcher.waiting
        asked = self.ask(*rows, **terms)
        until(lambda: self.batcher.waiting == before + 1)
        return asked

    @property
    def batcher(self):
        return self.house.service.catalogue.find(TENANT, "sums", "").batcher

    @property
    def counts(self) -> Counts:
        return self.house.service.catalogue.find(TENANT, "sums", "").statistics.current

    def go(self) -> None:
        """Lets the model answer from now on."""
        self.sums.hold.set()

    def ran(self) -> list[list[float]]:
        """The first value of each row, run by run."""
        return [
            np.frombuffer(request.raw_input_contents[0], "<f4")[::3].tolist() for request, _metadata in self.sums.seen
        ]


def until(condition: Callable[[], bool]) -> None:
    turns = threading.Event()
    for _ in range(int(PATIENCE / 0.002)):
        if condition():
            return
        turns.wait(0.002)
    raise AssertionError("it never came to that")


def answer(asked: grpc.Future) -> list[float]:
    response = wire.ModelInferResponse.FromString(asked.result(timeout=PATIENCE))
    return np.frombuffer(response.raw_output_contents[0], "<f4").tolist()


def refusal(asked: grpc.Future) -> CasemateError:
    with pytest.raises(grpc.RpcError) as caught:
        asked.result(timeout=PATIENCE)
    return from_rpc_error(caught.value)
