"""A synchronous gRPC server that answers with what it got: plain, over mutual TLS, or behind the gate.

`python -m bench.echo MODE DIRECTORY` prints one JSON line with its port and, behind
the gate, a token for the client whose leaf lies in DIRECTORY/client. Whoever starts it
sets the TLS floor in its environment.
"""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from bench.tokens import Mint
from casemate.clock import SystemClock
from casemate.gate.adapters.synchronous import GateInterceptor
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import MethodPolicy, PolicyTable, TokenAccess
from casemate.gate.core.quota import LocalQuota, Shares
from casemate.gate.core.trust import TrustState
from casemate.gate.core.verifier import TokenVerifier
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.server import server_credentials

METHOD = "/bench.Echo/Echo"
TRUST_DOMAIN = "casemate.internal"


class _Echo(grpc.GenericRpcHandler):
    """Answers `METHOD` with the bytes of the request."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        if details.method != METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)


def build_gate(mint: Mint) -> Gate:
    """A gate that trusts one mint, without limits that a bench would meet."""
    clock = SystemClock()
    trust = TrustState()
    trust.apply_snapshot(mint.snapshot())
    # A bench has no feed: it vouches for its trust for the hour that it may take at most.
    trust.heard(clock.monotonic() + 3600)
    return Gate(
        policies=PolicyTable([MethodPolicy(method=METHOD, access=TokenAccess("models.infer"))]),
        verifier=TokenVerifier(issuer=mint.issuer, audience="inference"),
        cache=TokenCache(),
        trust=trust,
        peers=PeerVerifier(trust_domain=TRUST_DOMAIN),
        quota=LocalQuota(clock=clock, shares=Shares(calls_per_second=1e9, burst=10**9)),
        audit=NoAudit(),
        clock=clock,
    )


def main(mode: str, directory: Path) -> None:
    """Serves until its standard input ends."""
    mint = Mint()
    said: dict[str, object] = {}
    interceptors: list[grpc.ServerInterceptor] = []
    if mode == "gated":
        interceptors.append(GateInterceptor(build_gate(mint)))
        said["token"] = mint.issue(load_pair(directory / "client").thumbprint)
    server = grpc.server(
        ThreadPoolExecutor(4),
        handlers=[_Echo()],
        interceptors=interceptors,
        options=[("grpc.so_reuseport", 0)],
    )
    if mode == "plaintext":
        said["port"] = server.add_insecure_port("127.0.0.1:0")
    else:
        source = CertificateSource(directory / "server")
        said["port"] = server.add_secure_port("127.0.0.1:0", server_credentials(source))
    server.start()
    print(json.dumps(said), flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.stop(0)), daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
