"""What the tests beside this share."""

from __future__ import annotations

import queue

import grpc
import pytest

from casemate.datasets.v1.dataset_service_pb2 import GetVersionRequest
from casemate.transport.status import from_rpc_error
from tests.gate.served import PARSED, serve
from tests.gate.world import World

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED


DIGITS = GetVersionRequest(dataset="digits", version=PARSED)


@pytest.fixture(scope="module", params=["sync", "aio"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def service_leaf(leaf):
    return leaf("service", service="datasets")


@pytest.fixture(scope="module")
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


@pytest.fixture(scope="module")
def mallory(leaf):
    return leaf("client", tenant="acme", name="mallory")


@pytest.fixture
def served(kind, service_leaf):
    with serve(kind, World(), service_leaf) as served:
        yield served


@pytest.fixture
def channel(served, trainer):
    with served.channel(trainer) as channel:
        yield channel


def refusal(callable_, *arguments, **named):
    """Code and reason of a call that must fail; its answer must carry our request id."""
    with pytest.raises(grpc.RpcError) as raised:
        callable_(*arguments, **named)
    return judged(raised.value)


def judged(error):
    assert "casemate-request-id" in dict(error.trailing_metadata())
    return error.code(), from_rpc_error(error).reason


class Talk:
    """A client's side of a stream, one message at a time."""

    def __init__(self, served, channel, token, method="StreamStream"):
        self._sent: queue.SimpleQueue = queue.SimpleQueue()
        self._call = served.stream(channel, method, iter(self._sent.get, None), token=token)

    def say(self, dataset="digits", version=PARSED):
        self._sent.put(GetVersionRequest(dataset=dataset, version=version))
        return next(self._call).version

    def end(self):
        self._sent.put(None)
        return list(self._call)

    def refused(self):
        """Waits, saying nothing, for the server to end the stream."""
        try:
            return refusal(next, self._call)
        finally:
            self._sent.put(None)
