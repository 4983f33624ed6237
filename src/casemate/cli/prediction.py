"""Asking the digits model, through the unmodified tritonclient."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from casemate.client.triton import triton_client
from casemate.errors import CasemateError
from casemate.transport.status import from_rpc_error

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

    from casemate.client.session import Session

ROWS_A_CALL = 60


def ask(client: InferenceServerClient, model: str, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
    """The digits (n,) int64 that the model sees in images (n, 64) float32, in several calls if there are many.

    Raises:
        CasemateError: what the service answered.
    """
    labels = []
    for start in range(0, len(pixels), ROWS_A_CALL):
        part = np.ascontiguousarray(pixels[start : start + ROWS_A_CALL], dtype=np.float32)
        images = InferInput("images", list(part.shape), "FP32")
        images.set_data_from_numpy(part)
        with ours():
            answer = client.infer(model, [images])
        labels.append(answer.as_numpy("label"))
    return np.concatenate(labels)


@contextlib.contextmanager
def ours() -> Iterator[None]:
    """Turns tritonclient's error into ours, with its reason."""
    try:
        yield
    except InferenceServerException as error:
        # tritonclient raises its own error while it has gRPC's in hand, and keeps it nowhere else.
        cause = error.__context__
        if isinstance(cause, grpc.RpcError):
            raise from_rpc_error(cause) from error
        raise CasemateError(str(error)) from error


def ask_as(session: Session, model: str, pixels: NDArray[np.float32]) -> NDArray[np.int64]:
    """One question by a session's own tritonclient, made for it and closed after it."""
    client = triton_client(session)
    try:
        return ask(client, model, pixels)
    finally:
        client.close()


def describe_as(session: Session, model: str) -> None:
    """Asks what the model takes and gives.

    Raises:
        CasemateError: what the service answered.
    """
    client = triton_client(session)
    try:
        with ours():
            client.get_model_metadata(model)
    finally:
        client.close()
