"""A service that lies: the answers of a real one, changed on their way to our client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import grpc

from casemate.client.datasets import Datasets
from casemate.transport.certificates import load_pair
from tests.services.datasets.reading import _Session, _WithToken
from tests.services.datasets.world import OPTIONS, World, credentials


class _Answers:
    """A call whose answers are others."""

    def __init__(self, call: grpc.Call, change: Callable[[list], list]) -> None:
        self._call = call
        self._change = change
        self._said = None

    def __iter__(self):
        return self

    def __next__(self):
        if self._said is None:
            self._said = iter(self._change(list(self._call)))
        return next(self._said)

    def cancel(self) -> None:
        self._call.cancel()


class _Liar(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Changes what comes back: of a stream the list of answers, of a unary call the one."""

    def __init__(self, change, each, metadata) -> None:
        self._change = change
        self._each = each
        self._metadata = metadata

    def intercept_unary_unary(self, continuation, details, request):
        return _Answer(self._change([continuation(details, request).result()])[0])

    def intercept_unary_stream(self, continuation, details, request):
        return _Answers(continuation(details, request), self._change)

    def intercept_stream_stream(self, continuation, details, requests):
        """A push waits for answers before it goes on: they are changed one by one."""
        call = continuation(details._replace(metadata=self._metadata), requests)
        return _OneByOne(call, self._each)


class _Answer:
    """A unary call that has been answered."""

    def __init__(self, said: object) -> None:
        self._said = said

    def result(self) -> object:
        return self._said


class _OneByOne:
    def __init__(self, call: grpc.Call, each: Callable[[int, object], list]) -> None:
        self._call = call
        self._answers = (answer for number, said in enumerate(call) for answer in each(number, said))

    def __iter__(self):
        return self._answers

    def cancel(self) -> None:
        self._call.cancel()


@contextmanager
def lied_to(world: World, change=lambda said: said, each=lambda _number, said: [said]):
    """Our client of the service, its answers changed."""
    directory = world.leaf("client", tenant="acme", name="trainer")
    token = world._token(directory, "acme", "trainer", "datasets.read datasets.write")
    metadata = (("authorization", f"Bearer {token}"),)
    with grpc.secure_channel(f"127.0.0.1:{world.running.port}", credentials(directory), OPTIONS) as channel:
        told = grpc.intercept_channel(channel, _Liar(change, each, metadata), _WithToken(metadata))
        yield Datasets(_Session(told, load_pair(directory).spiffe_id))
