"""Names of grpcio that are not public, each of them gone: the server is served grpcio's way, and nobody notices."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import threading
from types import SimpleNamespace

import grpc
import pytest
from grpc import _common, _compression, _cython, _server

from casemate.gate.adapters import calls, early_end
from casemate.transport import lane, lane_call
from casemate.transport.registry import RegisteredService
from casemate.transport.status import WireStatus
from tests.gate.adapter_world import service_leaf, trainer
from tests.gate.served import LIMIT_S, bearer, serve
from tests.gate.world import World

__all__ = ["service_leaf", "trainer"]  # fixtures

OF_CALLS = [
    *(("cygrpc", name) for name in lane_call._OF_CYGRPC),
    *(("_common", name) for name in lane_call._OF_COMMON),
    ("_compression", "compression_algorithm_to_metadata"),
    *((module, None) for module in ("cygrpc", "_common", "_compression")),
]
MODULES = {
    "cygrpc": (_cython, _cython.cygrpc),
    "_common": (grpc, _common),
    "_compression": (grpc, _compression),
    "_server": (grpc, _server),
}


def without(thing, name):
    """What a release is like that lacks a name."""
    return SimpleNamespace(**{known: getattr(thing, known) for known in vars(thing) if known != name})


def loaded_anew(module, gone, name, monkeypatch):
    """Our module as a process loads it where a module of grpcio, or a name in it, is gone. The loaded one stays."""
    parent, there = MODULES[gone]
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_anew", module.__file__)
    anew = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patched:
        if name is None:
            patched.delattr(parent, gone)
            patched.setitem(sys.modules, there.__name__, None)
        else:
            patched.setattr(parent, gone, without(there, name))
            patched.setitem(sys.modules, there.__name__, getattr(parent, gone))
        spec.loader.exec_module(anew)
    return anew


@pytest.fixture(scope="module")
def leaves(service_leaf, trainer):
    return service_leaf, trainer


def served_by(leaves):
    """The thread that a call runs in which the lane would serve at once."""

    def named(_raw, _context):
        return threading.current_thread().name.encode()

    service = RegisteredService(
        "test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(named)}, {"Open": lambda *_: named}
    )
    with serve("sync", World(), leaves[0], services=[service]) as served, served.channel(leaves[1]) as channel:
        metadata = bearer(served.world.token(leaves[1]))
        return channel.unary_unary("/test.Echo/Open")(b"", metadata=metadata, timeout=LIMIT_S).decode()


def test_with_every_name_a_call_is_served_on_the_lane(leaves):
    assert served_by(leaves) == "lane"


@pytest.mark.parametrize("name", [*lane._OF_SERVER, None])
def test_without_a_name_of_its_server_grpcio_serves(leaves, monkeypatch, name):
    monkeypatch.setattr(lane, "_SERVER", without(_server, name) if name is not None else None)
    assert served_by(leaves) == "call_1"


@pytest.mark.parametrize("name", [*lane._OF_STATE, None])
def test_without_a_name_of_its_servers_state_grpcio_serves(leaves, monkeypatch, name):
    available = lane.available

    def elsewhere(server):
        return available(SimpleNamespace(_state=without(server._state, name)) if name is not None else object())

    monkeypatch.setattr(lane, "available", elsewhere)
    assert served_by(leaves) == "call_1"


@pytest.mark.parametrize(("module", "name"), OF_CALLS)
def test_without_a_name_of_its_calls_grpcio_serves(leaves, monkeypatch, module, name):
    anew = loaded_anew(lane_call, module, name, monkeypatch)
    assert (anew.AVAILABLE, lane_call.AVAILABLE) == (False, True)
    monkeypatch.setattr(lane_call, "AVAILABLE", anew.AVAILABLE)
    assert served_by(leaves) == "call_1"


USED = {
    "_SERVER": lane._OF_SERVER,
    "state": lane._OF_STATE,
    "CYGRPC": lane_call._OF_CYGRPC,
    "_COMMON": lane_call._OF_COMMON,
}


@pytest.mark.parametrize("thing", USED)
def test_every_name_that_is_used_is_looked_for_at_the_start(thing):
    names = {
        node.attr
        for module in (lane, lane_call)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        and (node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")) == thing
    }
    assert names
    assert names <= set(USED[thing])


EARLY = ["_CANCELLED", "_SEND_INITIAL_METADATA_AND_SEND_MESSAGE_TOKEN", "_SEND_MESSAGE_TOKEN", "_abort", None]


class Context:
    """A call's, of another grpcio: it has what is public, and nothing beneath."""

    def __init__(self):
        self.cancelled = 0

    def cancel(self):
        self.cancelled += 1


@pytest.mark.parametrize(
    ("module", "name"),
    [*(("_server", name) for name in EARLY), ("_common", "STATUS_CODE_TO_CYGRPC_STATUS_CODE"), ("_common", None)],
)
def test_without_what_ends_a_call_early_it_is_cancelled(monkeypatch, module, name):
    anew, context = loaded_anew(early_end, module, name, monkeypatch), Context()
    status = WireStatus(grpc.StatusCode.UNAUTHENTICATED, "authentication failed", ())
    anew.end_early(context, status)
    assert context.cancelled == 0
    anew.cut(context, status, request_id="aa")
    assert context.cancelled == 1


@pytest.mark.parametrize("name", ["auth_context", None])
def test_without_the_short_way_to_a_connection_the_public_one_serves(monkeypatch, name):
    context = SimpleNamespace(_rpc_event=SimpleNamespace(call=object()), auth_context=lambda: {"said": "publicly"})
    assert loaded_anew(calls, "cygrpc", name, monkeypatch).auth_context(context) == {"said": "publicly"}
