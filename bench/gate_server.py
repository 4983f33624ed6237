"""Servers for `bench.gate`: the layers one by one, each on a port of its own, on one of grpcio's two servers.

`python -m bench.gate_server KIND WORK DIRECTORY` prints one JSON line with a port for each
layer and a token, and then its CPU seconds for every line that it reads. Whoever starts it
sets the TLS floor in its environment, and the processor that it may use.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime

from bench.naive import AioNaiveInterceptor, NaiveInterceptor
from bench.tokens import Mint
from casemate.clock import SystemClock
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.adapters.counts import GateCounts
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.method_policy import MethodPolicy, ResourceSelector, TokenAccess
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import PolicyTable
from casemate.gate.core.quota import Lease, LocalQuota, Shares
from casemate.gate.core.records import Grant
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.byte_budget import budget_of
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.fair_pool import FairThreadPool
from casemate.transport.lane import lane_of
from casemate.transport.metrics import Metrics
from casemate.transport.options import DEFAULT_MAX_MESSAGE_BYTES, server_options
from casemate.transport.registry import AtOnce, RegisteredService
from casemate.transport.server import server_credentials

LAYERS = ("plaintext", "tls", "mtls", "naive", "cached", "policy", "quota", "audit")
GATED = LAYERS[LAYERS.index("cached") :]
SERVICE = "bench.Work"
METHODS = {"echo": f"/{SERVICE}/Echo", "digits": f"/{SERVICE}/Infer"}
TRUST_DOMAIN = "casemate.internal"
MODEL = "digits"
THREADS = 16
_UNLIMITED = Shares(
    calls_per_second=1e9,
    burst=10**9,
    tenant_calls_per_second=1e9,
    tenant_burst=10**9,
    resource_calls_per_second=1e9,
    resource_burst=10**9,
)


class _NoQuota:
    """Lets everybody in."""

    def enter(self, *, tenant: str, caller: str) -> Lease:  # noqa: ARG002  # the protocol's
        """A place that nobody counts."""
        return self

    def release(self) -> None:
        """Gives nothing back."""

    def spend(self, *, tenant: str, caller: str) -> None:
        """Counts nothing."""

    def spend_on(self, *, tenant: str, resource: str) -> None:
        """Counts nothing."""


def build_gate(layer: str, mint: Mint, method: str, directory: Path) -> Gate:
    """The gate up to and with one layer; no limits that a bench would meet."""
    depth, clock, trust = LAYERS.index(layer), SystemClock(), TrustState()
    grant = Grant(id="bench", tenant="acme", caller="t/acme/bench", verb="infer", resource=f"model/{MODEL}")
    trust.apply_snapshot(mint.snapshot(grants=[grant]))
    # A bench has no feed: it vouches for its trust for the hour that it may take at most.
    trust.heard(clock.monotonic() + 3600)
    by_resource = depth >= LAYERS.index("policy")
    field = "model_name" if method == METHODS["digits"] else "name"
    policy = MethodPolicy(
        method=method,
        access=TokenAccess("models.infer", "infer" if by_resource else None),
        resource=ResourceSelector(type="model", field=field) if by_resource else None,
        audit_allowed=layer == "audit",
    )
    counted = depth >= LAYERS.index("quota")
    counts = GateCounts(Metrics("bench"))
    return Gate(
        policies=PolicyTable([policy]),
        verifier=TokenVerifier(issuer=mint.issuer, audience="inference"),
        cache=TokenCache(observe=counts.looked_up) if counted else TokenCache(),
        trust=trust,
        peers=PeerVerifier(trust_domain=TRUST_DOMAIN),
        quota=LocalQuota(clock=clock, shares=_UNLIMITED) if counted else _NoQuota(),
        audit=AuditFile(directory / f"audit-{method.rpartition('/')[2]}.jsonl") if layer == "audit" else NoAudit(),
        clock=clock,
        observer=counts if counted else None,
    )


def works(directory: Path) -> dict[str, Callable[[Any], Any]]:
    """What is done for a call: nothing, or a prediction by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        (directory / "digits.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )

    def echo(request: wire.ModelReadyRequest) -> wire.ModelReadyRequest:
        return request

    def infer(request: wire.ModelInferRequest) -> wire.ModelInferResponse:
        images = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        labels, probabilities = session.run(None, {"images": images})
        response = wire.ModelInferResponse(model_name=request.model_name, id=request.id)
        for name, datatype, array in (("label", "INT64", labels), ("probabilities", "FP32", probabilities)):
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(array.tobytes())
        return response

    return {"echo": echo, "digits": infer}


def _handlers(work: str, act: Callable[[Any], Any], *, aio: bool) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    async def act_later(request: Any, _context: object) -> Any:  # noqa: ANN401  # either work's messages
        return act(request)

    parsed = wire.ModelReadyRequest if work == "echo" else wire.ModelInferRequest
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        act_later if aio else lambda request, _context: act(request),
        request_deserializer=parsed.FromString,
        response_serializer=lambda message: message.SerializeToString(),
    )
    return {METHODS[work].rpartition("/")[2]: handler}


