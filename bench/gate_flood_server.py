"""Servers for `bench.gate_flood`: one prediction, served each way, behind the gate with its usual quota and without.

`python -m bench.gate_flood_server DIRECTORY` prints one JSON line with a port for each way and a token for
each tenant, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from bench.gate_server import METHODS, MODEL, SERVICE, TRUST_DOMAIN, works
from bench.tokens import Mint
from casemate.clock import SystemClock
from casemate.gate.adapters.asynchronous import AioGateInterceptor
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.method_policy import MethodPolicy, ResourceSelector, TokenAccess
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import PolicyTable
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.records import Grant
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.options import server_options
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_aio_server, build_server, server_credentials

TENANTS = {"flood": "acme", "quiet": "globex"}
METHOD = METHODS["digits"]
NAME = METHOD.rpartition("/")[2]
THREADS = 16


def build_gate(mint: Mint) -> Gate:
    """A gate that knows both tenants. Their rates are more than the machine can serve; their places are the usual."""
    clock, trust = SystemClock(), TrustState()
    grants = [
        Grant(id=tenant, tenant=tenant, caller=f"t/{tenant}/{name}", verb="infer", resource=f"model/{MODEL}")
        for name, tenant in TENANTS.items()
    ]
    trust.apply_snapshot(mint.snapshot(grants=grants))
    trust.heard(clock.monotonic() + 3600)
    policy = MethodPolicy(
        method=METHOD,
        access=TokenAccess("models.infer", "infer"),
        resource=ResourceSelector(type="model", field="model_name"),
    )
    return Gate(
        policies=PolicyTable([policy]),
        verifier=TokenVerifier(issuer=mint.issuer, audience="inference"),
        cache=TokenCache(),
        trust=trust,
        peers=PeerVerifier(trust_domain=TRUST_DOMAIN),
        quota=LocalQuota(clock=clock, shares=Shares(places=128)),
        audit=NoAudit(),
        clock=clock,
    )


def _service(act: Any, *, aio: bool, at_once: bool = False) -> RegisteredService:  # noqa: ANN401  # of either kind
    def behavior(request: Any, _context: object) -> Any:  # noqa: ANN401  # as above
        return act(request)

    async def later(request: Any, _context: object) -> Any:  # noqa: ANN401  # as above
        return act(request)

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        later if aio else behavior,
        request_deserializer=wire.ModelInferRequest.FromString,
        response_serializer=wire.ModelInferResponse.SerializeToString,
    )
    chosen = {NAME: lambda _caller, _message, _context: behavior} if at_once else {}
    return RegisteredService(SERVICE, {NAME: handler}, chosen)


def _bare(server: Any, service: RegisteredService, source: CertificateSource) -> int:  # noqa: ANN401  # grpcio's, of either kind
    server.add_registered_method_handlers(SERVICE, dict(service.handlers))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, dict(service.handlers)),))
    return int(server.add_secure_port("127.0.0.1:0", server_credentials(source)))


async def main(directory: Path) -> None:
    """Serves until its standard input ends."""
    mint, act, source = Mint(), works(directory)["digits"], CertificateSource(directory / "server")
    ports, running = {}, []
    bare = grpc.server(ThreadPoolExecutor(THREADS), options=server_options(), maximum_concurrent_rpcs=1024)
    ports["grpcio"] = _bare(bare, _service(act, aio=False), source)
    bare.start()
    for name, at_once in (("at once", True), ("threads", False)):
        server = build_server(
            source=source,
            services=[_service(act, aio=False, at_once=at_once)],
            interceptors=[GateInterceptor(build_gate(mint))],
            address="127.0.0.1:0",
            threads=THREADS,
        )
        server.start()
        running.append(server)
        ports[name] = server.port
    bare_aio = grpc.aio.server(options=server_options(), maximum_concurrent_rpcs=1024)
    ports["grpc.aio"] = _bare(bare_aio, _service(act, aio=True), source)
    await bare_aio.start()
    aio = build_aio_server(
        source=source,
        services=[_service(act, aio=True)],
        interceptors=[AioGateInterceptor(build_gate(mint))],
        address="127.0.0.1:0",
    )
    await aio.start()
    ports["aio"] = aio.port
    tokens = {
        name: mint.issue(load_pair(directory / name).thumbprint, tenant=tenant, client=name)
        for name, tenant in TENANTS.items()
    }
    print(json.dumps({"ports": ports, "tokens": tokens}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)  # at once, whatever is under way: nothing of it is kept


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
