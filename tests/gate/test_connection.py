"""What is read of a connection, by the short way and by the public one."""

from __future__ import annotations

import grpc
import pytest

from casemate.errors import Reason
from casemate.gate.adapters import calls, lane
from casemate.transport.status import from_rpc_error
from tests.gate.served import PARSED, serve
from tests.gate.world import World


@pytest.fixture
def served(leaf):
    with serve("sync", World(), leaf("service", service="datasets")) as served:
        yield served


def test_the_short_way_says_of_a_connection_what_grpcio_says(served, leaf, monkeypatch):
    said = []

    def both(context):
        said.append((calls.auth_context(context), context.auth_context()))
        return said[-1][0]

    monkeypatch.setattr(lane, "auth_context", both)
    trainer = leaf("client", tenant="acme", name="trainer")
    with served.channel(trainer) as channel:
        assert served.call(channel, token=served.world.token(trainer)).version == PARSED
    ((short, public),) = said
    assert short == {name: public[name] for name in short}
    assert set(short) == {"ssl_tls_version", "x509_pem_cert", "ssl_negotiated_key_exchange_group"}


@pytest.mark.parametrize("short", [True, False])
def test_either_way_the_owner_of_a_token_is_served_and_a_thief_is_not(served, leaf, monkeypatch, short):
    if not short:
        monkeypatch.setattr(calls, "_known_of", None)
    trainer, thief = leaf("client", tenant="acme", name="trainer"), leaf("client", tenant="acme", name="thief")
    token = served.world.token(trainer)
    with served.channel(trainer) as channel, served.channel(thief) as theirs:
        assert served.call(channel, token=token).signer_key_id == "t/acme/trainer"
        with pytest.raises(grpc.RpcError) as refused:
            served.call(theirs, token=token)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert from_rpc_error(refused.value).reason is Reason.CERTIFICATE_MISMATCH


def test_request_ids_are_drawn_many_at_a_time_and_none_comes_twice():
    ids = calls.RequestIds()
    taken = [ids.take() for _ in range(2_000)]
    assert len(set(taken)) == len(taken)
    assert all(len(each) == 16 and int(each, 16) >= 0 for each in taken)