def _interceptors(layer: str, mint: Mint, method: str, directory: Path, *, aio: bool) -> list[Any]:
    if layer == "naive":
        return [(AioNaiveInterceptor if aio else NaiveInterceptor)(mint.key.public_key, mint.issuer)]
    if layer not in GATED:
        return []
    gate = build_gate(layer, mint, method, directory)
    return [(AioGateInterceptor if aio else GateInterceptor)(gate)]


def _bind(server: Any, layer: str, directory: Path, handlers: dict[str, Any]) -> int:  # noqa: ANN401
    """Registers and binds as `transport.server` does, and below mutual TLS as it never would."""
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
    if layer == "plaintext":
        return int(server.add_insecure_port("127.0.0.1:0"))
    source = CertificateSource(directory / "server")
    if layer == "tls":
        pair = source.current
        credentials = grpc.ssl_server_credentials([(pair.private_key_pem.reveal(), pair.certificate_chain_pem)])
    else:
        credentials = server_credentials(source)
    return int(server.add_secure_port("127.0.0.1:0", credentials))


def _serve(work: str, directory: Path, mint: Mint) -> dict[str, int]:
    act, ports = works(directory)[work], {}
    for layer in LAYERS:
        pool = FairThreadPool(THREADS, name="call") if layer in GATED else ThreadPoolExecutor(THREADS)
        interceptors = _interceptors(layer, mint, METHODS[work], directory, aio=False)
        server = grpc.server(pool, interceptors=interceptors, options=server_options(), maximum_concurrent_rpcs=1024)
        handlers = _handlers(work, act, aio=False)
        ports[layer] = _bind(server, layer, directory, handlers)
        lane = None
        if isinstance(pool, FairThreadPool):
            # As `transport.server` serves what is behind the gate; and at once, as inference does models this short.
            at_once = {name: _at_once(handler) for name, handler in handlers.items()}
            lane = lane_of(
                server,
                pool,
                [RegisteredService(SERVICE, handlers, at_once)],
                interceptors,
                budget_of(DEFAULT_MAX_MESSAGE_BYTES),
            )
        (lane or server).start()
        _RUNNING.append(server)
    return ports


def _at_once(handler: grpc.RpcMethodHandler[Any, Any]) -> AtOnce:
    return lambda _caller, _message, _context: handler.unary_unary


async def _serve_aio(work: str, directory: Path, mint: Mint) -> dict[str, int]:
    act, ports = works(directory)[work], {}
    for layer in LAYERS:
        server = grpc.aio.server(
            interceptors=_interceptors(layer, mint, METHODS[work], directory, aio=True),
            options=server_options(),
            maximum_concurrent_rpcs=1024,
        )
        ports[layer] = _bind(server, layer, directory, _handlers(work, act, aio=True))
        await server.start()
        _RUNNING.append(server)
    return ports


_RUNNING: list[Any] = []
"""Servers live as long as the process."""


def _answer(said: dict[str, object]) -> None:
    print(json.dumps(said), flush=True)
    for _line in sys.stdin:
        print(time.process_time(), flush=True)


def main(kind: str, work: str, directory: Path) -> None:
    """Serves until its standard input ends."""
    mint = Mint()
    said: dict[str, object] = {"kid": mint.key.kid, "token": mint.issue(load_pair(directory / "client").thumbprint)}
    if kind == "sync":
        said["ports"] = _serve(work, directory, mint)
        _answer(said)
        return

    async def run() -> None:
        said["ports"] = await _serve_aio(work, directory, mint)
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def answer() -> None:
            _answer(said)
            loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=answer, daemon=True).start()
        await ended.wait()
        for server in _RUNNING:
            await server.stop(0)

    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
