"""A server that is killed outright costs no idempotent call."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import contextmanager

from casemate.transport.channel import RotatingChannel

SERVE = """
import os, sys
from pathlib import Path
from casemate.transport.floor import raise_floor
raise_floor(os.environ)
import grpc
from casemate.transport.certificates import CertificateSource
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_server
say = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
server = build_server(
    source=CertificateSource(Path(sys.argv[1])),
    services=[RegisteredService("test.Echo", {"Say": say})],
    interceptors=[],
    address="127.0.0.1:0",
)
server.start()
print(server.port, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving(directory):
    command = [sys.executable, "-c", SERVE, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def test_a_server_killed_under_load_fails_no_idempotent_call(server_directory, client_source):
    with (
        serving(server_directory) as (first, first_port),
        serving(server_directory) as (_second, second_port),
        RotatingChannel(
            target=f"ipv4:127.0.0.1:{first_port},127.0.0.1:{second_port}",
            service_name="auth",
            source=client_source,
            idempotent_methods=frozenset({"/test.Echo/Say"}),
        ) as channel,
    ):
        say = channel.unary_unary("/test.Echo/Say")
        failures: list[BaseException] = []
        done = threading.Event()

        def load() -> None:
            while not done.is_set():
                try:
                    say(b"x")
                except BaseException as error:  # noqa: BLE001  # whatever it is, it is a failed call
                    failures.append(error)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            say(b"before")
        first.kill()
        first.wait(10)
        for _ in range(50):
            say(b"after")
        done.set()
        for thread in threads:
            thread.join(20)
        assert failures == []
