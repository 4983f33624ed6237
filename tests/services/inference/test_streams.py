"""Streams of predictions end with the right to them, with the status that says why, and with nothing else."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
import pytest

from casemate.clock import SystemClock
from casemate.errors import Code, Reason
from casemate.gate.core.records import RemovedGrant, Revocation, RevocationKind
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.status import from_rpc_error
from services.inference.servicers import OPEN_INFERENCE
from tests.services.inference.house import PATIENCE, House, grant
from tests.services.inference.identity import identity
from tests.support.authority import LeafFactory

A_TOKENS_LIFE = timedelta(minutes=5)


class MovedClock(SystemClock):
    """The machine's clock, moved on the wall alone."""

    moved = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.moved


@pytest.fixture(scope="module")
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture(scope="module")
def echoing(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, clock: MovedClock) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf, clock=clock)
    house.publish({"model.onnx": identity("FP32", shape=(None, 4))}, model="echo")
    yield house
    house.close()


class Talk:
    """A stream on which one request was answered."""

    def __init__(self, house: House) -> None:
        self._say: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        token = house.token(house.caller)
        self.token_id = jwt.decode(token, options={"verify_signature": False})["jti"]
        infer = house.channel(house.caller).stream_stream(f"/{OPEN_INFERENCE}/ModelStreamInfer", None, None)
        bearer = (("authorization", f"Bearer {token}"),)
        self._heard = infer(iter(self._say.get, None), metadata=bearer, timeout=PATIENCE)
        self.ask()

    def ask(self) -> None:
        """One more request, and its answer."""
        request = wire.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(16)])
        request.inputs.add(name="FP32_in", datatype="FP32", shape=(1, 4))
        self._say.put(request.SerializeToString())
        reply = wire.ModelStreamInferResponse.FromString(next(self._heard))
        assert reply.infer_response.raw_output_contents == [bytes(16)]

    def close(self) -> None:
        """Ends it as its peer does."""
        self._say.put(None)
        assert not list(self._heard)

    def ending(self) -> tuple[Code, Reason]:
        """What the server ends it with, though nothing more is sent."""
        with pytest.raises(grpc.RpcError) as caught:
            next(self._heard)
        self._say.put(None)
        error = from_rpc_error(caught.value)
        return error.code, error.reason


def revoke(house: House, token_id: str) -> None:
    until = datetime.now(UTC) + timedelta(hours=1)
    house.trust.change(Revocation(id=token_id, kind=RevocationKind.TOKEN, value=token_id, expires_at=until))


ENDINGS = {
    "the token expires": (
        lambda _house, clock, _talk: setattr(clock, "moved", A_TOKENS_LIFE + timedelta(minutes=2)),
        (Code.UNAUTHENTICATED, Reason.TOKEN_EXPIRED),
    ),
    "the grant is taken away": (
        lambda house, _clock, _talk: house.trust.change(RemovedGrant(id="t/acme/caller-infer")),
        (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND),
    ),
    "the token is revoked": (
        lambda house, _clock, talk: revoke(house, talk.token_id),
        (Code.UNAUTHENTICATED, Reason.TOKEN_REVOKED),
    ),
}


@pytest.mark.parametrize(("end", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_a_stream_ends_by_itself_when_its_right_does_and_says_why(
    echoing: House,
    clock: MovedClock,
    end: Callable[[House, MovedClock, Talk], None],
    expected: tuple[Code, Reason],
) -> None:
    """Within a second: a stream is judged every 250 ms, told at the second look and cut at the fourth."""
    talk = Talk(echoing)
    try:
        end(echoing, clock, talk)
        assert talk.ending() == expected
    finally:
        clock.moved = timedelta(0)
        echoing.trust.change(grant("t/acme/caller", "infer"))


def test_news_that_does_not_concern_it_and_time_within_its_tokens_life_leave_a_stream_alone(
    tmp_path: Path, leaf: LeafFactory
) -> None:
    clock = MovedClock()
    house = House(directory=tmp_path, leaf=leaf, clock=clock)
    house.publish({"model.onnx": identity("FP32", shape=(None, 4))}, model="echo")
    talk, other = Talk(house), Talk(house)
    clock.moved = A_TOKENS_LIFE - timedelta(minutes=1)
    house.trust.change(RemovedGrant(id="t/acme/caller-describe"))
    revoke(house, other.token_id)
    assert other.ending() == (Code.UNAUTHENTICATED, Reason.TOKEN_REVOKED)
    talk.ask()  # judged again at the same moment as the other, and at each request
    talk.close()
    house.close()
