"""Work that nobody waits for any more is not begun."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casemate.errors import DeadlineExceeded
from casemate.gate.adapters.caller_context import calling_as
from casemate.gate.core.caller import Caller
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.servicers import open_inference_service
from tests.services.inference.conftest import Digits
from tests.services.inference.house import TENANT, House

CALLER = Caller(
    tenant=TENANT,
    client_id="caller",
    subject="caller",
    spiffe_id="spiffe://casemate.internal/t/acme/caller",
    scopes=frozenset(),
    token_id="1",
    certificate_thumbprint="",
    expires_at=datetime(2100, 1, 1, tzinfo=UTC),
    request_id="1",
)


class Context:
    """As much of grpcio's context as a unary handler reads."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining

    def time_remaining(self) -> float | None:
        return self._remaining

    def add_callback(self, _callback: object) -> bool:
        return True

    def cancel(self) -> bool:
        return True


def test_a_call_whose_deadline_has_passed_never_reaches_the_model(house: House, digits: Digits) -> None:
    house.publish({"model.onnx": digits.onnx})
    service = open_inference_service(models=house.service.models, predictions=house.service.predictions)
    infer = service.handlers["ModelInfer"].unary_unary
    request = wire.ModelInferRequest(model_name="digits", raw_input_contents=[digits.images.tobytes()])
    request.inputs.add(name="image", datatype="FP32", shape=digits.images.shape)
    counts = house.service.catalogue.find(TENANT, "digits", "").statistics
    with calling_as(CALLER):
        with pytest.raises(DeadlineExceeded):
            infer(request, Context(0.0))
        assert (counts.current.executions, counts.current.fail.count) == (0, 0)
        infer(request, Context(1.0))
        infer(request, Context(None))
    assert counts.current.executions == 2
